# Several processes at one node, for suites that have them.
#
#   attach NAME NODE ?KIND?    a process that opens a node's file; whoever was
#                              first is the host
#   attach_file NAME FILE KIND the same of any file
#   on NAME HANDLE STATEMENT, post_on NAME HANDLE STATEMENT
#                              on one connection of a tcl process
#   code_of NAME HANDLE STATEMENT     its error with all it can tell; ok
#   second NAME FILE HANDLE    one more connection of a tcl process
#   ms SCRIPT                  how long it takes
#   insist NAME STATEMENT ?MS? until it is done: what failed with BUSY or an I/O
#                              error was not written
#   hosts NODE                 the name of the process that hosts it; "": none
#   fill FROM N BYTES          SQL: rows into t, the same wherever it runs
#
# SQLite's numbers, as code_of gives them, have names in ::rc.

array set rc {
  busy 5 interrupt 9 snapshot 517 timeout 773 rejected 7690 unknown 7946
}
exec cc -D_GNU_SOURCE -O1 -shared -fPIC -pthread -o load.so $here/load.c

proc attach_file {name file {kind shell}} {
  spawn $name $kind
  if {$kind eq "tcl"} {
    tcl $name {load_quorate ./quorate}
    tcl $name [list sqlite3 db $file]
    extended $name db
  } else {
    sql $name ".load ./quorate"
    sql $name ".open \"[string map {\\ \\\\ \" \\\"} $file]\""
  }
}

proc attach {name node {kind shell}} {
  attach_file $name $::node($node,file) $kind
}

proc on {name handle statement {ms 20000}} {
  tcl $name [list query $statement $handle] $ms
}

proc post_on {name handle statement} {
  post_tcl $name [list query $statement $handle]
}

proc extended {name handle} {
  tcl $name "$handle enable_load_extension 1"
  on $name $handle {SELECT load_extension('./load')}
  on $name $handle {SELECT extended_codes(1)}
}

proc second {name file handle} {
  tcl $name [list sqlite3 $handle $file]
  extended $name $handle
}

proc code_of {name handle statement {ms 20000}} {
  tcl $name "if {\[catch {query {$statement} $handle}\]} {$handle errorcode}\
             else {set {} ok}" $ms
}

proc ms {script} {
  set start [clock milliseconds]
  uplevel 1 $script
  expr {[clock milliseconds] - $start}
}

proc insist {name statement {ms 60000}} {
  set end [deadline $ms]
  while {[catch {sql $name $statement $ms} said]} {
    if {$said ni {{database is locked} {disk I/O error}} ||
        [clock milliseconds] > $end} {
      error "$name: $said"
    }
    catch {sql $name ROLLBACK}
    turn 5
  }
  return $said
}

# Which of our processes hosts a node: who has its lock, as the kernel tells.
proc hosts {node} {
  set inode [file stat $::dir/$::node($node,file)-quorate/lock st; set st(ino)]
  set chan [open /proc/locks]
  set text [read $chan]
  close $chan
  foreach line [split $text \n] {
    if {[regexp "FLOCK +ADVISORY +WRITE (\\d+) \[0-9a-f:\]+:$inode " \
           $line - pid]} {
      foreach name $::processes {
        if {$::proc($name,pid) == $pid} {
          return $name
        }
      }
      return $pid
    }
  }
  return ""
}

# R, S, Z and so on; "": it is no more.
proc state_of {name} {
  if {[catch {open /proc/$::proc($name,pid)/stat} chan]} {
    return ""
  }
  regexp {\) (\S)} [read $chan] - state
  close $chan
  return $state
}

proc same {list} {
  expr {[llength [lsort -unique $list]] == 1 ? "same" : $list}
}

# ---- data ------------------------------------------------------------------

proc fill {from n bytes} {
  return "WITH RECURSIVE c(i) AS (SELECT $from UNION ALL SELECT i + 1 FROM c
                                  WHERE i < $from + $n - 1)
          INSERT INTO t(id, v) SELECT i, substr(
            replace(hex(zeroblob($bytes / 12 + 1)), '00', printf('%012d', i)),
            1, $bytes) FROM c"
}
