# What storage costs, in figures: joining, catching up, latency meanwhile,
# restarts, transactions of any size, disk and memory.  Not a test:
#
#   make bench-storage MIB=1024 PARTS='database large small'
#
#   storage.tcl MIB PART...    of the database; files in the current
#                              directory's file system, as QUORATE_TEST_DIR
#                              says (DIR=/tmp/somewhere make bench-storage)
#
#   database   a database of MIB: joins, load, catching up, kill -9
#   large      one transaction of MIB, VACUUM of half of it, .restore
#   small      SMALL (1000000) transactions of one row: what stays on the disk

set mib [lindex $argv 0]
set parts [lrange $argv 1 end]
set argv {}
set argc 0
source [file join [file dirname [info script]] cluster.tcl]

set hour 3600000
set keep 65536
set small 1000000
if {[info exists env(SMALL)]} {
  set small $env(SMALL)
}

proc now {} { clock milliseconds }
proc say {what args} {
  puts [format "%-46s %s" $what [join $args]]
  flush stdout
}

# ---- memory and disk -------------------------------------------------------

proc mark {} {
  foreach name $::nodes {
    if {[alive $name]} {
      set ::before($name) [memory_mark $name]
    }
  }
}

# What the nodes' processes took at most since the mark, MiB.
proc say_memory {} {
  say "  peak memory, and before it, MiB" [join [lmap name $::nodes {
    if {![alive $name]} continue
    format "%s %d (%d)" $name [memory_peak $name] $::before($name)
  }] ", "]
}

# MiB that files take on the disk, not how long they are.
proc used {args} {
  set kib 0
  foreach file $args {
    if {[file exists $file]} {
      incr kib [lindex [exec du -sk $file] 0]
    }
  }
  return [expr {$kib / 1024}]
}

proc say_disk {name} {
  set file $::node($name,file)
  say "  disk of $name, MiB" "database [used $file],\
    WAL [used $file-wal], log [used $file-quorate], all [used $name]"
}

# ---- work ------------------------------------------------------------------

proc events {name like} {
  sql $name "SELECT event FROM quorate_events WHERE event LIKE '$like'"
}

proc wait_for_all {} {
  foreach name $::nodes {
    if {[alive $name]} {
      wait_until {![catch {sql $name {SELECT count(*) FROM sqlite_schema}}]} \
        $::hour
    }
  }
}

# Commits of one row for some time; their latency in ms: p50, p99, max, and how
# many.  With rows: each changes one of those, anywhere in the file.
set writer {
  proc commits {ms {rows 0}} {
    set times {}
    set end [expr {[clock milliseconds] + $ms}]
    while {[clock milliseconds] < $end} {
      set id [expr {int(rand() * $rows) + 1}]
      set began [clock microseconds]
      if {$rows} {
        db eval {UPDATE t SET v = randomblob(4000) WHERE id = $id}
      } else {
        db eval {INSERT INTO w(v) VALUES(randomblob(100))}
      }
      lappend times [expr {([clock microseconds] - $began) / 1000.0}]
    }
    set times [lsort -real $times]
    set n [llength $times]
    format "%.2f %.2f %.1f (%d)" [lindex $times [expr {$n / 2}]] \
      [lindex $times [expr {$n * 99 / 100}]] [lindex $times end] $n
  }
  proc many {n} {
    for {set i 0} {$i < $n} {incr i} {
      db eval {UPDATE w SET v = randomblob(100) WHERE id = $i % 1000 + 1}
    }
  }
}

# The table t with a page a row, outside of any node, and an empty one, w.
proc make_file {file rows} {
  stock $file "PRAGMA journal_mode = off;
    CREATE TABLE t(id INTEGER PRIMARY KEY, v BLOB);
    CREATE TABLE w(id INTEGER PRIMARY KEY, v BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
                            WHERE i < $rows)
    INSERT INTO t SELECT i, randomblob(4000) FROM n"
}

# ms of cp and sync.
proc copy_time {file} {
  set began [now]
  exec cp $file copy
  exec sync copy
  set took [expr {[now] - $began}]
  file delete copy
  return $took
}

# Right after a copy of the same file, to which it is compared.
proc join_timed {name} {
  global bytes keep
  set copied [copy_time n1/app.db]
  node_start $name
  set token [invite n1 $name]
  mark
  set began [now]
  post_tcl $name [list query "SELECT quorate_join('$name/app.db', '$token',\
    'listen', '$::node($name,listen)', 'log_keep_kib', '$keep')"]
  collect $name $::hour
  set took [expr {[now] - $began}]
  node_open $name
  say "cp and sync of the file" "$copied ms"
  say "$name joins" [format "%d ms, %.0f MB/s, %.1f times cp" $took \
    [expr {$bytes / 1000.0 / $took}] [expr {1.0 * $took / $copied}]]
  say_memory
}

# ---- a database ------------------------------------------------------------

proc database_joins {rows} {
  global bytes keep writer
  foreach name {n1 n2 n3 n4} {
    node_new $name tcl
  }
  node_start n1
  make_file n1/app.db $rows
  set bytes [file size n1/app.db]
  say "database" "[expr {$bytes >> 20}] MiB"
  bootstrap n1 log_keep_kib $keep
  node_open n1
  tcl n1 $writer
  join_timed n2
  join_timed n3
  wait_until {[voters n1] == 3}
}

proc database_load {rows} {
  global mib
  say "commits, quiet: p50 p99 max ms" [tcl n1 {commits 10000} 60000]
  sql n1 "UPDATE t SET v = randomblob(4000) WHERE id % 50 = 0" $::hour
  say "commits, checkpoint of [expr {$mib / 50}] MiB under way" \
    [tcl n1 {commits 10000} 60000]
  mark
  say "commits of random pages for 60 s" [tcl n1 "commits 60000 $rows" 120000]
  say_memory
}

# A node that missed a tenth of the pages, and more log than is kept.
proc database_missed {} {
  global bytes
  stop n3 60000
  set last [sql n1 {SELECT quorate_index()}]
  for {set i 0} {$i < 200 && [sql n1 {SELECT log_first FROM quorate_status}]
                  <= $last + 1} {incr i} {
    sql n1 "UPDATE t SET v = randomblob(4000) WHERE id % 10 = 1" $::hour
    sql n1 {SELECT quorate_checkpoint()} 60000
  }
  node_start n3
  node_open n3 60000
  mark
  set began [now]
  say "commits, n3 takes a snapshot" [tcl n1 {commits 10000} 60000]
  wait_until {[events n3 {installed the snapshot%}] ne ""} $::hour
  say "n3 had missed a tenth" [events n3 {installed the snapshot%}] \
    "in at most [expr {[now] - $began}] ms"
  say "  a tenth of the database" "[expr {$bytes / 10240}] KiB"
  say_memory
}

proc database_join_under_load {} {
  node_start n4
  set token [invite n1 n4]
  mark
  post_tcl n4 [list query "SELECT quorate_join('n4/app.db', '$token',\
    'listen', '$::node(n4,listen)')"]
  say "commits, n4 joins" [tcl n1 {commits 10000} 60000]
  collect n4 $::hour
  say_memory
}

# With a log as full as it may be.
proc database_killed {rows} {
  tcl n1 "commits 20000 $rows" 60000
  say_disk n1
  kill9 n1
  set began [now]
  node_start n1
  node_open n1 600000
  sql n1 {PRAGMA quorate_consistency = local}
  wait_until {![catch {sql n1 {SELECT count(*) FROM w}}]} 600000
  say "n1 killed, started, read" "[expr {[now] - $began}] ms"
}

proc part_database {} {
  set rows [expr {$::mib * 250}]
  database_joins $rows
  database_load $rows
  database_missed
  database_join_under_load
  database_killed $rows
  cluster_end
}

# ---- large transactions ----------------------------------------------------

proc large {what script} {
  mark
  set began [now]
  tcl n1 $script $::hour
  set took [expr {[now] - $began}]
  wait_for_all
  say $what "$took ms, on all nodes after [expr {[now] - $began}] ms"
  say_memory
}

proc part_large {} {
  global mib keep
  cluster_make 3 -kind tcl -options [list log_keep_kib $keep] \
    -joining [list log_keep_kib $keep]
  large "CREATE TABLE of $mib MiB" "db eval {CREATE TABLE t AS
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
                            WHERE i < $mib * 256)
    SELECT i AS id, randomblob(4000) AS v FROM n}"
  large "DELETE of half of it" {db eval {DELETE FROM t WHERE id % 2}}
  large "VACUUM" {db eval VACUUM}
  sql n1 {VACUUM INTO 'half.db'} $::hour
  set half [expr {[file size half.db] >> 20}]
  large "restore of $half MiB" {db restore main half.db}
  sql n1 {SELECT quorate_checkpoint()} 60000
  say_disk n1
  say_disk n2
  cluster_end
  file delete half.db
}

# ---- small transactions ----------------------------------------------------

proc part_small {} {
  global small writer
  cluster_make 3 -kind tcl
  tcl n1 $writer
  sql n1 {CREATE TABLE w(id INTEGER PRIMARY KEY, v BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n
                            WHERE i < 1000)
    INSERT INTO w SELECT i, randomblob(100) FROM n}
  mark
  set began [now]
  tcl n1 "many $small" [expr {10 * $::hour}]
  say "$small transactions" "[expr {([now] - $began) / 1000}] s"
  say_memory
  foreach name $::nodes {
    say_disk $name
  }
  cluster_end
}

foreach part $parts {
  part_$part
}
finish
