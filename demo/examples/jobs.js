// A queue of jobs, and three workers, each of which hosts a node. One worker is
// killed with -9 in the middle, and every job is done once.
//
//     node jobs.js LIBRARY            better-sqlite3 must be there

const Database = require('better-sqlite3');
const { fork } = require('node:child_process');
const fs = require('node:fs');
const os = require('node:os');
const path = require('node:path');
const { setTimeout: sleep } = require('node:timers/promises');

const [library, file, listen, token] = process.argv.slice(2);
const JOBS = 300;

// Once in a process: whatever it opens later has the extension.
const setup = new Database(':memory:');
setup.loadExtension(path.resolve(library));
const get = (db, sql, ...values) => db.prepare(sql).pluck().get(...values);

async function worker() {
  process.on('disconnect', () => process.exit(1)); // whoever started it is gone
  if (token)
    get(setup, "SELECT quorate_join(?, ?, 'listen', ?)", file, token, listen);
  else
    get(setup, "SELECT quorate_bootstrap(?, 'name', 'n1', 'listen', ?)",
        file, listen);
  const db = new Database(file, { timeout: 30000 });
  if (!token) db.exec('CREATE TABLE job(n INTEGER PRIMARY KEY, who, square)');
  process.send('ready');
  for (;;) {
    // A job and its result are one transaction: what is lost with a worker is
    // done by another.
    try {
      get(db, `UPDATE job SET who = ?, square = n * n WHERE n = (SELECT n
               FROM job WHERE square IS NULL LIMIT 1) RETURNING n`,
          path.basename(file));
    } catch (e) {
      if (!/SQLITE_(BUSY|IOERR)/.test(e.code)) throw e; // else: not done
    }
    await sleep(5);
  }
}

async function main() {
  const top = fs.mkdtempSync(path.join(os.tmpdir(), 'quorate-jobs.'));
  const base = 31200 + (process.pid % 500) * 3, workers = {};
  const start = (name, ...more) => new Promise((ready, failed) => {
    workers[name] = fork(__filename, [library, path.join(top, name),
      `127.0.0.1:${base + Number(name[1])}`, ...more]);
    workers[name].once('message', ready).once('exit', failed);
  });
  try {
    await start('n1');
    // This process is attached to the node of that worker.
    const db = new Database(path.join(top, 'n1'), { timeout: 30000 });
    for (const name of ['n2', 'n3'])
      await start(name, get(db, 'SELECT quorate_invite(?)', name));
    db.exec(`INSERT INTO job(n) SELECT value FROM json_each('[${
      Array.from({ length: JOBS }, (_, n) => n)}]')`);
    const done = () => get(db, 'SELECT count(square) FROM job');
    while (done() < JOBS / 3) await sleep(10);
    workers.n2.removeAllListeners().kill('SIGKILL');
    console.log('n2 was killed, some jobs are left:', done() < JOBS);
    while (done() < JOBS) await sleep(10);
    console.log('jobs done:', get(db, `SELECT count(*) FROM job
                                       WHERE square = n * n`));
  } finally {
    for (const w of Object.values(workers)) w.removeAllListeners().kill(9);
    fs.rmSync(top, { recursive: true });
  }
}

(file ? worker() : main()).then(() => process.exit(0));
