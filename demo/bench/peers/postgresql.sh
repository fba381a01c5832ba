# Sourced by run: PostgreSQL, a primary and two streaming standbys, a commit
# waiting for the primary's disk and for one of the standbys' (remote flush).

# $pg_as is what becomes its user, in words: with a function in its place
# node() would know the number of a shell and not that of the server.
# shellcheck disable=SC2086,SC2154

pg_query() {
  $pg_as "$pg_bin/psql" -X -A -t -q -h 127.0.0.1 -p "$pg_port" -U bench \
    -d postgres -c "$1"
}

pg_standbys() {
  [ "$(pg_query "SELECT count(*) FROM pg_stat_replication
                 WHERE sync_state = '$1' AND state = 'streaming'")" = 2 ]
}

pg_answers() {
  $pg_as "$pg_bin/pg_isready" -q -h 127.0.0.1 -p "$1"
}

pg_server() {
  # Not pg_ctl: so its number is known, and INT is its fast shutdown.
  node "$dir/pg/$1.log" $pg_as "$pg_bin/postgres" -D "$dir/pg/$1" \
    -c listen_addresses=127.0.0.1 -c port="$2" \
    -c unix_socket_directories= -c fsync=on -c synchronous_commit=on \
    -c max_connections=100
}

pg_primary() {
  pg_port=$("$bench" --free-port)
  $pg_as "$pg_bin/initdb" -D "$dir/pg/p" -A trust -U bench || return 1
  pg_server p "$pg_port"
  until_true pg_answers "$pg_port" || return 1
  pg_query 'CREATE TABLE t(id bigserial PRIMARY KEY, v bytea)'
}

pg_standby() {
  port=$("$bench" --free-port)
  $pg_as "$pg_bin/pg_basebackup" -D "$dir/pg/$1" -R -X stream -c fast \
    -d "host=127.0.0.1 port=$pg_port user=bench application_name=$1" ||
    return 1
  pg_server "$1" "$port"
  until_true pg_answers "$port"
}

pg_start() {
  pg_primary && pg_standby s1 && pg_standby s2 || return 1
  until_true pg_standbys async || return 1
  pg_query "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (s1, s2)'" &&
    pg_query 'SELECT pg_reload_conf()' && until_true pg_standbys quorum
}

# pg_measure CLIENTS: pgbench on two threads, prepared statements.
pg_measure() {
  rm -f "$dir/pg/run/"*
  interruptible env PGUSER=bench "$pg_bin/pgbench" -n -f "$dir/pg/insert.sql" \
    -M prepared -c "$1" -j "$([ "$1" = 1 ] && echo 1 || echo 2)" \
    -T "$seconds" -l --log-prefix="$dir/pg/run/log" -h 127.0.0.1 \
    -p "$pg_port" postgres >"$dir/pg/run/out" 2>&1 || {
    refuse postgresql "$1" "$(last "$dir/pg/run/out")"
    return
  }
  rate=$(sed -n 's/^tps = \([0-9.]*\).*/\1/p' "$dir/pg/run/out")
  echo "postgresql|$1|$rate|$(cat "$dir/pg/run/log".* |
    awk '{ print $3 }' | quantiles 1000)"
}

postgresql() {
  installed postgresql '1 16 64' postgresql || return
  pg_bin=$(find /usr/lib/postgresql/*/bin -name initdb | sort -V | tail -n 1)
  pg_bin=${pg_bin%/*}
  mkdir -p "$dir/pg/run"
  # It refuses to run as root.
  pg_as=''
  if [ "$(id -u)" = 0 ]; then
    pg_as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    chown postgres:postgres "$dir/pg"
  fi
  # A constant of 100 bytes, as everybody here writes.
  echo "INSERT INTO t(v) VALUES(decode(repeat('ab', 100), 'hex'));" \
    >"$dir/pg/insert.sql"
  if ! pg_start >"$dir/pg.log" 2>&1; then
    refuse postgresql '1 16 64' "$(last "$dir/pg.log")"
    return
  fi
  for clients in 1 16 64; do
    pg_measure "$clients"
  done
}
