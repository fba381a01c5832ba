'use strict';

const fs = require('node:fs');
const path = require('node:path');

/** The path of the extension for this machine. */
function loadablePath() {
  const platform = `${process.platform}-${process.arch}`;
  const file = path.join(__dirname, platform, 'quorate.so');
  if (!fs.existsSync(file))
    throw new Error(`quorate: this package has no library for ${platform}`);
  return file;
}

/**
 * Loads it, by a connection of better-sqlite3, or of anything else that has
 * loadExtension(path). Connections that are opened later in this process have
 * it, and can open nodes; so it is called once, with one in memory.
 */
function load(db) {
  db.loadExtension(loadablePath());
}

module.exports = { loadablePath, load };
