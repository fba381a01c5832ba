# What a read may see, on one node, of what was written on another: three ways.
#
#   tclsh levels.tcl LIBRARY

package require sqlite3
lassign $argv library
set top [exec mktemp -d]

# Once in a process: whatever it opens later has the extension.
sqlite3 setup :memory:
setup enable_load_extension 1
setup eval {SELECT load_extension($library)}

proc free_address {} {
  while 1 {
    set port [expr {12000 + int(rand() * 18000)}]
    if {![catch {socket -server none -myaddr 127.0.0.1 $port} s]} {
      close $s
      return 127.0.0.1:$port
    }
  }
}

proc add_node {name} {
  set file $::top/$name.db
  set listen [free_address]
  if {$name eq "n1"} {
    setup eval {SELECT quorate_bootstrap($file, 'name', $name,
                                         'listen', $listen)}
  } else {
    set token [n1 onecolumn {SELECT quorate_invite($name)}]
    setup eval {SELECT quorate_join($file, $token, 'listen', $listen)}
  }
  sqlite3 $name $file
  # Another node may hold the write lock: a busy handler waits for it.
  $name timeout 10000
}

try {
  foreach name {n1 n2 n3} { add_node $name }
  n1 eval {CREATE TABLE t(id INTEGER PRIMARY KEY, v)}

  # linearizable, the default: a read on any node sees what was acknowledged
  # before it began, wherever that was.
  for {set i 1} {$i <= 100} {incr i} {
    [lindex {n1 n2 n3} [expr {$i % 3}]] eval {INSERT INTO t(v) VALUES($i)}
    set seen [[lindex {n1 n2 n3} [expr {($i + 1) % 3}]] onecolumn {
      SELECT count(*) FROM t}]
    if {$seen != $i} { error "missed a row: $seen of $i" }
  }
  puts "linearizable: each of 100 rows was seen on another node at once"

  # local: what this node has. It may be a little behind, and never goes back.
  n3 eval {PRAGMA quorate_consistency = local}
  set behind 0
  set last 0
  for {set i 101} {$i <= 200} {incr i} {
    n1 eval {INSERT INTO t(v) VALUES($i)}
    set seen [n3 onecolumn {SELECT count(*) FROM t}]
    if {$seen < $last || $seen > $i} { error "went back: $seen after $last" }
    incr behind [expr {[set last $seen] < $i}]
  }
  puts "local: never went back"
  puts stderr "($behind of 100 reads were behind)"

  # local, but after what this program wrote elsewhere.
  for {set i 201} {$i <= 300} {incr i} {
    n1 eval {INSERT INTO t(v) VALUES($i)}
    set index [n1 onecolumn {SELECT quorate_index()}]
    n3 eval {SELECT quorate_wait($index)}
    set seen [n3 onecolumn {SELECT count(*) FROM t}]
    if {$seen != $i} { error "missed its own row: $seen of $i" }
  }
  puts "local after quorate_wait: read its own 100 writes"
} finally {
  foreach name {n1 n2 n3} { catch {$name close} }
  foreach name {n3 n2 n1} { setup eval "SELECT quorate_stop('$top/$name.db')" }
  file delete -force $top
}
