# Runs what a text shows: pages in ext/ and README.md at the top.  Needs the
# fixture of cluster.tcl, and an installed quorate.
#
#   manual_page FILE           the steps in a page, as {section step...}...
#   manual_readme FILE         the same of a README, without the prompts
#   manual_play STEPS          runs them: "", or what was not as it is told
#
# A step is {line host kind text expected}.  Kinds are sql (n1>), sh (n1$),
# root (n1#) and test, a comment of the page that is Tcl.  What follows a step
# is its answer, where "..." is anything; without one the step must not fail.
#
# There is one machine here.  n1, n2 and n3 have a directory each, which they
# call /srv, and addresses of their own, as 10.0.0.1:7000: they stand for
# directories and ports of the test, in both directions.  Their systemd is ours:
# a quorated for each instance that is started.  A README's terminals are these
# machines, too, but they are all in the directory of the test.

# Commands that cannot be run here, as patterns. Any other is.
set manual_elsewhere {}

# ---- what a text shows -----------------------------------------------------

proc manual_steps {lines at} {
  set steps {}
  foreach line $lines {
    incr at
    regsub -all {\\&} $line {} line
    regsub -all {\\e} $line {\\} line
    if {[regexp {^\s*\.\.\.> ?(.*)$} $line - more]} {
      lset steps end 3 "[lindex $steps end 3]\n$more"
    } elseif {[string match {*\\} [lindex $steps end 3]]
              && [regexp {^> (.*)$} $line - more]} {
      lset steps end 3 "[lindex $steps end 3]\n$more"
    } elseif {[regexp {^(n\d)([>$#]) (.*)$} $line - host prompt text]} {
      set kind [dict get {> sql $ sh # root} $prompt]
      lappend steps [list $at $host $kind $text {}]
    } elseif {[llength $steps] && [string trim $line] ne ""} {
      set expected [lindex $steps end 4]
      lset steps end 4 [concat $expected [list $line]]
    }
  }
  return $steps
}

proc manual_lines {file} {
  set f [open $file]
  set lines [split [read $f] \n]
  close $f
  return $lines
}

proc manual_page {file} {
  set found {}
  set section ""
  set steps {}
  set inside 0
  set n 0
  foreach line [manual_lines $file] {
    incr n
    if {[regexp {^\.S[hs] (.*)$} $line - next]} {
      if {[llength $steps]} { lappend found $section $steps }
      set section $next
      set steps {}
    } elseif {[regexp {^\.\\" test: (.*)$} $line - script]} {
      lappend steps [list $n "" test $script {}]
    } elseif {[string match ".Bd -literal*" $line]} {
      set inside $n
      set block {}
    } elseif {$line eq ".Ed" && $inside} {
      lappend steps {*}[manual_steps $block $inside]
      set inside 0
    } elseif {$inside} {
      lappend block $line
    }
  }
  if {[llength $steps]} { lappend found $section $steps }
  return $found
}

# A block of a README is ```sh or ```sql and the terminal where it is typed: n1
# to n3, which become shells of sqlite3 and back, or n4, which stays a shell;
# "all" are the first three.  What begins with # or -- is what was answered.
proc manual_block {language host lines at} {
  set mark [dict get {sh # sql --} $language]
  set steps {}
  set more 0
  foreach line $lines {
    incr at
    if {[regexp "^$mark ?(.*)\$" $line - answer]} {
      lset steps end 4 [concat [lindex $steps end 4] [list $answer]]
      continue
    }
    if {$language eq "sh"} { regsub {\s+# .*$} $line {} line }
    if {$more} {
      lset steps end 3 "[lindex $steps end 3]\n$line"
    } else {
      lappend steps [list $at $host $language $line {}]
    }
    set more [expr {$language eq "sh" ? [string match {*\\} $line]
                    : ![string match .* $line] && ![string match *\; $line]}]
  }
  return $steps
}

# What is in no such block is a picture or a figure, and is ```text.
proc manual_readme {file} {
  set found {}
  set section ""
  set steps {}
  set inside ""
  set n 0
  foreach line [manual_lines $file] {
    incr n
    if {$inside ne ""} {
      if {$line ne "```"} { lappend block $line; continue }
      foreach host $hosts {
        lappend steps {*}[manual_block $inside $host $block $at]
      }
      set inside ""
    } elseif {[regexp {^```(sh|sql)(?: (\w+))?$} $line - inside hosts]} {
      if {$hosts eq "all"} { set hosts {n1 n2 n3} }
      if {$hosts eq ""} { set hosts [expr {$inside eq "sh" ? "n4" : "n1"}] }
      set at $n
      set block {}
    } elseif {[regexp {^## (.*)$} $line - next]} {
      if {[llength $steps]} { lappend found $section $steps }
      set section $next
      set steps {}
    }
  }
  if {[llength $steps]} { lappend found $section $steps }
  return $found
}

# ---- the machines ----------------------------------------------------------

# What a machine's words are here, or back.
proc manual_map {host back text} {
  set map [list /srv $::dir/$host /backup $::dir/backup]
  foreach {name here} [array get ::manual_address] {
    lappend map $name $here
  }
  if {$back} {
    set map [lreverse $map]
  }
  string map $map $text
}

# For addresses that a text names: free ports.
proc manual_addresses {text} {
  foreach name [regexp -all -inline {(?:10\.0\.0\.\d|127\.0\.0\.1):7\d\d\d} \
                  $text] {
    if {![info exists ::manual_address($name)]} {
      set ::manual_address($name) 127.0.0.1:[free_port]
    }
  }
}

proc manual_unit {host unit} {
  if {![regexp {^quorated@srv-(.*)$} $unit - file]} {
    error "no such unit: $unit"
  }
  return [list unit-$host-$file $::dir/$host/$file]
}

proc manual_start {host unit} {
  lassign [manual_unit $host $unit] name file
  manual_host $name $::prefix/bin/quorated $file
}

# It stays in the foreground: for us, in a terminal of its own.
proc manual_host {name args} {
  if {[alive $name]} { return "" }
  spawn $name program {*}$args
  wait_until {[string match "*quorated: ready*" $::proc($name,in)]
              || $::proc($name,ended)} 60000
  if {$::proc($name,ended)} {
    error "quorated did not start: $::proc($name,in)"
  }
  string trimright $::proc($name,in) \n
}

proc manual_stop {host unit} {
  lassign [manual_unit $host $unit] name file
  signal $name TERM
  wait_until {$::proc($name,ended)}
  reap $name
}

proc manual_root {host command} {
  switch -regexp -matchvar found -- $command {
    {^systemctl (?:start|enable --now) (\S+)$} {
      manual_start $host [lindex $found 1]
    }
    {^systemctl stop (\S+)$} { manual_stop $host [lindex $found 1] }
    {^systemctl restart (\S+)$} {
      manual_stop $host [lindex $found 1]
      manual_start $host [lindex $found 1]
    }
    default { error "it cannot be run here, and is not known: $command" }
  }
}

# Where the terminal of a host is; commands may change that.
proc manual_at {host command} {
  return "cd '$::manual_at($host)' && $command"
}

# Where commands are. A sqlite3 that is to load a library with a sanitizer in it
# is one that has the runtime; others are none the better for it (curl hangs).
proc manual_path {} {
  set tools $::dir/tools
  if {[runtime] ne "" && ![file exists $tools]} {
    file mkdir $tools
    set f [open $tools/sqlite3 w 0755]
    puts $f "#!/bin/sh\n[runtime]\${LD_PRELOAD:+:\$LD_PRELOAD} \\\n\
             exec [auto_execok $::cluster(SQLITE3)] \"\$@\""
    close $f
  }
  return $tools:$::prefix/bin:$::env(PATH)
}

# A shell of sqlite3 in which one types: what it says at its beginning.
proc manual_type {host command} {
  regexp {^(?:LD_PRELOAD=(\S+) )?sqlite3(.*)$} $command - library arguments
  set ::preload(sh-$host) $library
  # The shell leaks the connection of an .open that fails.
  set ::environ(sh-$host) [list [no_leaks]]
  spawn sh-$host program sh -c \
    [manual_at $host "exec $::cluster(SQLITE3) -batch $arguments"]
  set ::proc(sh-$host,kind) shell
  sql sh-$host "" 60000
}

proc manual_sh {host command} {
  set command [manual_map $host 0 $command]
  set plain [string map {"\\\n" ""} $command]
  set typed {^(LD_PRELOAD=\S+ )?sqlite3(\s+-cmd "[^"]*")*( [^\s"']+)?$}
  if {[regexp $typed $plain]} { return [manual_type $host $plain] }
  if {[regexp {^(\S*)quorated (?:--http \S+ )?([^-]\S*)$} $plain - path file]
      && ($path ne "" || [file exists $file-quorate])} {
    return [manual_host quorated-$host env PATH=[manual_path] \
              sh -c [manual_at $host "exec $plain"]]
  }
  if {[runtime] ne ""} {
    set command [string map [list LD_PRELOAD= "[runtime]:"] $command]
  }
  set failed [catch {
    exec env PATH=[manual_path] timeout [seconds 60] sh -c [manual_at $host \
      "$command\nrc=\$?; pwd >'$::dir/at'; exit \$rc"] </dev/null 2>@1
  } said]
  regsub {\n?child process exited abnormally$} $said {} said
  set ::manual_at($host) [lindex [manual_lines $::dir/at] 0]
  set ::manual_failed $failed
  return $said
}

# Verbs of "test:" comments.
proc kill {host} {
  foreach name $::processes {
    if {[string match "*-$host*" $name]} { kill9 $name }
  }
}

proc lose {host} {
  kill $host
  file delete -force {*}[glob $::dir/$host/*]
}

proc stop_unit {host} { manual_stop $host quorated@srv-app.db }

proc spoil {host file} {
  set f [open $::dir/$host/app.db-quorate/$file r+]
  fconfigure $f -translation binary
  puts -nonewline $f [string repeat \xa5 4096]
  close $f
}

# ---- playing ---------------------------------------------------------------

proc manual_sql {host text} {
  if {$text eq ".quit"} {
    chan close $::proc(sh-$host,chan) write
    wait_until {$::proc(sh-$host,ended)}
    reap sh-$host
    return
  }
  if {[string match ".shell kill *" $text]} {
    puts $::proc(sh-$host,chan) $text
    flush $::proc(sh-$host,chan)
    wait_until {$::proc(sh-$host,ended)}
    reap sh-$host
    return
  }
  set ::manual_failed [catch {
    sql sh-$host [manual_map $host 0 $text] 60000
  } said]
  return [expr {$::manual_failed ? "Error: $said" : $said}]
}

proc manual_do {host kind text} {
  set ::manual_failed 0
  switch $kind {
    sql { manual_sql $host $text }
    sh { manual_sh $host $text }
    root { manual_root $host $text }
    test { uplevel #0 $text; return "" }
  }
}

proc manual_fits {expected said} {
  if {$expected eq ""} {
    return [expr {!$::manual_failed}]
  }
  regsub {^Runtime error: } [join $expected \n] {Error: } expected
  regsub -all {[][\\.*+?(){}|^$]} $expected {\\&} pattern
  regsub -all {\\\.\\\.\\\.} $pattern {.*} pattern
  regexp "^$pattern\$" $said
}

proc manual_is_elsewhere {text} {
  foreach pattern $::manual_elsewhere {
    if {[string match $pattern $text]} { return 1 }
  }
  return 0
}

# Once more, for some time, where others may still be at it: what is read may
# come later, and what was refused may be done again.
proc manual_play {steps} {
  foreach step $steps {
    lassign $step line host kind text expected
    if {[manual_is_elsewhere $text]} continue
    manual_addresses $text
    set text [string map [list TOKEN $::manual_token] $text]
    set end [deadline 40000]
    while 1 {
      set said [manual_map $host 1 [manual_do $host $kind $text]]
      if {[manual_fits $expected $said]} break
      if {![info exists first]} { set first $said }
      set reads [regexp {^(SELECT|curl )} $text]
      if {($kind ne "sql" && !$reads) || [clock milliseconds] > $end
          || !($reads || $::manual_failed)} {
        return "line $line: $text\nsaid: $first\nand then: $said\nnot:\
                [join $expected \n]"
      }
      turn 200
    }
    unset -nocomplain first
    regexp {^quorate1-\S+$} $said ::manual_token
  }
  return ""
}
set manual_token ""
