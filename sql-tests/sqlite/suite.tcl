# Runs SQLite's own test scripts, each in a process of its own, and holds what
# fails against a list of what must.
#
#   tclsh suite.tcl FIXTURE SOURCE LIST DIRECTORY ?pattern?...
#
# FIXTURE is the testfixture, SOURCE the folder with SQLite's source, LIST
# what is expected to fail (its head says how it is written), DIRECTORY where
# to run. The test files are those of the permutation "veryquick", or of these
# those that match a pattern.
#
# JOBS=n: that many at a time (2). LIMIT=s: longest time of a file (600 s).
# RESULTS=file: a line for each failing case, to make a list of. LIVE=1: each
# file when it is done.

proc setting {name default} {
  return [expr {[info exists ::env($name)] ? $::env($name) : $default}]
}

set patterns [lassign $argv fixture source known directory]
set jobs [setting JOBS 2]
set limit [setting LIMIT 600]
array set total {files 0 passed 0 listed 0 cases 0 failing 0 left 0}
set wrong {}
set queue {}
set running 0
set here [file dirname [file normalize [info script]]]

# ---- the list ----------------------------------------------------------------

# reason(code): what it means; expected(file): {code pattern may-pass} ...
proc read_list {path} {
  set channel [open $path]
  set n 0
  while {[gets $channel line] >= 0} {
    incr n
    if {[string match #* $line] || [string trim $line] eq ""} continue
    if {[regexp {^= (\S+)\s+(\S.*)$} $line -> code text]} {
      append ::reason($code) [expr {[info exists ::reason($code)] ? " " : ""}] \
          $text
    } elseif {[regexp {^(\S+\.test)\s+(\S+)\s+(\S.*)$} $line -> file code cases]
              && [info exists ::reason($code)]} {
      foreach case $cases {
        lappend ::expected($file) [list $code [string trimleft $case ~] \
                                       [string match ~* $case]]
      }
    } else {
      puts stderr "$path:$n: neither a reason nor a test file"
      exit 2
    }
  }
  close $channel
}

# ---- one file ----------------------------------------------------------------

proc veryquick {} {
  set script [file join $::directory list.tcl]
  set channel [open $script w]
  puts $channel {
    foreach {source directory} $argv break
    cd $directory
    set argv {}
    set argv0 $source/test/list.test
    source $source/test/permutations.test
    array set spec $::testspec(veryquick)
    foreach f $spec(-files) { puts "file [file tail $f]" }
    exit 0
  }
  close $channel
  set files {}
  set told [exec env -u QUORATE_LIBRARY $::fixture $script $::source \
                $::directory 2>@stderr]
  foreach {line name} [regexp -all -inline -line {^file (\S+)$} $told] {
    lappend files $name
  }
  return [lsort -unique $files]
}

proc is_left_out {file} {
  set cases {}
  if {[info exists ::expected($file)]} {
    set cases [lmap entry $::expected($file) { lindex $entry 1 }]
  }
  return [expr {"hang" in $cases}]
}

# What is tested are nodes: before anything else it is seen whether they are
# made.
proc check_nodes {} {
  set script [file join $::directory check.tcl]
  set channel [open $script w]
  puts $channel {
    cd [lindex $argv 0]
    sqlite3 db check.db
    db eval {PRAGMA page_size = 512; CREATE TABLE t(v); INSERT INTO t VALUES(7)}
    puts [db eval {SELECT quorate_role(), v FROM t}]
    puts [db eval {PRAGMA journal_mode; PRAGMA page_size}]
    db close
    exit 0
  }
  close $channel
  set told [exec $::fixture $script $::directory 2>@1]
  if {$told ne "leader 7\nwal 512"} {
    puts "a new database is no node: $told"
    exit 1
  }
}

proc start {file} {
  set place [file join $::directory [file rootname $file]]
  file mkdir $place
  set command [list sh -c {
    cd "$1" && ulimit -c 0 && shift && exec "$@"
  } sh $place]
  if {$::tcl_platform(user) eq "root"} {
    # To root nothing is read-only, which some scripts count on.
    file attributes $place -owner nobody
    lappend command setpriv --reuid nobody --regid nogroup --clear-groups
  }
  lappend command timeout -k 5 $::limit $::fixture \
      [file join $::source test permutations.test] veryquick $file
  set channel [open |[concat $command [list </dev/null 2>@1]] r]
  fconfigure $channel -blocking 0 -encoding iso8859-1 -translation lf
  set ::output($channel) ""
  set ::since($channel) [clock milliseconds]
  fileevent $channel readable [list collect $channel $file $place]
  incr ::running
}

proc collect {channel file place} {
  append ::output($channel) [read $channel]
  if {![eof $channel]} return
  fconfigure $channel -blocking 1
  set status 0
  set how ""
  if {[catch {close $channel} said options]} {
    lassign [dict get $options -errorcode] kind pid how
    if {$kind eq "CHILDSTATUS"} { set status $how }
    if {$kind eq "CHILDKILLED"} { set status $how }
  }
  judge $file $::output($channel) $status \
      [expr {[clock milliseconds] - $::since($channel)}]
  if {[setting KEEP ""] eq ""} { file delete -force $place }
  unset ::output($channel) ::since($channel)
  incr ::running -1
  next
}

# Cases that failed, each with one line of why. "abort": the script ended with
# an error of its own, before its end.
proc failures {output} {
  set failed {}
  foreach line [split $output \n] {
    if {[regexp {^! (\S+) (?:expected|got): } $line -> name] ||
        [regexp {^! (\S+)} $line -> name]} {
      if {![dict exists $failed $name]} { dict set failed $name $line }
      if {[regexp {^! \S+ got: } $line]} {
        dict append failed $name "  $line"
      }
    } elseif {[regexp {^Error: (.*)$} $line -> why] ||
              [regexp {/testfixture: (.*)$} $line -> why]} {
      dict set failed abort $why
    }
  }
  return $failed
}

proc judge {file output status ms} {
  global total
  incr total(files)
  set failed [failures $output]
  set errors -1
  set cases 0
  regexp {(\d+) errors out of (\d+) tests} $output -> errors cases
  incr total(cases) $cases
  if {$status in {124 137}} {
    dict set failed hang "after $::limit s: [last_lines $output 2]"
  } elseif {$errors < 0 || ($status ne "0" && $errors == 0)} {
    if {[string is integer $status] && $status < 128} {
      if {![dict exists $failed abort]} {
        dict set failed abort [last_lines $output 3]
      }
    } else {
      dict set failed crash "$status: [last_lines $output 2]"
    }
  }
  record $file $failed $cases $ms
  compare $file $failed
}

proc last_lines {text n} {
  return [join [lrange [split [string trim $text] \n] end-[expr {$n - 1}] end] \
              " | "]
}

proc complain {file what} {
  lappend ::wrong $file
  puts "$file: $what"
}

proc record {file failed cases ms} {
  if {[set path [setting RESULTS ""]] ne ""} {
    set channel [open $path a]
    puts $channel "$file\t$cases\t$ms\t[dict size $failed]"
    dict for {name why} $failed { puts $channel "$file\t$name\t$why" }
    close $channel
  }
  if {[setting LIVE ""] ne ""} {
    puts "$file: $cases cases, [dict size $failed] failed, $ms ms"
    flush stdout
  }
}

# What fails must be on the list, and what is on the list must fail.
proc compare {file failed} {
  global total
  set entries [expr {[info exists ::expected($file)] ? $::expected($file) : {}}]
  set used {}
  dict for {name why} $failed {
    set found {}
    foreach entry $entries {
      if {[string match [lindex $entry 1] $name]} { lappend found $entry }
    }
    if {$found eq {}} {
      complain $file "$name failed: [string range $why 0 400]"
    } else {
      incr total(failing)
      incr ::by_reason([lindex $found 0 0])
      lappend used {*}$found
    }
  }
  foreach entry $entries {
    if {$entry ni $used && ![lindex $entry 2]} {
      complain $file "[lindex $entry 1] is on the list, and passed"
    }
  }
  incr total([expr {$entries eq {} ? "passed" : "listed"}])
}

# ---- all of them -------------------------------------------------------------

proc next {} {
  while {$::running < $::jobs && [llength $::queue] > 0} {
    set ::queue [lassign $::queue file]
    if {[is_left_out $file]} {
      incr ::total(left)
    } else {
      start $file
    }
  }
  if {$::running == 0} { set ::done 1 }
}

read_list $known
check_nodes
foreach file [veryquick] {
  set take [expr {$patterns eq {}}]
  foreach pattern $patterns {
    if {[string match $pattern $file]} { set take 1 }
  }
  if {$take} { lappend queue $file }
}
if {$patterns eq {}} {
  foreach file [array names expected] {
    if {$file ni $queue} {
      complain $file "is on the list, and not a test file"
    }
  }
}
set began [clock seconds]
next
if {$running > 0} { vwait done }
puts "$total(files) test files, $total(cases) cases in\
      [expr {[clock seconds] - $began}] s: $total(passed) files are not on the\
      list, $total(listed) are, with $total(failing) cases that fail"
foreach code [lsort [array names by_reason]] {
  puts [format "  %5d  %-10s %s" $by_reason($code) $code $reason($code)]
}
set wrong [lsort -unique $wrong]
puts "$total(left) are left out"
# In words that ../runner.tcl knows, too.
puts "\[  PASSED  \] [expr {$total(files) - [llength $wrong]}] test(s)."
if {$wrong ne {}} { puts "\[  FAILED  \] [llength $wrong] test(s)." }
exit [expr {$wrong ne {} || $total(files) == 0}]
