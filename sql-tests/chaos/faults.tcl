# What may happen to a cluster under load.
#
#   fault NAME WEIGHT NEEDS BODY
#        BODY begins it and may return a script that ends it. NEEDS: what the
#        cluster must have for it: relay, veth, five (nodes), attached, small
#   fault_draw                 one that this cluster can have
#   fault_begin NAME           begins it; the script that ends it
#   fault_note WHAT            ::happened has it, and when
#
# All choices are drawn from the seed; which node leads, and what the machine
# makes of the moments, is not in it.

array set fault_body {}
set fault_list {}

proc fault {name weight needs body} {
  lappend ::fault_list [list $name $weight $needs]
  proc fault_$name {} "$body\nreturn"
}

proc has {need} {
  switch $need {
    relay - veth { expr {[dict get $::plan_of net] eq $need} }
    five { expr {[dict get $::plan_of nodes] >= 5} }
    attached { expr {[dict get $::plan_of attached] > 0} }
    small { expr {[dict get $::plan_of small] > 0} }
  }
}

proc fault_draw {} {
  set all {}
  foreach entry $::fault_list {
    lassign $entry name weight needs
    if {[info exists ::env(FAULTS)] && $name ni $::env(FAULTS)} continue
    if {[lsearch -exact [lmap need $needs {has $need}] 0] < 0} {
      lappend all {*}[lrepeat $weight $name]
    }
  }
  pick $all
}

# In ms of the clock that clients have; a machine that slept does not matter.
proc fault_note {what} {
  set f [open /proc/uptime]
  lappend ::happened [expr {int([lindex [read $f] 0] * 1000)}] $what
  close $f
}

proc fault_begin {name} {
  incr ::faults($name)
  fault_note $name
  if {[info exists ::env(TRACE)]} {
    puts "[clock milliseconds] $name"
    flush stdout
  }
  fault_$name
}

# The leader one time in two; or whoever it is.
proc victim {} {
  set leader [leader_now]
  if {$leader ne "" && rand() < 0.5} {
    return $leader
  }
  pick [members]
}

# ---- the network, by relays ------------------------------------------------

proc hold_between {some others {how 1}} {
  foreach a $some {
    foreach b $others {
      if {$a ne $b} {
        relay_way $a $b hold $how
        relay_way $b $a hold $how
      }
    }
  }
}

fault isolated 4 relay {
  set name [victim]
  hold_between $name $::nodes
  return [list hold_between $name $::nodes 0]
}

fault refused 3 relay {
  set name [victim]
  relay_cut $name
  return [list relay_heal $name]
}

# It hears nobody, or nobody hears it.
fault one-way 4 relay {
  set name [victim]
  if {rand() < 0.5} {
    relay_way $name * hold 1
    return [list relay_way $name * hold 0]
  }
  relay_way * $name hold 1
  return [list relay_way * $name hold 0]
}

fault one-link 3 relay {
  lassign [shuffled [members]] a b
  relay_way $a $b hold 1
  if {rand() < 0.5} {
    relay_way $b $a hold 1
  }
  return [list hold_between $a $b 0]
}

# Two halves that both see one node in the middle.
fault bridge 3 relay {
  set names [shuffled [members]]
  set half [expr {([llength $names] - 1) / 2}]
  set left [lrange $names 1 $half]
  set right [lrange $names $half+1 end]
  hold_between $left $right
  return [list hold_between $left $right 0]
}

fault split 3 relay {
  set names [shuffled [members]]
  set half [expr {[llength $names] / 2}]
  set left [lrange $names 0 $half-1]
  set right [lrange $names $half end]
  hold_between $left $right
  return [list hold_between $left $right 0]
}

fault flapping 2 relay {
  set name [victim]
  for {set i 0} {$i < 5} {incr i} {
    hold_between $name $::nodes
    follow [between 20 400]
    hold_between $name $::nodes 0
    follow [between 20 400]
  }
}

fault late 3 relay {
  set a [pick [list * [pick [members]]]]
  relay_way $a * delay [between 1 60] jitter [between 0 60]
  return [list relay_way $a * delay 0 jitter 0]
}

fault slow 2 relay {
  set a [pick [list * [pick [members]]]]
  relay_way $a * rate [between 60 2000]
  return [list relay_way $a * rate 0]
}

fault lossy 3 relay {
  relay_way * * stall [between 5 100] reset [between 0 5]
  return {relay_way * * stall 0 reset 0}
}

fault resets 3 relay {
  for {set i [between 1 6]} {$i > 0} {incr i -1} {
    relay_break [pick [list * [pick [members]]]] *
    follow [between 0 150]
  }
}

# ---- the network, by interfaces --------------------------------------------

fault link-down 8 veth {
  set name [victim]
  link_set $name down
  return [list link_set $name up]
}

fault links-down 3 veth {
  set names [lrange [shuffled [members]] 1 end]
  foreach name $names {
    link_set $name down
  }
  return "foreach name {$names} {link_set \$name up}"
}

fault link-flaps 4 veth {
  set name [victim]
  for {set i 0} {$i < 6} {incr i} {
    link_set $name down
    follow [between 20 300]
    link_set $name up
    follow [between 20 300]
  }
}

# ---- processes -------------------------------------------------------------

fault kill 6 {} {
  lose {*}[processes_of [victim]]
}

fault kill-half 2 {} {
  set names [shuffled [members]]
  foreach name [lrange $names [expr {[llength $names] / 2}] end] {
    lappend gone {*}[processes_of $name]
  }
  lose {*}$gone
}

fault kill-all 1 {} {
  foreach name [members] {
    lappend gone {*}[processes_of $name]
  }
  lose {*}$gone
}

# Those that another misfortune left alive.
proc living {processes} {
  lmap process $processes {
    if {![alive $process]} continue
    set process
  }
}

fault stop-cont 5 {} {
  set still [living [processes_of [victim]]]
  pause {*}$still
  return [list wake $still]
}

# Who has died meanwhile does not wake.
proc wake {processes} {
  foreach process $processes {
    if {[alive $process]} {
      resume $process
    } else {
      unset -nocomplain ::paused($process)
    }
  }
}

proc in_order {name} {
  foreach process [processes_of $name] {
    if {[alive $process]} {
      quiet $process
    }
  }
  foreach process [lreverse [processes_of $name]] {
    if {[alive $process]} {
      stop $process 60000
    }
  }
}

fault restart 3 {} {
  in_order [victim]
}

fault rolling 1 {} {
  foreach name [members] {
    in_order $name
    follow [between 0 200]
    # A disk that fails would not let it start.
    if {[file exists $::dir/fail.$name]} over
    revive
  }
}

proc has_second {} {
  pick [lmap name [members] {
    if {![info exists ::attached($name)]} continue
    set name
  }]
}

# The host dies, and who was attached goes on as the host.
fault takeover 4 attached {
  set name [has_second]
  set host [hosts $name]
  if {[node_of $host] eq $name} {
    lose $host
  }
}

fault attached-dies 2 attached {
  set name [has_second]
  foreach process [processes_of $name] {
    if {$process ne [hosts $name]} {
      lose $process
    }
  }
}

fault one-still 3 attached {
  set process [pick [living [processes_of [has_second]]]]
  pause {*}$process
  return [list wake $process]
}

# A read transaction that goes on keeps -wal from beginning anew: it grows.
fault long-read 2 {} {
  set name [pick [awake]]
  catch {
    sql $name ".connection 1\n.open $::node($name,file)\nBEGIN;\
               SELECT count(*) FROM account;\n.connection 0"
  }
  return [list long_read_ends $name]
}

proc long_read_ends {name} {
  if {[alive $name]} {
    resume $name
    catch {sql $name ".connection 1\nCOMMIT;\n.connection 0"}
  }
}

# ---- disks and clocks ------------------------------------------------------

fault stalled-disk 2 {} {
  set name [victim]
  close [open $::dir/stall.$name w]
  return [list file delete $::dir/stall.$name]
}

# A node whose sync failed stays failed until its process ends.
fault failed-sync 3 {} {
  set name [victim]
  close [open $::dir/fail.$name w]
  return [list failed_sync_ends $name]
}

proc failed_sync_ends {name} {
  lose {*}[processes_of $name]
  file delete $::dir/fail.$name
}

fault full-disk 5 small {
  set name [pick [array names ::is_small]]
  set f [open $::dir/$name/filler w]
  fconfigure $f -translation binary
  catch {
    while 1 {
      puts -nonewline $f [string repeat x 65536]
      flush $f
    }
  }
  catch {close $f}
  return [list file delete $::dir/$name/filler]
}

fault clock 3 {} {
  set name [victim]
  set f [open $::dir/shift.new w]
  puts $f [between -1200 1200]
  close $f
  file rename -force $::dir/shift.new $::dir/shift.$name
}

# ---- members, checkpoints --------------------------------------------------

# What must be so in the end, or the reason why it is not. The misfortune before
# may be what keeps it from being so, and would last as long as it is tried.
proc must {statement} {
  if {[anywhere $statement 15000] eq ""} return
  heal
  if {[set why [anywhere $statement]] ne ""} {
    error "$statement: $why"
  }
}

fault transfer 3 {} {
  set name [pick [awake]]
  catch {sql $name "SELECT quorate_transfer('[pick [members]]')" 60000}
}

fault demote 2 {} {
  set name [victim]
  catch {sql [pick [awake]] "SELECT quorate_demote('$name')" 60000}
  return [list must "SELECT quorate_promote('$name')"]
}

# All of the network, whatever was done to it.
proc mend {} {
  if {[dict get $::plan_of net] eq "relay"} {
    relay_calm
  } else {
    foreach name [concat [members] $::spare] {
      link_set $name up
    }
  }
}

# The invitation may be lost with its leader, and the join come too late; or the
# misfortune before is between the leader and who joins.
proc comes {name role} {
  set end [deadline 90000]
  set patience [deadline 15000]
  while {[catch {join_anew $name [pick [awake]] $role} why]} {
    again $name
    if {[clock milliseconds] > $patience} {
      heal
    }
    if {[clock milliseconds] > $end} {
      error "$name cannot join: $why"
    }
    follow 200
  }
}

# One that is removed, and comes back as somebody new.
fault replace 1 {} {
  set name [victim]
  foreach process [processes_of $name] {
    if {[alive $process]} {
      quiet $process
    }
  }
  must "SELECT quorate_remove('$name')"
  set ::out($name) 1
  again $name
  comes $name [pick {voter learner}]
  unset ::out($name)
  load_begin $name 3 $::kinds 3000
  follow 500
  return [list must "SELECT quorate_promote('$name')"]
}

fault grow 1 {} {
  set name $::spare
  comes $name [pick {voter learner}]
  unset ::out($name)
  if {rand() < 0.5} {
    must "SELECT quorate_promote('$name')"
  }
  load_begin $name 2 $::kinds 3000
  return [list shrink $name]
}

proc shrink {name} {
  if {[alive $name]} {
    quiet $name
  }
  set ::out($name) 1
  must "SELECT quorate_remove('$name')"
  again $name
}

fault checkpoint 3 {} {
  foreach name [awake] {
    catch {sql $name {SELECT quorate_checkpoint()} 60000}
  }
}

fault backup 1 {} {
  file delete $::dir/backup.db
  catch {sql [pick [awake]] {SELECT quorate_backup('backup.db')} 60000}
  set sum {SELECT sum(v) FROM account}
  if {[file exists $::dir/backup.db] &&
      [set said [stock $::dir/backup.db $sum]] ne 20000} {
    lappend ::wrong "a backup has $said on all accounts"
  }
  file delete $::dir/backup.db
}
