# Links between nodes that a test controls (relay.c): one for each two nodes and
# direction. A node is told the others' addresses as names, NAME.relay, and each
# node finds its own links behind them (names.c).
#
#   relay_make NAME            before its process starts: its address, for the
#                              option `advertise`
#   relay_way FROM TO WORD VALUE...
#                              what happens to bytes from FROM to TO, in the
#                              words of relay.c; * is anybody
#   relay_break FROM TO        resets the connections that FROM dialled to TO
#   relay_calm                 nothing happens to any bytes any more
#   relay_cut NAME             no connection to the node or from it any more;
#                              what was under way is lost
#   relay_heal NAME
#   relay_counts               what was done so far, as a dict
#
# The relay ends with the cluster (cluster_end), and begins anew with the next.

exec cc -D_GNU_SOURCE -O1 -o relay $here/relay.c -luv
exec cc -D_GNU_SOURCE -O1 -shared -fPIC -o names.so $here/names.c -ldl
set relayed {}
array set relay_is_cut {}

proc relay_say {args} {
  global proc
  puts $proc(relay,chan) $args
  flush $proc(relay,chan)
  wait_until {[string first \n $proc(relay,in)] >= 0 || $proc(relay,ended)}
  set end [string first \n $proc(relay,in)]
  set said [string range $proc(relay,in) 0 $end-1]
  set proc(relay,in) [string range $proc(relay,in) $end+1 end]
  return $said
}

proc relay_do {args} {
  if {[set said [relay_say {*}$args]] ne "ok"} {
    error "relay: $args: $said"
  }
}

proc relay_make {name} {
  global relayed node
  if {![alive relay]} {
    set relayed {}
    array unset ::relay_is_cut
    spawn relay program $::dir/relay $::cluster(SEED)
  }
  lappend relayed $name
  lappend ::preload($name) $::dir/names.so
  lappend ::environ($name) NAMES_FILE=$::dir/relay.$name
  set last [llength $relayed]
  for {set i 1} {$i < $last} {incr i} {
    relay_link [lindex $relayed $i-1] $i $name $last
    relay_link $name $last [lindex $relayed $i-1] $i
  }
  relay_names
  return $name.relay:[lindex [split $node($name,listen) :] 1]
}

proc relay_link {from i to j} {
  set port [lindex [split $::node($to,listen) :] 1]
  relay_do link $from $to 127.77.$i.$j $port 127.0.0.1 $port
}

# What each node takes the others' names for.
proc relay_names {} {
  set i 0
  foreach from $::relayed {
    incr i
    set j 0
    set f [open $::dir/relay.new w]
    foreach to $::relayed {
      puts $f "$to.relay [expr {[incr j] == $i ? "127.0.0.1"
                                               : "127.77.$i.$j"}]"
    }
    close $f
    file rename -force $::dir/relay.new $::dir/relay.$from
  }
}

proc relay_way {from to args} {
  relay_do way $from $to {*}$args
}

proc relay_break {from to} {
  relay_do break $from $to
}

proc relay_calm {} {
  array unset ::relay_is_cut
  relay_do way * * calm 1
}

proc relay_cut {name} {
  set ::relay_is_cut($name) 1
  relay_do way * $name refuse 1
  relay_do way $name * refuse 1
}

proc relay_heal {name} {
  unset -nocomplain ::relay_is_cut($name)
  relay_do way * $name refuse 0
  relay_do way $name * refuse 0
  # Two that were cut off, and one is still.
  foreach other [array names ::relay_is_cut] {
    relay_cut $other
  }
}

proc relay_counts {} {
  return [relay_say counts]
}
