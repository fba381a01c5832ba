# Sourced by run: dqlite through its own benchmark, kvwrite, which runs in the
# leader's process; a new cluster for each number of workers.

# Time enough to see, while it runs, that all three vote.
dqlite_seconds=$((seconds + 5))

dqlite_voters() {
  [ "$(timeout 5 dqlite -s "127.0.0.1:$1" bench .cluster | grep -c voter)" = 3 ]
}

# dqlite_measure WORKERS
dqlite_measure() {
  base=$dir/dqlite.$1
  mkdir -p "$base"
  p1=$("$bench" --free-port)
  p2=$("$bench" --free-port)
  p3=$("$bench" --free-port)
  node "$base/1.log" dqlite-benchmark --db "127.0.0.1:$p1" --driver \
    --cluster-timeout 30 --cluster "127.0.0.1:$p1,127.0.0.1:$p2,127.0.0.1:$p3" \
    -D "$base/1" --duration "$dqlite_seconds" --workers "$1" --key-size 32 \
    --value-size 100
  driver=${pids##* }
  # Who joins needs somebody to ask.
  until_true timeout 5 dqlite -s "127.0.0.1:$p1" bench .leader || :
  for n in 2 3; do
    eval "port=\$p$n"
    node "$base/$n.log" dqlite-benchmark --db "127.0.0.1:$port" \
      --join "127.0.0.1:$p1" -D "$base/$n"
  done
  # All three must vote, or it replicates to fewer than it seems.
  until_true dqlite_voters "$p1" || {
    refuse dqlite "$1" "no three voters: $(last "$base/1.log")"
    return
  }
  wait "$driver" # it ends by itself
  pids=$(echo " $pids " | sed "s/ $driver / /")
  set -- "$1" "$base"/1/*/results/*
  [ -f "$2" ] || {
    refuse dqlite "$1" "no results: $(last "$base/1.log")"
    return
  }
  dqlite_report "$@"
}

# A file of results: n, n_err, averages; then a line "time latency" for each
# that worked, and "time error" for each that did not.
dqlite_report() {
  workers=$1
  shift
  done=$(cat "$@" | awk '$1 == "n" { n += $2 } END { print n + 0 }')
  failed=$(cat "$@" | awk '$1 == "n_err" { n += $2 } END { print n + 0 }')
  rate=$(echo "$done $dqlite_seconds" | awk '{ printf "%.1f", $1 / $2 }')
  latencies=$(cat "$@" | awk '$1 ~ /^[0-9]+$/ && $2 ~ /^[0-9.]+$/ && NF == 2 {
                                print $2 }' | quantiles 1)
  note=''
  [ "$failed" = 0 ] || note="|$failed more attempts failed"
  echo "dqlite|$workers|$rate|$latencies$note"
}

dqlite() {
  installed dqlite '1 16' go-dqlite || return
  for workers in 1 16; do
    dqlite_measure "$workers"
    stop_all
  done
}
