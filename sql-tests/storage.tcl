# What storage costs, in figures: joining, catching up, latency meanwhile,
# restarts, disk and memory.  Not a test: `make bench-storage MIB=1024`.
#
#   storage.tcl MIB     of the database; files in the current directory's
#                       file system, as QUORATE_TEST_DIR says

set mib [lindex $argv 0]
set argv {}
set argc 0
source [file join [file dirname [info script]] cluster.tcl]

proc now {} { clock milliseconds }
proc say {what args} { puts [format "%-46s %s" $what [join $args]] }

# Peak and present memory of a node, MiB.
proc memory {name} {
  set f [open /proc/$::proc($name,pid)/status]
  set text [read $f]
  close $f
  regexp {VmHWM:\s+(\d+)} $text -> peak
  regexp {VmRSS:\s+(\d+)} $text -> now
  return "[expr {$peak / 1024}] MiB at most, [expr {$now / 1024}] now"
}

proc disk {name} { lindex [exec du -sm $::dir/$name] 0 }
proc events {name like} {
  sql $name "SELECT event FROM quorate_events WHERE event LIKE '$like'"
}

# Commits of one row for some time; their latency in ms: p50, p99, max.
set writer {
  proc commits {ms} {
    set times {}
    set end [expr {[clock milliseconds] + $ms}]
    while {[clock milliseconds] < $end} {
      set began [clock microseconds]
      db eval {INSERT INTO w(v) VALUES(randomblob(100))}
      lappend times [expr {([clock microseconds] - $began) / 1000.0}]
    }
    set times [lsort -real $times]
    set n [llength $times]
    format "%.2f %.2f %.1f (%d)" [lindex $times [expr {$n / 2}]] \
      [lindex $times [expr {$n * 99 / 100}]] [lindex $times end] $n
  }
}

set rows [expr {$mib * 250}]
foreach name {n1 n2 n3 n4} {
  node_new $name tcl
}
node_start n1
stock n1/app.db "PRAGMA journal_mode = off;
  CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
  CREATE TABLE w(id INTEGER PRIMARY KEY, v BLOB);
  WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
                          WHERE i < $rows)
  INSERT INTO t SELECT i, randomblob(4000) FROM n"
set bytes [file size n1/app.db]
say "database" "[expr {$bytes >> 20}] MiB"
bootstrap n1 log_keep_kib 65536
node_open n1
tcl n1 $writer

set began [now]
exec cp n1/app.db copy
exec sync copy
set copied [expr {[now] - $began}]
file delete copy
say "cp and sync of the file" "$copied ms"
foreach name {n2 n3} {
  node_start $name
  set token [invite n1 $name]
  set began [now]
  join_cluster $name $token log_keep_kib 65536
  set took [expr {[now] - $began}]
  node_open $name
  say "$name joins" [format "%d ms, %.0f MB/s, %.1f times cp" $took \
    [expr {$bytes / 1000.0 / $took}] [expr {1.0 * $took / $copied}]]
  say "  memory of n1" [memory n1]
  say "  memory of $name" [memory $name]
}
wait_until {[voters n1] == 3}

say "commits, quiet: p50 p99 max ms" [tcl n1 {commits 5000} 60000]
sql n1 "UPDATE t SET v = randomblob(4000) WHERE id % 50 = 0" 600000
say "commits, checkpoint of [expr {$mib / 50}] MiB under way" \
  [tcl n1 {commits 5000} 60000]

stop n3
set last [sql n1 {SELECT quorate_index()}]
for {set i 0} {$i < 200 && [sql n1 {SELECT log_first FROM quorate_status}]
                <= $last + 1} {incr i} {
  sql n1 "UPDATE t SET v = randomblob(4000) WHERE id % 10 = 1" 600000
}
restart n3
say "commits, n3 takes a snapshot" [tcl n1 {commits 5000} 60000]
wait_until {[events n3 {installed the snapshot%}] ne ""} 600000
say "n3 had missed a tenth" [events n3 {installed the snapshot%}]
say "  a tenth of the database" "[expr {$bytes / 10240}] KiB"
say "  memory of n3" [memory n3]

node_start n4
set token [invite n1 n4]
post_tcl n4 [list query "SELECT quorate_join('n4/app.db', '$token',\
  'listen', '$node(n4,listen)')"]
say "commits, n4 joins" [tcl n1 {commits 5000} 60000]
collect n4 600000
say "memory of the leader" [memory n1]

kill9 n1
set began [now]
node_start n1
node_open n1
sql n1 {PRAGMA quorate_consistency = local}
wait_until {![catch {sql n1 {SELECT count(*) FROM w}}]} 60000
say "n1 killed, started, read" "[expr {[now] - $began}] ms"

set leader [leader]
tcl $leader $writer
say "disk of $leader" "[disk $leader] MiB for [expr {
  [file size $node($leader,file)] >> 20}] MiB of database"
cluster_end
finish
