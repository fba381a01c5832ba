# The fixture of the suites: nodes as real processes, driven over pipes.
#
# A process is a stock sqlite3 shell or a tclsh with the sqlite3 package
# (node.tcl), known by a name.  Every process works in the directory of its
# suite, where quorate.so is, so that ".load ./quorate" and "n1/app.db" read
# as in the manual.
#
#   spawn NAME shell|tcl ?argument...?   starts a process
#   spawn NAME program COMMAND ?argument...?    any other
#                              ::preload(NAME): libraries for it;
#                              ::environ(NAME): variables, NAME=VALUE;
#                              ::wrap(NAME): a command that runs it
#   sql NAME STATEMENT ?MS?    its answer, as the shell's list mode gives it;
#                              an error of SQL is an error of Tcl, its code is
#                              in ::code
#   errof NAME STATEMENT ?MS?  the error's text; fails if there is none
#   post NAME STATEMENT, collect NAME ?MS?      the same in two steps
#   tcl NAME SCRIPT ?MS?       runs Tcl in a tcl process; its connection is db
#   kill9 NAME, stop NAME, signal NAME SIGNAL
#   post_waiting NAME STATEMENT      posts it, and waits until it waits inside
#   freeze NAME..., thaw NAME...     SIGSTOP, SIGCONT
#
#   cluster_make N ?-kind K? ?-existing SQL? ?-options LIST?
#                              nodes n1 .. nN, n1 bootstrapped, the others
#                              invited and joined, all of them voters
#   $calm                      options with which a leader keeps its place when
#                              the machine stands still for a second or two
#   node_start NAME            the process, the extension loaded, no file
#   node_open NAME             opens the node's file
#   restart NAME, leader ?MS?, followers, write STATEMENT ?MS?
#   patient NAME STATEMENT     a read, as often as the node has no leader
#   cluster_end                kills everything, removes the nodes' files
#   wait_until CONDITION ?MS?  polls an expr; an error counts as false
#   sha3 FILE, pages FILE      checksum of the content; of every page
#   memory_mark NAME, memory_peak NAME      a process's memory, and its peak
#                              since then, MiB
#   runtime ?LIBRARY?          for env: lets a program that we did not build
#                              load the library, or have LIBRARY preloaded
#   no_leaks                   for env: a program's own leaks are not reported
#   constraint foreign         whether sh and others can have that runtime
#   finish                     the last command of every suite
#
# Every wait has an end; times are for a machine that is busy with other
# things.  PATIENCE=n in the environment makes all of them n times as long.

package require Tcl 8.6
package require tcltest 2.3
namespace import -force tcltest::*

set here [file dirname [file normalize [info script]]]
foreach {variable default} [list \
    QUORATE_LIBRARY [file join [file dirname $here] build quorate.so] \
    QUORATE_PRELOAD "" PATIENCE 1 SQLITE3 sqlite3 SEED 1] {
  set cluster($variable) $default
  if {[info exists env($variable)]} {
    set cluster($variable) $env($variable)
  }
}
if {[info exists env(QUORATE_TEST_DIR)]} {
  set top $env(QUORATE_TEST_DIR)
} else {
  set top [exec mktemp -d]
  file mkdir $top/pids
}
set suite [file rootname [file tail $argv0]]
set dir $top/$suite.[pid]
file mkdir $dir
exec ln -s $cluster(QUORATE_LIBRARY) $dir/quorate.so
cd $dir
# Should whoever runs us be killed, sql-tests/all ends us by this.
close [open $top/pids/[pid] w]
file mkdir $top/ports
# No shell of a test may read its user's .sqliterc.
set env(HOME) $dir
set code ""
set processes {}
set nodes {}

# ---- waiting ---------------------------------------------------------------

# Runs the event loop once, for at most ms.
proc turn {ms} {
  set timer [after $ms {incr ::tick}]
  vwait ::tick
  after cancel $timer
}

# For programs that take a limit of time: timeout, curl.
proc seconds {n} { expr {int(ceil($n * $::cluster(PATIENCE)))} }

proc deadline {ms} {
  expr {[clock milliseconds] + int($ms * $::cluster(PATIENCE))}
}

proc wait_until {condition {ms 20000}} {
  set end [deadline $ms]
  while 1 {
    set why ""
    if {![catch {uplevel 1 [list expr $condition]} result]} {
      if {$result} return
    } else {
      set why ": $result"
    }
    if {[clock milliseconds] >= $end} {
      error "not within $ms ms: $condition$why"
    }
    set next [expr {[clock milliseconds] + 30}]
    while {[set left [expr {$next - [clock milliseconds]}]] > 0} {
      turn $left
    }
  }
}

# ---- processes -------------------------------------------------------------

# proc(NAME,...): kind, chan, pid, in (not yet read), asked (what is being
# waited for), ended.  A shell's answer ends with a line that we have it print.

proc spawn {name kind args} {
  global proc env
  # One that a failed test left behind.
  kill9 $name
  if {$kind eq "shell"} {
    set command [list $::cluster(SQLITE3) -batch {*}$args]
  } elseif {$kind eq "program"} {
    set command $args
  } else {
    set command [list [info nameofexecutable] $::here/node.tcl {*}$args]
  }
  # A program that we built has what it needs in itself.
  set preload [expr {$kind eq "program" ? "" : $::cluster(QUORATE_PRELOAD)}]
  if {[info exists ::preload($name)]} {
    set preload "$::cluster(QUORATE_PRELOAD) $::preload($name)"
  }
  set variables {}
  if {[string trim $preload] ne ""} {
    lappend variables LD_PRELOAD=[string trim $preload]
  }
  if {[info exists ::environ($name)]} {
    lappend variables {*}$::environ($name)
  }
  if {$variables ne ""} {
    set command [list env {*}$variables {*}$command]
  }
  if {[info exists ::wrap($name)]} {
    set command [list {*}$::wrap($name) {*}$command]
  }
  set chan [open "|$command 2>@1" r+]
  fconfigure $chan -blocking 0 -buffering full -translation lf -encoding utf-8
  set proc($name,kind) $kind
  set proc($name,chan) $chan
  set proc($name,pid) [pid $chan]
  set proc($name,in) ""
  set proc($name,asked) ""
  set proc($name,ended) 0
  close [open $::top/pids/[pid $chan] w]
  fileevent $chan readable [list readable $name]
  lappend ::processes $name
}

proc readable {name} {
  global proc
  if {![info exists proc($name,chan)]} return
  append proc($name,in) [read $proc($name,chan)]
  if {[eof $proc($name,chan)]} {
    fileevent $proc($name,chan) readable {}
    set proc($name,ended) 1
  }
  incr ::tick
}

proc alive {name} {
  expr {$name in $::processes && !$::proc($name,ended)}
}

proc post {name statement} {
  global proc
  set proc($name,asked) $statement
  if {$proc($name,kind) eq "tcl"} {
    post_tcl $name [list query $statement]
    return
  }
  set last [string trim [lindex [split [string trim $statement] \n] end]]
  if {[string index $last 0] ne "." && [string index $last end] ne ";"} {
    append statement ";"
  }
  set proc($name,mark) "=end=[incr ::asked]=\n"
  puts -nonewline $proc($name,chan) "$statement\n.print $proc($name,mark)"
  flush $proc($name,chan)
}

proc post_tcl {name script} {
  global proc
  set proc($name,asked) $script
  puts $proc($name,chan) \
    [binary encode base64 [encoding convertto utf-8 $script]]
  flush $proc($name,chan)
}

# Takes a whole answer from what has come in: 1 if there was one.
proc take {name variable} {
  global proc
  upvar 1 $variable answer
  if {$proc($name,kind) eq "tcl"} {
    set pattern {^(.*?)=(ok|error)=([A-Za-z0-9+/=]*)\n(.*)$}
    if {![regexp $pattern $proc($name,in) - noise how text rest]} {
      return 0
    }
    set answer [encoding convertfrom utf-8 [binary decode base64 $text]]
    if {$how eq "error"} {
      set answer "Error: $answer"
    }
  } else {
    set mark $proc($name,mark)
    set at [string first $mark $proc($name,in)]
    if {$at < 0} {
      return 0
    }
    set answer [string range $proc($name,in) 0 $at-1]
    set rest [string range $proc($name,in) $at+[string length $mark] end]
  }
  set proc($name,in) $rest
  set proc($name,asked) ""
  return 1
}

# The answer to what was posted.
proc collect {name {ms 20000}} {
  set answer [collect_raw $name $ms]
  set ::code ""
  set head {(?:^|\n)(?:(?:Runtime |Parse )?[Ee]rror)(?::? near line \d+)?: }
  if {[regexp "${head}(\[^\\n\]*)" $answer - message]} {
    regexp {^(.*) \((\d+)\)$} $message - message ::code
    return -code error $message
  }
  return [string trimright $answer \n]
}

proc collect_raw {name ms} {
  global proc
  set end [deadline $ms]
  while {![take $name answer]} {
    if {$proc($name,ended)} {
      set what "$proc($name,asked)\nit said: $proc($name,in)"
      error "$name ended ([reap $name]) at: $what"
    }
    set left [expr {$end - [clock milliseconds]}]
    if {$left <= 0} {
      error "no answer in $ms ms from $name to:\
             $proc($name,asked)\nso far: $proc($name,in)"
    }
    turn $left
  }
  return $answer
}

proc sql {name statement {ms 20000}} {
  post $name $statement
  collect $name $ms
}

proc errof {name statement {ms 20000}} {
  if {[catch {sql $name $statement $ms} message]} {
    return $message
  }
  error "no error from $name for: $statement\nit said: $message"
}

proc tcl {name script {ms 20000}} {
  post_tcl $name $script
  collect $name $ms
}

proc signal {name which} {
  exec sh -c "kill -$which $::proc($name,pid)"
}

# Forgets a process that has ended, or is about to; says how it ended.
proc reap {name} {
  global proc
  if {$name ni $::processes} return
  set how "in order"
  fconfigure $proc($name,chan) -blocking 1
  catch {close $proc($name,chan)} how
  file delete $::top/pids/$proc($name,pid)
  array unset proc $name,*
  set at [lsearch -exact $::processes $name]
  set ::processes [lreplace $::processes $at $at]
  return $how
}

# A name without a process is skipped.
proc kill9 {args} {
  # All of them first: "at once" is meant.
  foreach name $args {
    catch {signal $name KILL}
  }
  foreach name $args {
    reap $name
  }
}

# Lets a process end by itself, as a user's would at the end of its input.
proc stop {name {ms 20000}} {
  global proc
  chan close $proc($name,chan) write
  set end [deadline $ms]
  while {!$proc($name,ended)} {
    set left [expr {$end - [clock milliseconds]}]
    if {$left <= 0} {
      kill9 $name
      error "$name did not end in $ms ms"
    }
    turn $left
  }
  set said $proc($name,in)
  reap $name
  return $said
}

# On a busy machine not all threads of a process stand still at once.
proc freeze {args} {
  foreach name $args {
    signal $name STOP
    set ::paused($name) 1
  }
  foreach name $args {
    wait_until {[string trim [join [threads_of $name]] "TtZ "] eq ""}
  }
}

proc thaw {args} {
  foreach name $args {
    catch {signal $name CONT}
    unset -nocomplain ::paused($name)
  }
}

# The state of each thread.
proc threads_of {name} {
  set states {}
  foreach stat [glob -nocomplain /proc/$::proc($name,pid)/task/*/stat] {
    catch {
      set chan [open $stat]
      regexp {\) (\S)} [read $chan] - state
      close $chan
      lappend states $state
    }
  }
  return $states
}

# What the main thread sleeps in; not that in which it reads its next line means
# that it waits inside.
proc sleeps_in {name} {
  set chan [open /proc/$::proc($name,pid)/syscall]
  set said [gets $chan]
  close $chan
  return [lindex $said 0]
}

proc post_waiting {name statement} {
  wait_until {[set idle [sleeps_in $name]] ne "running"}
  post $name $statement
  wait_until {[sleeps_in $name] ni "$idle running"}
}

# ---- stock SQLite ----------------------------------------------------------

# One statement on a file in a shell without the extension.
proc stock {file args} {
  exec $::cluster(SQLITE3) -batch $file {*}$args </dev/null 2>@1
}

# The same, expecting an error: its first line.
proc stock_error {file args} {
  if {![catch {stock $file {*}$args} said]} {
    error "no error for: $args\nit said: $said"
  }
  set head {(?:(?:Runtime |Parse )?[Ee]rror)(?:: near line \d+| near line \d+)?}
  regexp "${head}(?:: in prepare|: stepping)?\[:,\] (\[^\\n\]*)" $said - said
  regsub { \(\d+\)$} $said "" said
  return $said
}

proc sha3 {file} {
  stock $file .sha3sum
}

# The backup API copies page by page and gives page 1 the same treatment on
# every node, so equal sums are equal pages.
proc pages {file} {
  set copy $::dir/pages-of-[string map {/ -} $file]
  file delete $copy
  stock $file ".timeout 5000" ".backup main '$copy'"
  set sum [lindex [exec sha1sum $copy] 0]
  file delete $copy
  return $sum
}

# ---- nodes -----------------------------------------------------------------

# Below the range from which the kernel takes the local ports of outgoing
# connections, one of which could otherwise take the port of a node that is
# down.  Nobody else of this run has it either: what listens there may do so
# later, or be down, while another suite looks for a port.
proc free_port {} {
  while 1 {
    set port [expr {12000 + int(rand() * 18000)}]
    if {[catch {open $::top/ports/$port {WRONLY CREAT EXCL}} claim]} {
      if {[lindex $::errorCode 1] ne "EEXIST"} { error $claim }
      continue
    }
    close $claim
    if {![catch {socket -server {apply {args {}}} -myaddr 127.0.0.1 $port} s]} {
      close $s
      return $port
    }
  }
}
expr {srand([pid])}

# A node that does not exist yet: a directory, a name for its file, a port.
proc node_new {name {kind shell}} {
  global node
  set node($name,kind) $kind
  set node($name,file) $name/app.db
  set node($name,listen) 127.0.0.1:[free_port]
  file mkdir $::dir/$name
  lappend ::nodes $name
}

proc node_start {name} {
  spawn $name $::node($name,kind)
  if {$::node($name,kind) eq "tcl"} {
    tcl $name {load_quorate ./quorate}
  } else {
    sql $name ".load ./quorate"
  }
}

proc node_open {name {ms 20000}} {
  set file $::node($name,file)
  if {$::node($name,kind) eq "tcl"} {
    tcl $name "sqlite3 db $file" $ms
  } else {
    sql $name ".open $file" $ms
  }
}

proc restart {name} {
  node_start $name
  node_open $name
}

set calm [list election_timeout_ms [expr {int(3000 * $cluster(PATIENCE))}]]

proc bootstrap {name args} {
  set options [list name $name listen $::node($name,listen) {*}$args]
  if {$::cluster(PATIENCE) > 1 && "election_timeout_ms" ni $args} {
    # A machine that needs patience would also lose leaders all the time.
    lappend options election_timeout_ms [expr {500 * $::cluster(PATIENCE)}]
  }
  sql $name "SELECT quorate_bootstrap('$::node($name,file)',\
             '[join $options "', '"]')"
}

proc invite {by name} {
  sql $by "SELECT quorate_invite('$name')"
}

proc join_cluster {name token args} {
  set options [list listen $::node($name,listen) {*}$args]
  sql $name "SELECT quorate_join('$::node($name,file)', '$token',\
             '[join $options "', '"]')" 60000
}

proc voters {name} {
  sql $name "SELECT count(*) FROM quorate_members WHERE role = 'voter'"
}

# Who joins while the leader loses its place, as one on a busy machine may, is
# told to try again, and does.
proc join_first {name options} {
  set end [deadline 60000]
  while 1 {
    set term [sql n1 {SELECT quorate_term()}]
    if {![catch {join_cluster $name [invite n1 $name] {*}$options} why]} return
    if {[catch {leader}] || [sql n1 {SELECT quorate_term()}] == $term
        || [clock milliseconds] > $end} {
      error "$why\nn1 tells: [sql n1 {SELECT event FROM quorate_events}]"
    }
  }
}

proc cluster_make {n args} {
  set options {}
  set joining {}
  set kind shell
  foreach {option value} $args {
    switch -- $option {
      -kind { set kind $value }
      -existing { set existing $value }
      -options { set options $value }
      -joining { set joining $value }
      default { error "cluster_make: $option?" }
    }
  }
  for {set i 1} {$i <= $n} {incr i} {
    node_new n$i $kind
    node_start n$i
  }
  if {[info exists existing]} {
    stock n1/app.db $existing
  }
  bootstrap n1 {*}$options
  node_open n1
  for {set i 2} {$i <= $n} {incr i} {
    join_first n$i $joining
    node_open n$i
  }
  wait_until {[voters n1] == $n}
}

proc cluster_end {} {
  kill9 {*}$::processes
  foreach name $::nodes {
    file delete -force $::dir/$name
  }
  set ::nodes {}
  array unset ::node
  array unset ::preload
  array unset ::environ
  array unset ::wrap
  array unset ::paused
}

# Of the nodes that run and answer, the leader of the newest term; waits for
# one.
proc leader {{ms 20000}} {
  set found ""
  wait_until {[set found [leader_now]] ne ""} $ms
  return $found
}

proc leader_now {} {
  set newest 0
  set found ""
  foreach name $::nodes {
    if {![alive $name] || [info exists ::paused($name)]} continue
    if {[catch {sql $name "SELECT quorate_role(), quorate_term()"} said]} {
      continue
    }
    lassign [split $said |] role term
    if {$role eq "leader" && $term > $newest} {
      set newest $term
      set found $name
    }
  }
  return $found
}

proc followers {} {
  set leader [leader]
  lmap name $::nodes {
    if {$name eq $leader || ![alive $name]} continue
    set name
  }
}

# Writes on the leader, whoever that is.  Busy means that nothing was written:
# on a machine that is slow enough a leader may lose its place in between.
proc write {statement {ms 20000}} {
  set end [deadline $ms]
  while {[catch {sql [leader] $statement $ms} said]} {
    if {$said ne "database is locked" || [clock milliseconds] > $end} {
      return -code error $said
    }
  }
  return $said
}

# Reads on a node whatever is committed; it may not know a leader yet.
proc patient {name statement} {
  set end [deadline 60000]
  while {[catch {sql $name $statement 60000} said]} {
    if {$said ne "database is locked" || [clock milliseconds] > $end} {
      error "$name: $said"
    }
  }
  return $said
}

# Asks every node that runs for something that it must read up to date, so
# that it has applied everything written before.
proc settle {} {
  foreach name $::nodes {
    if {[alive $name]} {
      patient $name "SELECT count(*) FROM sqlite_schema"
    }
  }
}

# "same", or what differs: every page on every node that runs.
proc compare_nodes {} {
  settle
  set sums [dict create]
  foreach name $::nodes {
    if {[alive $name]} {
      dict lappend sums [pages $::node($name,file)] $name
    }
  }
  if {[dict size $sums] == 1} {
    return same
  }
  return "differ: [dict values $sums]"
}

# Present memory of a node's process, MiB, from which its peak counts anew; and
# that peak.
proc memory_mark {name} {
  set f [open /proc/$::proc($name,pid)/clear_refs w]
  puts $f 5
  close $f
  return [memory_of $name VmRSS]
}

proc memory_peak {name} { memory_of $name VmHWM }

proc memory_of {name field} {
  set f [open /proc/$::proc($name,pid)/status]
  set text [read $f]
  close $f
  regexp "$field:\\s+(\\d+)" $text - kib
  return [expr {$kib / 1024}]
}

# A library with a sanitizer in it wants that one's runtime to be the first
# library of a process: a variable for env, if there is anything to preload.
proc runtime {args} {
  set libraries [string trim "$::cluster(QUORATE_PRELOAD) $args"]
  return [expr {$libraries eq "" ? {} : [list LD_PRELOAD=$libraries]}]
}

# It is handed on to whatever is started, and TSan's is no good there: Debian's
# sh crashes with it.
testConstraint foreign [expr {![catch {exec env {*}[runtime] sh -c true}]}]

# What a program itself does not free is no leak of ours: a variable for env.
proc no_leaks {} {
  set given [expr {[info exists ::env(ASAN_OPTIONS)]
                   ? "$::env(ASAN_OPTIONS):" : ""}]
  return "ASAN_OPTIONS=${given}detect_leaks=0"
}

# ---- the end ---------------------------------------------------------------

proc finish {} {
  kill9 {*}$::processes
  cd $::top
  if {![info exists ::env(KEEP)]} {
    file delete -force $::dir
    if {![info exists ::env(QUORATE_TEST_DIR)]} {
      file delete -force $::top
    }
  }
  cleanupTests
}
