# Suites that mount disks or make network interfaces of their own: sourced
# first, before there is anything, it runs the suite anew in namespaces of its
# own, if root and the kernel allow, so that all of it is gone with the last
# process.
#
#   may mount, may network     did it?

if {![info exists env(ISOLATED)]} {
  foreach how {{-m -n} -m {}} {
    if {$how eq "" || ![catch {exec unshare {*}$how true}]} break
  }
  set env(ISOLATED) $how
  if {$how ne ""} {
    exit [catch {
      exec unshare {*}$how [info nameofexecutable] [file normalize $argv0] \
        {*}$argv >@stdout 2>@stderr <@stdin
    }]
  }
}

proc may {what} {
  expr {[dict get {mount -m network -n} $what] in $::env(ISOLATED)}
}

# The loopback of a network of our own.
if {[may network] && [catch {exec ip link set lo up} why]} {
  puts "no network of our own: $why"
  set env(ISOLATED) -m
}
