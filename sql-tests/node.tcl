# A node as a Tcl program: reads scripts from its input, a line of base64
# each, runs them at the top level and answers "=ok=" or "=error=" and the
# result, base64 again.  Made for the fixture in cluster.tcl.

package require sqlite3
fconfigure stdin -translation lf
fconfigure stdout -translation lf

# Loads the extension by a connection that is closed at once: it stays in the
# process and serves those that are opened later.  The connection db exists
# from the start so that the functions can be called before there is a file.
proc load_quorate {path} {
  db enable_load_extension 1
  db eval {SELECT load_extension($path)}
}

# Runs SQL and gives its rows as the shell's list mode does.
proc query {statement {handle db}} {
  set lines {}
  $handle eval $statement row {
    lappend lines [join [lmap column $row(*) {set row($column)}] |]
  }
  join $lines \n
}

sqlite3 db :memory:
while {[gets stdin line] >= 0} {
  set script [encoding convertfrom utf-8 [binary decode base64 $line]]
  set how [lindex {ok error} [catch {uplevel #0 $script} result]]
  if {$how eq "error"} {
    append result " ([db errorcode])"
  }
  puts "=$how=[binary encode base64 [encoding convertto utf-8 $result]]"
  flush stdout
}
