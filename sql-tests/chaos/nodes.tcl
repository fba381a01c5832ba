# The nodes of a chaos test: processes, clients in them, disks, the network.
#
#   chaos_make PLAN            a cluster; PLAN is a dict: nodes, net (relay or
#                              veth), options (of bootstrap), attached (so many
#                              nodes have a second process), small (so many have
#                              a small disk of their own)
#   members, processes_of NODE, node_of PROCESS
#   revive                     every process of every member runs, with clients
#   lose PROCESS...            kill -9
#   again NODE                 what the node's processes were is forgotten; it
#                              joins anew
#   follow MS                  time passes, and what clients note is taken in
#   anywhere STATEMENT ?MS?    on any node, until it is done; "" or the reason
#   link_set NODE up or down   the node's network interface (veth)
#   chaos_end
#
# Clients of a process are threads of it (load.c). The second process of node n1
# is n1/b: it is attached to the first, or the first to it.

exec cc -D_GNU_SOURCE -shared -fPIC -o shift.so $here/shift.c
exec cc -D_GNU_SOURCE -O1 -shared -fPIC -o stall.so $here/stall.c

set kinds clssmmfdiioovrvwxkpqrkpq
if {[info exists env(KINDS)]} {
  set kinds $env(KINDS)
}
# So large that the node itself does not fill it: room must come back.
set small_mib 400

# ---- the network -----------------------------------------------------------

# Interfaces: ours is a bridge; each node has a namespace of its own, held by a
# process that sleeps, and a cable to the bridge.
proc veth_begin {} {
  exec ip link add qbridge type bridge
  exec ip link set qbridge up
}

proc veth_make {name i} {
  spawn hold/$name program unshare -n sleep 1000000
  set pid $::proc(hold/$name,pid)
  set mine [file readlink /proc/self/ns/net]
  wait_until {[file readlink /proc/$pid/ns/net] ne $mine}
  exec ip link add $name type veth peer name eth0 netns $pid
  exec ip link set $name master qbridge up
  set inside [list nsenter --net=/proc/$pid/ns/net]
  exec {*}$inside ip address add 10.77.0.$i/24 dev eth0
  exec {*}$inside ip link set eth0 up
  exec {*}$inside ip link set lo up
  set ::node($name,listen) 10.77.0.$i:7000
  set ::wrap($name) $inside
}

proc link_set {name how} {
  exec ip link set $name $how
}

# ---- a cluster -------------------------------------------------------------

proc members {} {
  lmap name $::nodes {
    if {[info exists ::out($name)]} continue
    set name
  }
}

proc processes_of {name} {
  if {[info exists ::attached($name)]} {
    return [list $name $name/b]
  }
  return $name
}

proc node_of {process} {
  lindex [split $process /] 0
}

proc chaos_node {name i net} {
  global dir node environ preload wrap
  node_new $name
  set node($name,label) $name
  lappend preload($name) $dir/shift.so $dir/stall.so
  foreach what {shift stall fail} {
    file delete $dir/$what.$name
    lappend environ($name) [string toupper $what]_FILE=$dir/$what.$name
  }
  switch $net {
    relay { set node($name,address) [relay_make $name] }
    veth { veth_make $name $i }
  }
  if {![info exists node($name,address)]} {
    set node($name,address) $node($name,listen)
  }
  foreach what {environ preload wrap} {
    if {[info exists ::${what}($name)]} {
      set ::${what}($name/b) [set ::${what}($name)]
    }
  }
}

proc chaos_make {plan} {
  global node plan_of options
  set plan_of $plan
  set options [dict get $plan options]
  set n [dict get $plan nodes]
  if {[dict get $plan net] eq "veth"} {
    veth_begin
  }
  # One more, which comes and goes.
  for {set i 1} {$i <= $n + 1} {incr i} {
    chaos_node n$i $i [dict get $plan net]
  }
  set ::spare n[expr {$n + 1}]
  set ::out($::spare) 1
  for {set i 1} {$i <= [dict get $plan small]} {incr i} {
    set ::is_small(n$i) 1
    exec mount -t tmpfs -o size=${::small_mib}m tmpfs $::dir/n$i
  }
  node_start n1
  bootstrap n1 advertise $node(n1,address) log_keep_kib 16384 {*}$options
  node_open n1
  # A leader with an election timeout of 150 ms may lose its place meanwhile.
  for {set i 2} {$i <= $n} {incr i} {
    wait_until {[join_anew n$i [leader] voter] eq ""} 90000
  }
  wait_until {[voters n1] == $n} 60000
  for {set i 1} {$i <= [dict get $plan attached]} {incr i} {
    set ::attached(n$i) 1
  }
  load_schema
}

proc join_anew {name by role} {
  node_start $name
  set token [sql $by "SELECT quorate_invite('$name', '$role')"]
  join_cluster $name $token advertise $::node($name,address) log_keep_kib 16384
  node_open $name
}

# What it was goes, but for a disk that is mounted there.
proc again {name} {
  lose {*}[processes_of $name]
  file delete -force {*}[glob -nocomplain $::dir/$name/*]
  set ::node($name,label) $name-[incr ::births]
}

proc chaos_end {} {
  kill9 {*}$::processes
  foreach name [array names ::is_small] {
    exec umount $::dir/$name
  }
  foreach name $::nodes {
    catch {exec ip link delete $name 2>@1}
  }
  catch {exec ip link delete qbridge 2>@1}
  cluster_end
  array unset ::out
  array unset ::attached
  array unset ::is_small
}

# ---- processes -------------------------------------------------------------

proc lose {args} {
  foreach process $args {
    catch {signal $process CONT}
  }
  kill9 {*}$args
  foreach process $args {
    unset -nocomplain ::paused($process)
    load_lost $process
  }
}

# Whoever has ended and was not ended by us.
proc look_for_dead {process} {
  if {$process in $::processes && $::proc($process,ended)} {
    set last [string range $::proc($process,in) end-300 end]
    lappend ::wrong "$process has ended by itself: [reap $process]: $last"
    load_lost $process
  }
}

# A start may find that the disk is full, or that another process is about to
# take over.
proc revive {} {
  set end [deadline 60000]
  foreach name [members] {
    foreach process [processes_of $name] {
      look_for_dead $process
      while {![alive $process] && [catch {start_process $process} why]} {
        catch {append why ": " [sql $process {SELECT quorate_last_error()}]}
        lose $process
        if {[clock milliseconds] > $end} {
          error "$process does not start: $why\n[exec du -ak $::dir/$name]"
        }
        follow 100
      }
    }
  }
}

proc start_process {process} {
  set name [node_of $process]
  if {$process eq $name} {
    restart $name
  } else {
    attach $process $name
  }
  load_begin $process [expr {$process eq $name ? 3 : 2}] $::kinds 3000 $name
}

proc follow {ms} {
  set end [expr {[clock milliseconds] + $ms}]
  while {[set left [expr {$end - [clock milliseconds]}]] > 0} {
    turn [expr {min($left, 50)}]
    load_listen
  }
}

proc quiet {process} {
  set said [sql $process {SELECT load_stop()} 90000]
  load_lost $process
}

# What runs, and does not stand still.
proc awake {} {
  lmap name [members] {
    if {![alive $name] || [info exists ::paused($name)]} continue
    set name
  }
}

proc anywhere {statement {ms 90000}} {
  set end [deadline $ms]
  set why "nobody is awake"
  while {[clock milliseconds] < $end} {
    set names [awake]
    if {$names ne ""} {
      set name [pick $names]
      if {![catch {sql $name $statement 60000} why]} {
        return ""
      }
    }
    follow 100
  }
  return $why
}

proc pick {list} {
  lindex $list [expr {int(rand() * [llength $list])}]
}

# A number between two, drawn.
proc between {low high} {
  expr {$low + int(rand() * ($high - $low + 1))}
}

proc others {name} {
  lsearch -all -inline -not -exact [members] $name
}

proc shuffled {list} {
  lmap pair [lsort -real -index 0 [lmap e $list {list [expr {rand()}] $e}]] {
    lindex $pair 1
  }
}
