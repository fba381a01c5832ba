# Links between nodes that a test can cut: a relay before each node, whose
# address is what the others are told.
#
#   relay_make NAME            its address, for the option `advertise`
#   relay_cut NAME             no connection to the node or from it any more;
#                              what was under way is lost
#   relay_heal NAME
#
# A relay works while the test waits for something.

array set relay_pairs {}
array set relay_is_cut {}

proc relay_make {name} {
  set port [free_port]
  socket -server [list relay_accept $name] -myaddr 127.0.0.1 $port
  return 127.0.0.1:$port
}

# The node whose process has this local port.
proc relay_from {port} {
  set f [open /proc/net/tcp]
  set text [read $f]
  close $f
  set address [format {0100007F:%04X} $port]
  set inode ""
  foreach line [split $text \n] {
    if {[lindex $line 1] eq $address && [lindex $line 9] > 0} {
      set inode [lindex $line 9]
    }
  }
  if {$inode eq ""} {
    return ""
  }
  foreach name $::nodes {
    if {![alive $name]} continue
    foreach fd [glob -nocomplain /proc/$::proc($name,pid)/fd/*] {
      if {![catch {file readlink $fd} to] && $to eq "socket:\[$inode\]"} {
        return $name
      }
    }
  }
  return ""
}

proc relay_accept {name chan host port} {
  set from [relay_from $port]
  lassign [split $::node($name,listen) :] - to
  if {[info exists ::relay_is_cut($name)] ||
      [info exists ::relay_is_cut($from)] ||
      [catch {socket 127.0.0.1 $to} out]} {
    close $chan
    return
  }
  foreach c [list $chan $out] {
    fconfigure $c -blocking 0 -translation binary -buffering none
  }
  set ::relay_pairs($chan) [list $out $name $from]
  fcopy $chan $out -command [list relay_end $chan]
  fcopy $out $chan -command [list relay_end $chan]
}

proc relay_end {chan args} {
  if {[info exists ::relay_pairs($chan)]} {
    set out [lindex $::relay_pairs($chan) 0]
    unset ::relay_pairs($chan)
    catch {close $chan}
    catch {close $out}
  }
}

proc relay_cut {name} {
  set ::relay_is_cut($name) 1
  foreach {chan pair} [array get ::relay_pairs] {
    if {$name in [lrange $pair 1 2]} {
      relay_end $chan
    }
  }
}

proc relay_heal {name} {
  unset ::relay_is_cut($name)
}
