# Runs test programs, a few at a time, and adds up what they say.
#
#   tclsh runner.tcl [program | suite.test]...
#
# A *.test file is run by tclsh and ends with tcltest's summary; any other is
# a cmocka program.  The output of each is printed when it ends, so that those
# of two never mix.  A program that gives no summary, or does not end in its
# time, counts as one failure.  What failed is said again at the end, where it
# is found in a long output; the last line is "N passed, N failed".
#
# Sanitizers (QUORATE_PRELOAD, see Makefile) report to files: a process may end
# where no test looks at what it printed.  Each report is a failure.  Only gcc's
# UBSan has no files: it ends the process, which a test has to notice.
#
# SUITE_SECONDS=n: the time of each (600).  LIVE=1 prints what a program says at
# once, for one that runs long and alone.

set here [file dirname [file normalize [info script]]]
set jobs [expr {[info exists env(JOBS)] ? $env(JOBS) : 2}]
set limit_ms [expr {[info exists env(SUITE_SECONDS)]
                    ? $env(SUITE_SECONDS) * 1000 : 600000}]
set live [expr {[info exists env(LIVE)] && $env(LIVE)}]
set queue $argv
set running 0
set passed 0
set failed 0
set bad {}
set reports ""
if {[info exists env(QUORATE_PRELOAD)] && $env(QUORATE_PRELOAD) ne ""} {
  set reports [file join $env(QUORATE_TEST_DIR) reports]
}
set sanitizers {ASAN_OPTIONS TSAN_OPTIONS}
foreach variable $sanitizers {
  set given($variable) [expr {[info exists env($variable)]
                              ? ":$env($variable)" : ""}]
}

# passed and failed cases according to a program's output, or an empty list.
proc counts {output} {
  if {[regexp {Total\s+\d+\s+Passed\s+(\d+)\s+Skipped\s+\d+\s+Failed\s+(\d+)} \
         $output -> p f]} {
    return [list $p $f]
  }
  set p 0
  set f 0
  foreach {- n} [regexp -all -inline {\[  PASSED  \] (\d+) test} $output] {
    incr p $n
  }
  foreach {- n} [regexp -all -inline {\[  FAILED  \] (\d+) test} $output] {
    incr f $n
  }
  # All of them may have been skipped for want of a tool.
  if {$p + $f == 0 && ![regexp {\[  SKIPPED \] \d+ test} $output]} {
    return {}
  }
  return [list $p $f]
}

# What a failed program said of its failures, or else its last lines.
proc failures {output} {
  set found {}
  set inside 0
  foreach line [split [string trimright $output] \n] {
    # Of a case of tcltest its name and what came of it, not its text.
    if {[string match "---- *" $line]} {
      set inside 1
    } elseif {[regexp {^==== \S+ FAILED$} $line]} {
      set inside 0
    }
    if {$inside || [regexp {^==== \S+ .* FAILED$} $line] ||
        [regexp {^\[ *(ERROR|LINE|FAILED) *\]} $line] ||
        [regexp {^SUMMARY: \w+Sanitizer|: runtime error: } $line]} {
      lappend found $line
    }
  }
  if {$found eq ""} {
    return [join [lrange [split [string trimright $output] \n] end-39 end] \n]
  }
  return [join [lrange $found 0 59] \n]
}

# Where sanitizers report what is found in a program and its processes.
proc reports_go_to {place} {
  global env
  file mkdir $place
  foreach variable $::sanitizers {
    set env($variable) log_path=$place/report$::given($variable)
  }
}

# Adds what was reported to the program's output; how many reports.
proc take_reports {chan} {
  if {$::reports eq ""} {
    return 0
  }
  set found [lsort [glob -nocomplain -directory $::place($chan) *]]
  foreach report $found {
    set f [open $report]
    say $chan "\n==== [file tail $report] of a sanitizer FAILED\n[read $f]"
    close $f
  }
  return [llength $found]
}

proc start {program} {
  global here
  if {[file extension $program] eq ".test"} {
    set command [list [info nameofexecutable] $program]
  } else {
    set command [list [file normalize $program]]
  }
  set place $::reports/[incr ::started]
  if {$::reports ne ""} {
    reports_go_to $place
  }
  set chan [open "|$command 2>@1" r]
  set ::place($chan) $place
  fconfigure $chan -blocking 0 -buffering none
  set ::output($chan) ""
  set ::began($chan) [clock milliseconds]
  set ::program($chan) $program
  fileevent $chan readable [list readable $chan]
  set ::timer($chan) [after $::limit_ms [list out_of_time $chan]]
  incr ::running
}

proc say {chan text} {
  append ::output($chan) $text
  if {$::live} {
    puts -nonewline $text
    flush stdout
  }
}

proc readable {chan} {
  say $chan [read $chan]
  if {[eof $chan]} {
    finish $chan
  }
}

# A process and those that it started, by what /proc says of their parents.
# One of them could keep our pipe open, so that its end would never come.
proc family {pid} {
  set found $pid
  foreach stat [glob -nocomplain /proc/\[0-9\]*/stat] {
    if {![catch {
      set f [open $stat]
      regexp {^(\d+) \(.*\) \S+ (\d+)} [read $f] - child parent
      close $f
    }] && $parent == $pid} {
      lappend found {*}[family $child]
    }
  }
  return $found
}

proc out_of_time {chan} {
  say $chan "\nno end after $::limit_ms ms: killed\n"
  catch {exec sh -c "kill -9 [family [pid $chan]]"}
}

proc finish {chan} {
  after cancel $::timer($chan)
  fconfigure $chan -blocking 1
  set died [catch {close $chan} why]
  set seconds [expr {([clock milliseconds] - $::began($chan)) / 1000.0}]
  set n [counts $::output($chan)]
  if {$n eq "" || ($died && [lindex $n 1] == 0)} {
    say $chan "\nended early: $why\n"
    set n [list [lindex [concat $n 0] 0] 1]
  }
  set n [list [lindex $n 0] [expr {[lindex $n 1] + [take_reports $chan]}]]
  puts [format "== %s (%.1f s)" $::program($chan) $seconds]
  if {!$::live} {
    puts [string trimright $::output($chan)]
  }
  flush stdout
  incr ::passed [lindex $n 0]
  incr ::failed [lindex $n 1]
  if {[lindex $n 1] > 0} {
    lappend ::bad $::program($chan) [failures $::output($chan)]
  }
  incr ::running -1
}

while {$running > 0 || [llength $queue] > 0} {
  while {$running < $jobs && [llength $queue] > 0} {
    set queue [lassign $queue next]
    start $next
  }
  vwait running
}
foreach {name text} $bad {
  puts "== failed: $name\n$text"
}
puts "$passed passed, $failed failed"
exit [expr {$failed > 0 || $passed == 0}]
