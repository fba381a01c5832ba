# A program in Tcl at a file that others use, too: as clients.c.
#
#   tclsh client.tcl LIBRARY FILE LOG FIRST STOP CODES

package require sqlite3
lassign $argv library file log first stop codes
set log [open $log {WRONLY CREAT APPEND} 0600]
fconfigure $log -buffering line

proc note {what number kind {rest 0}} {
  # Nothing here reads the monotonic clock; nobody asks Tcl's.
  puts $::log "$what $number [clock microseconds]000 $kind $rest"
}

proc draw {n} {
  expr {int(rand() * $n)}
}

proc count {number} {
  db eval {BEGIN IMMEDIATE}
  set n [db onecolumn {SELECT n + 1 FROM counter}]
  db eval {INSERT INTO ledger(id, n) VALUES($number, $n)}
  db eval COMMIT
  return ""
}

proc move {number} {
  set a [draw 20]
  set b [expr {($a + 1 + [draw 19]) % 20}]
  set amount [expr {1 + [draw 50]}]
  db eval {UPDATE account SET v = v + CASE id WHEN $a THEN -$amount
                                              ELSE $amount END
           WHERE id IN ($a, $b)}
  return ""
}

proc look {number} {
  db eval BEGIN
  set money [db onecolumn {SELECT sum(v) FROM account}]
  set counter [db onecolumn {SELECT n FROM counter}]
  after [draw 4]
  set rows [db eval {SELECT count(*), ifnull(max(n), 0) FROM ledger}]
  set again [db onecolumn {SELECT sum(v) FROM account}]
  db eval COMMIT
  if {$money != 20000 || $again != $money || $rows ne [list $counter $counter]
  } {
    return "torn: money $money, $again; $counter, $rows rows"
  }
  return ""
}

proc operate {number} {
  set kind [lindex {c c c m m i} [draw 6]]
  note i $number $kind
  if {[catch {[dict get {c count m move i look} $kind] $number} said]} {
    set code [db errorcode]
    catch {db eval ROLLBACK}
    if {($code & 0xff) == 5 || $code == 7690} {
      note o $number f
    } elseif {$code == 7946} {
      note o $number u
    } else {
      note o $number e "$code $said"
    }
    after 5
  } elseif {$said ne ""} {
    note o $number e $said
  } else {
    note o $number a
    after [expr {2 + [draw 8]}]
  }
}

sqlite3 memory :memory:
memory enable_load_extension 1
memory eval {SELECT load_extension($library)}
memory close
sqlite3 db $file
db timeout 3000
db enable_load_extension 1
db eval {SELECT load_extension($codes)}
db eval {SELECT extended_codes(1)}
for {set i $first} {![file exists $stop]} {incr i} {
  operate $i
}
db close
