# Load on the nodes of a cluster (load.c), and what must be true of it.
#
#   load_schema                the tables; with load_forget, what was before is
#                              forgotten, for a new cluster
#   load_begin NAME THREADS KINDS ?PAUSE_US? ?NODE?
#                              clients in a process of a node, by default of the
#                              same name
#   load_listen                takes in what they were told so far
#   load_done N                waits until N more operations are done
#   load_end                   stops the clients of all processes that run
#   load_lost NAME             the process was killed
#   load_mark NS NAME          from now on ::mark(ends) has when rows were
#                              acknowledged, ns, that were begun after NS in a
#                              process other than NAME
#   load_account NODES         holds the ledger on each node against what
#                              clients were told: "" or what is wrong
#   load_missing NODES         the same while clients go on: what is lost
#   load_overtaken             whether counts have waited in order
#   load_verify                the same of pages: they agree and are sound
#   pause NAME..., resume NAME...     SIGSTOP, SIGCONT
#   load_linear                the same of registers, lists and the counter: the
#                              checker's report
#
# Operations without an answer or whose fate was unknown may be there or not; it
# is the same on all nodes, and never changes again.

set load(incarnation) 0
exec cc -D_GNU_SOURCE -O1 -shared -fPIC -pthread -o load.so $here/load.c
exec cc -D_GNU_SOURCE -O2 -o linear $here/linear.c
file mkdir load

# Nodes that stand still: nobody asks them who leads.
proc pause {args} {
  foreach name $args {
    signal $name STOP
    set ::paused($name) 1
  }
}

proc resume {args} {
  foreach name $args {
    signal $name CONT
    unset -nocomplain ::paused($name)
  }
}

# What clients were told of rows that they wrote: fate(NUMBER), t, a, f or u.
# How many of all operations ended how, and how many of each kind were done; how
# long counts took that were done, or denied, ms, and from when to when, ns.
# load_anew forgets how many and how long.
proc load_anew {} {
  foreach what {t a f u} {
    set ::told($what) 0
  }
  array unset ::done
  set ::took {}
  set ::denied {}
  set ::spans {}
  set ::wrong {}
}

proc load_forget {} {
  array unset ::fate
  array unset ::settled
  array unset ::logs
  array unset ::since
  array unset ::kind
  array unset ::answer
  set ::lost_at {}
  load_anew
  foreach file [glob -nocomplain load/*] {
    file delete $file
  }
}

proc load_schema {} {
  load_forget
  write {CREATE TABLE counter(n INT);
         INSERT INTO counter VALUES(0);
         CREATE TABLE ledger(id INTEGER PRIMARY KEY, n INT UNIQUE);
         CREATE TRIGGER counts AFTER INSERT ON ledger BEGIN
           UPDATE counter SET n = new.n; END;
         CREATE TABLE pad(v BLOB);
         INSERT INTO pad VALUES(NULL);
         CREATE TABLE account(id INTEGER PRIMARY KEY, v INT);
         CREATE TABLE register(k INTEGER PRIMARY KEY, v INT);
         WITH RECURSIVE c(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM c
                                 WHERE i < 19)
           INSERT INTO account SELECT i, 1000 FROM c;
         INSERT INTO register VALUES(0, 0), (1, 0), (2, 0), (3, 0);
         CREATE TABLE list(k INTEGER PRIMARY KEY, v TEXT);
         CREATE TABLE bag(n INTEGER PRIMARY KEY);
         CREATE TABLE total(n INT);
         INSERT INTO total VALUES(0);
         CREATE TABLE parent(id INTEGER PRIMARY KEY, children INT);
         CREATE TABLE child(id INTEGER PRIMARY KEY, parent INT NOT NULL
           REFERENCES parent(id) ON DELETE CASCADE);
         CREATE INDEX child_parent ON child(parent);
         CREATE TRIGGER born AFTER INSERT ON child BEGIN
           UPDATE total SET n = n + 1; END;
         CREATE TRIGGER gone AFTER DELETE ON child BEGIN
           UPDATE total SET n = n - 1; END;
         CREATE TABLE shape(n INTEGER PRIMARY KEY)}
}

proc load_begin {name threads kinds {pause 500} {node ""}} {
  global load logs
  if {$node eq ""} {
    set node $name
  }
  # One that joined anew is another node than it was.
  set label $node
  if {[info exists ::node($node,label)]} {
    set label $::node($node,label)
  }
  set file load/$label.[incr load(incarnation)]
  close [open $file w]
  set logs($name) [open $file]
  fconfigure $logs($name) -translation binary
  set logs($name,part) ""
  if {[catch {sql $name {SELECT load_stop()}}]} {
    sql $name {SELECT load_extension('./load')}
  }
  sql $name "SELECT load_start('$::node($node,file)', '$file',\
             [expr {$load(incarnation) * 100000000}], $threads, '$kinds',\
             $pause)"
}

# A torn last line is that of no call that ended.
proc load_take {name} {
  global logs fate told took denied kind since
  set text $logs($name,part)[read $logs($name)]
  set end [string last \n $text]
  set logs($name,part) [string range $text $end+1 end]
  foreach line [split [string range $text 0 $end-1] \n] {
    lassign [split $line " "] what number time letter
    if {$what eq "i"} {
      incr told(t)
      set kind($number) $letter
      if {$letter in {c l s}} {
        set fate($number) t
        set since($number) $time
      }
      continue
    }
    if {$letter eq "e"} {
      # Not an error: a wait would take it for "not yet".
      lappend ::wrong "a client on $name was told: $line"
      set letter u
    }
    incr told(t) -1
    incr told($letter)
    if {$letter eq "a"} {
      incr ::done($kind($number))
    }
    if {$kind($number) in {c l s}} {
      set fate($number) $letter
      set ms [expr {($time - $since($number)) / 1e6}]
      if {$letter in {a f}} {
        lappend ::spans [list $since($number) $time]
      }
      switch $letter {
        a {
          lappend took $ms
          set ::answer($number) \
            [list $name $kind($number) $since($number) $time]
          load_marked $name $since($number) $time
        }
        f { lappend denied $ms }
      }
      unset since($number)
    }
    unset kind($number)
  }
}

proc load_mark {ns name} {
  set ::mark(after) $ns
  set ::mark(but) $name
  set ::mark(ends) {}
}

proc load_marked {name began ended} {
  global mark
  if {$mark(after) ne "" && $began > $mark(after) && $name ne $mark(but)} {
    lappend mark(ends) $ended
  }
}
load_mark "" ""

# How many counts, at most, were begun after one of the ten longest and ended
# before it: whoever waits in order is overtaken by few, on any machine.
proc load_overtaken {} {
  set longest [lrange [lsort -integer -decreasing -index 0 [lmap span $::spans {
    lassign $span began ended
    list [expr {$ended - $began}] $began $ended
  }]] 0 9]
  set most 0
  foreach span $longest {
    lassign $span - first last
    set n 0
    foreach other $::spans {
      lassign $other began ended
      incr n [expr {$began > $first && $ended < $last}]
    }
    set most [expr {max($most, $n)}]
  }
  return $most
}

# Processes that have clients.
proc load_names {} {
  lsearch -all -inline -not -glob [array names ::logs] *,part
}

proc load_listen {} {
  foreach name [load_names] {
    load_take $name
  }
}

proc load_done {n {ms 60000}} {
  load_listen
  set enough [expr {$::told(a) + $n}]
  wait_until {[load_listen] eq "" && $::told(a) >= $enough} $ms
}

proc load_lost {name} {
  if {[info exists ::logs($name)]} {
    load_take $name
    close $::logs($name)
    unset ::logs($name) ::logs($name,part)
  }
}

proc load_end {} {
  set names [lmap name [load_names] {
    if {![alive $name]} continue
    set name
  }]
  foreach name $names {
    post $name {SELECT load_stop()}
  }
  # One may be waiting for the fate of its transaction.
  foreach name $names {
    collect $name 90000
  }
  foreach name [load_names] {
    load_lost $name
  }
}

# What the clients' logs say of an operation.
proc load_log {number} {
  catch {exec grep " $number " {*}[glob load/*]} said
  return [join [split $said \n] {; }]
}

proc load_account {names} {
  if {$::wrong ne ""} {
    return "[llength $::wrong] odd answers: [lindex $::wrong 0]"
  }
  foreach name $names {
    set said [patient $name {SELECT count(*), ifnull(min(n), 1),
      ifnull(max(n), 0), (SELECT n FROM counter),
      (SELECT sum(v) FROM account), (SELECT n FROM total),
      (SELECT count(*) FROM child), (SELECT group_concat(n) FROM shape),
      (SELECT group_concat(n) FROM (SELECT substr(name, 7) AS n
       FROM sqlite_schema WHERE name GLOB 'shape_[0-9]*'
       ORDER BY CAST(n AS INT))) FROM ledger}]
    lassign [split $said |] rows first last counter money total children \
      shapes tables
    if {$first != 1 || $last != $rows || $counter != $rows ||
        $money != 20000 || $total != $children || $shapes ne $tables} {
      return "$name: $rows rows, numbered $first to $last, counter $counter,\
              money $money, $children children of $total,\
              tables $tables of $shapes"
    }
    if {[set said [patient $name {PRAGMA foreign_key_check}]] ne ""} {
      return "$name: foreign_key_check: $said"
    }
    set ids [patient $name {SELECT id FROM ledger ORDER BY n}]
    append ids " " [patient $name {SELECT n FROM bag ORDER BY n}]
    if {[info exists all] && $all ne $ids} {
      return "$name has other rows than [lindex $names 0]"
    }
    set all $ids
  }
  array set there [concat {*}[lmap id $all {list $id 1}]]
  set lost {}
  foreach {id what} [array get ::fate] {
    set is [info exists there($id)]
    if {$what eq "a" && !$is} {
      lappend lost $id
      continue
    }
    if {$what eq "f" && $is} {
      return "$id is there: its client was told that it is not\
              ([load_log $id])"
    }
    if {$what in {t u}} {
      if {[info exists ::settled($id)] && $::settled($id) != $is} {
        return "$id was settled otherwise before"
      }
      set ::settled($id) $is
    }
  }
  foreach id $all {
    if {![info exists ::fate($id)]} {
      return "$id is there: nobody wrote it"
    }
  }
  return [load_lost_rows $lost]
}

# Which rows, and for each of them in which process, by which kind of operation
# and when its client was told; ::lost_at: when that was, ns.
proc load_lost_rows {lost} {
  set ::lost_at {}
  if {$lost eq ""} {
    return ""
  }
  set said "[llength $lost] are lost whose clients were told that they are\
            committed:"
  foreach id [lrange [lsort $lost] 0 19] {
    lassign $::answer($id) process kind began ended
    lappend ::lost_at $ended
    append said [format "\n%s: %s %s, begun %.3f, told %.3f" $id $process \
      $kind [expr {$began / 1e9}] [expr {$ended / 1e9}]]
  }
  return $said
}

# What was acknowledged before must be in what is read after that.
proc load_missing {names} {
  load_listen
  set told [array names ::answer]
  foreach name $names {
    array unset there
    foreach id [patient $name {SELECT id FROM ledger UNION ALL
                               SELECT n FROM bag}] {
      set there($id) 1
    }
    set lost [lmap id $told {
      if {[info exists there($id)]} continue
      set id
    }]
    if {$lost ne ""} {
      return "$name: [load_lost_rows $lost]"
    }
  }
  return ""
}

proc load_linear {} {
  catch {exec ./linear {*}[lsort [glob load/*.*]] 2>@1} said
  return $said
}

# All nodes have the same pages, and integrity_check finds nothing; they may
# first have to find each other.
proc load_verify {} {
  set end [deadline 60000]
  set n [llength $::nodes]
  while {[catch {sql [leader] {SELECT quorate_verify()} 60000} said] ||
         ![string match "$n of $n nodes agree:*" $said]} {
    if {[string match "* differs: *" $said] || [clock milliseconds] > $end} {
      return "quorate_verify: $said"
    }
    turn 100
  }
  foreach name $::nodes {
    if {[set said [patient $name {PRAGMA integrity_check}]] ne "ok"} {
      return "$name: integrity_check: $said"
    }
  }
  return ""
}
