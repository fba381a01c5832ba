# quorate: a loadable SQLite extension that keeps one database in agreement on
# several machines.
#
#   make               build/quorate.so and build/quorated
#   make demo          the quickstart (demo/run installs what is missing first)
#   make test          everything that must hold (sql-tests/run likewise)
#   make unit          only the C tests
#   make suites        only the Tcl suites; SUITES='session errors' for some
#   make bench         timings, as ratios to stock SQLite; PEERS=1 adds other
#                      databases; BENCHFLAGS="--only 'leader 1' --seconds 9"
#   make coverage      what the unit tests and the simulator reach of raft/
#   make sim           the simulator; SEEDS=n SEED=first SIMFLAGS=--trace
#   make soak          HOURS=1 of chaos (below) and of the simulator beside it,
#                      from random seeds; sim-soak: of the simulator only
#   make mutants       whether tests notice planted mistakes; MUTANTS='53 7'
#   make crash         states that a loss of power may leave of a node, 10000 of
#                      them; STATES=n CRASHFLAGS='--seed 7 --workload three'
#   make kill          kill -9 of nodes under load, and nothing lost; KILLS=300
#                      SEED=n (`make test` runs a sample)
#   make load          clients on all nodes, and every answer true; SECONDS=600
#                      SEED=n (`make test` runs a sample)
#   make chaos         clusters of real processes under faults of network,
#                      processes, disks, clocks and members; SECONDS=600 SEED=n
#                      PIECES='1 3' (`make test` runs a sample)
#   make failover      how long writes stop when the leader goes; LOOPS=100
#                      WAYS='killed stopped'
#   make fault         each call on files of a node fails, one after the other;
#                      FAULTFLAGS='--scene join --error EIO'
#   make sqlite-tests  SQLite's own test suite on nodes; SQLITE_TESTS='select*'
#                      for some of it; fetches SQLite's source from Debian
#   make valgrind      memory errors and leaks on the short path
#   make bench-storage figures of joining, catching up, restarts, transactions
#                      of any size, memory, disk; MIB=1024 DIR=/big/disk
#                      PARTS='database large small'
#   make fuzz          each fuzz target for FUZZ_SECONDS=3600, one after the
#                      other; TARGET='message log' for some; needs clang
#   make fuzz-minute   a minute each
#   make fuzz-coverage what the fuzz targets reach of what they are about
#   make check-style   formatter, warnings of both compilers, house rules
#   make SAN=address,undefined ...   the same with sanitizers; or SAN=thread
#   make CC=clang ...  the same with another compiler, WERROR=1 with warnings
#                      as errors; each of these has objects of its own
#   make MUTANT=53 unit-raft/store ...   with a mistake planted that some test
#                      should find (raft/mutant.h)
#   make install       under PREFIX=/usr/local, DESTDIR= before it; LIBDIR and
#   make uninstall     others see below
#   make deb           a Debian package, in build/deb; .ci/deb tests it
#   make npm           a package for npm, in build/npm
#   make PLAIN=1 bench   the same code without TLS (tls/test/plain.c), to see
#                      what TLS costs; its version ends in -plain
#   make clean

CC     ?= cc
SAN    ?=
MUTANT ?=
comma  := ,
empty  :=
space  := $(empty) $(empty)
# Objects made with other flags never meet: each variant has its own folder.
VARIANT := $(subst $(comma),-,$(SAN)) \
           $(if $(findstring clang,$(notdir $(CC))),clang) \
           $(if $(WERROR),werror) $(if $(COVERAGE),coverage) \
           $(if $(MUTANT),mutant$(MUTANT)) $(if $(PLAIN),plain) \
           $(if $(FUZZ),fuzz)
VARIANT := $(subst $(space),-,$(strip $(VARIANT)))
B      := build$(if $(VARIANT),/$(VARIANT))

WARN   := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion \
          -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wcast-qual -Wwrite-strings -Wvla -Wundef -Wformat=2
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -pthread \
          $(WARN) $(if $(WERROR),-Werror) \
          $(if $(MUTANT),-DRAFT_MUTANT=$(MUTANT)) \
          $(if $(PLAIN),-DQUORATE_VARIANT='"-plain"') \
          $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer \
              -fno-sanitize-recover=all) \
          $(if $(COVERAGE),--coverage -fprofile-update=atomic -DNDEBUG) \
          $(if $(FUZZ),-fsanitize=fuzzer-no-link) \
          $(CPPFLAGS) $(CFLAGS)
LDFLAGS += $(if $(SAN),-fsanitize=$(SAN)) $(if $(COVERAGE),--coverage)
LIBS   := -luv -lssl -lcrypto -lxxhash -pthread
CMOCKA := -lcmocka

# Who may know whom: each room is compiled with these include paths only.
INC_raft       := -Iraft
INC_raft/store := -Iraft -Iraft/store
INC_raft/sim   := -Iraft -Iraft/store -Iraft/sim
INC_tls        := -Itls
INC_net        := -Iraft -Itls -Inet
INC_ext        := -Iraft -Iraft/store -Itls -Inet -Iext

ROOMS  := raft raft/store raft/sim tls net ext
objs    = $(patsubst %.c,$(B)/%.o,$(wildcard $(1)/*.c))
OBJ_raft       := $(call objs,raft)
OBJ_raft/store := $(call objs,raft/store)
# Without its command line, so that tests can be linked with it.
OBJ_raft/sim   := $(filter-out %/main.o,$(call objs,raft/sim))
OBJ_tls        := $(call objs,tls)
# No encryption, for a benchmark, and in no other build.
ifneq ($(PLAIN),)
OBJ_tls        := $(filter-out %/context.o %/stream.o,$(OBJ_tls)) \
                  $(B)/tls/test/plain.o
endif
OBJ_net        := $(call objs,net)
OBJ_quorated   := $(addprefix $(B)/ext/,quorated.o http.o report.o watch.o)
# Without the program, which is more than the extension, and without what only
# the library may have.
OBJ_ext        := $(filter-out $(OBJ_quorated) %/preload.o,$(call objs,ext))

# What the tests of a room are linked with.
NEED_raft       := $(OBJ_raft)
NEED_raft/store := $(OBJ_raft) $(OBJ_raft/store)
NEED_raft/sim  := $(OBJ_raft) $(OBJ_raft/store) $(OBJ_raft/sim)
NEED_tls        := $(OBJ_tls)
NEED_net        := $(OBJ_raft) $(OBJ_tls) $(OBJ_net)
NEED_ext        := $(OBJ_raft) $(OBJ_raft/store) $(OBJ_tls) $(OBJ_net) \
                   $(OBJ_ext)

all: $(B)/quorate.so $(B)/quorated

$(B)/quorate.so: $(NEED_ext) $(B)/ext/preload.o ext/exports.map
	$(CC) -shared -o $@ $(NEED_ext) $(B)/ext/preload.o $(LDFLAGS) $(LIBS) \
	  -Wl,--version-script=ext/exports.map -Wl,-z,defs,-z,now,-z,nodelete

# What nodes of this version will meet, for a test of upgrades: "next" speaks
# one more version of the protocol, "later" that one alone.
NEXT := $(B)/next/quorate.so $(B)/later/quorate.so
NEXT_OBJ := net/hello.o ext/sql.o
$(B)/next/%.o: NEXT_CFLAGS = -DNET_LOWEST=1u -DQUORATE_VARIANT='"-next"'
$(B)/later/%.o: NEXT_CFLAGS = -DNET_LOWEST=2u -DQUORATE_VARIANT='"-later"'
define next
$$(B)/$(1)/%.o: %.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(NEXT_CFLAGS) -DNET_HIGHEST=2u $$(INC_ext) \
	  -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/quorate.so: $$(addprefix $$(B)/$(1)/,$$(NEXT_OBJ)) $$(NEED_ext) \
                      $$(B)/ext/preload.o ext/exports.map
	$$(CC) -shared -o $$@ $$(filter-out $$(addprefix $$(B)/,$$(NEXT_OBJ)), \
	  $$(filter %.o,$$^)) $$(LDFLAGS) $$(LIBS) \
	  -Wl,--version-script=ext/exports.map -Wl,-z,defs,-z,now,-z,nodelete
endef
$(foreach n,next later,$(eval $(call next,$(n))))

# It has the extension in itself and needs no quorate.so beside it.
$(B)/quorated: $(OBJ_quorated) $(NEED_ext)
	$(CC) -o $@ $^ $(LDFLAGS) $(LIBS) $(LIBS_ext) -lmicrohttpd
$(B)/ext/http.o: ext/page.html

define room
$$(B)/$(1)/%.o: $(1)/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/test/%.o: $(1)/test/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/test/%: $$(B)/$(1)/test/%.o $$(NEED_$(1))
	$$(CC) -o $$@ $$^ $$(LDFLAGS) $$(CMOCKA) $$(LIBS) $$(LIBS_$(1))
$$(B)/$(1)/fuzz/%.o: $(1)/fuzz/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(INC_$(1)) -Isql-tests/fuzz -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/fuzz/%: $$(B)/$(1)/fuzz/%.o $$(FUZZ_MAIN) $$(NEED_$(1))
	$$(CC) -o $$@ $$^ $$(LDFLAGS) $$(FUZZ_LINK) $$(WRAP_$$(@F)) $$(LIBS) $$(LIBS_$(1))
FUZZERS += $$(patsubst %.c,$$(B)/%,$$(wildcard $(1)/fuzz/fuzz_*.c))
UNIT_$(1) := $$(patsubst %.c,$$(B)/%,$$(wildcard $(1)/test/test_*.c))
UNITS += $$(UNIT_$(1))
unit-$(1): $$(UNIT_$(1))
	@set -e; for t in $$^; do echo "== $$$$t"; $$$$t; done
endef
LIBS_ext := -lsqlite3
# What drives a fuzz target: libFuzzer with FUZZ=1, else a replay of its corpus.
FUZZ_MAIN := $(if $(FUZZ),,$(B)/sql-tests/fuzz/replay.o)
FUZZ_LINK := $(if $(FUZZ),-fsanitize=fuzzer)
# One of them has functions of its own in the place of some of net/.
WRAP_fuzz_node := $(addprefix -Wl$(comma)--wrap=,net_call net_fetch \
                  net_reply net_request_identity net_request_remote net_close \
                  clock_monotonic_ms)
$(foreach r,$(ROOMS),$(eval $(call room,$(r))))
.SECONDARY:

$(B)/sql-tests/fuzz/%.o: sql-tests/fuzz/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<

# What a loss of power may leave of a node: by itself a sample.
CRASH     := $(B)/ext/test/crash/crash
CRASH_OBJ := $(call objs,ext/test/crash)
STATES    ?= 10000
$(CRASH): $(CRASH_OBJ) $(NEED_ext)
	$(CC) -o $@ $^ $(LDFLAGS) $(LIBS) $(LIBS_ext)

# Each call on files that fails once, or from then on: by itself a sample.
FAULT     := $(B)/ext/test/fault/fault
FAULT_OBJ := $(call objs,ext/test/fault) \
             $(filter-out %/crash.o %/workload.o,$(CRASH_OBJ))
$(FAULT): $(FAULT_OBJ) $(NEED_ext)
	$(CC) -o $@ $^ $(LDFLAGS) $(LIBS) $(LIBS_ext)

fault: $(FAULT)
	@$(FAULT) --all $(FAULTFLAGS)

crash: $(CRASH)
	@$(CRASH) --states $(STATES) $(CRASHFLAGS)

unit: $(UNITS)
	@set -e; for t in $(UNITS); do echo "== $$t"; $$t; done

# A library with a sanitizer in it needs that sanitizer's runtime loaded first
# into a process (sqlite3, tclsh) that was built without.
PRELOAD := $(if $(SAN),$(shell $(CC) -print-file-name=$(if \
             $(findstring thread,$(SAN)),libtsan.so,$(if \
             $(findstring address,$(SAN)),libasan.so,libubsan.so))))
ifneq ($(findstring thread,$(SAN)),)
export TSAN_OPTIONS ?= suppressions=$(CURDIR)/.ci/tsan
# TSan knows no threads in the child of a process that had some.
UNITS := $(filter-out %/test_fork,$(UNITS))
endif
SUITE_ENV = QUORATE_LIBRARY='$(CURDIR)/$(B)/quorate.so' \
            QUORATE_PRELOAD='$(PRELOAD)'

SUITE_FILES := $(wildcard sql-tests/*.test sql-tests/chaos/*.test)

# Unit tests and suites in one run with one summary, all of them even if some
# fail.
test: all $(NEXT) $(UNITS) $(FUZZERS) $(if $(SAN),,$(CRASH) $(FAULT))
	@$(SUITE_ENV) sh sql-tests/all $(UNITS) $(FUZZERS) \
	  $(if $(SAN),,$(CRASH) $(FAULT) raft/sim/mutants-sample \
	  sql-tests/sqlite/sample) $(SUITE_FILES)

SUITES ?= $(patsubst sql-tests/%.test,%,$(SUITE_FILES))
suites: all $(NEXT)
	@$(SUITE_ENV) sh sql-tests/all \
	  $(foreach s,$(SUITES),sql-tests/$(s).test)

# Kills under load, for as long as it takes.
KILLS ?= 300
kill: all
	@KILLS=$(KILLS) SEED=$(SEED) LIVE=1 SUITE_SECONDS=86400 $(SUITE_ENV) \
	  sh sql-tests/all sql-tests/kill.test

# Clients on all nodes, misfortune, and a history that must be linearizable.
SECONDS ?= 600
load: all
	@LOAD_SECONDS=$(SECONDS) SEED=$(SEED) LIVE=1 SUITE_SECONDS=86400 \
	  $(SUITE_ENV) sh sql-tests/all sql-tests/load.test

# Many processes of many kinds at the files of three nodes, and misfortune.
processes: all
	@SOAK_SECONDS=$(SECONDS) SEED=$(SEED) LIVE=1 SUITE_SECONDS=86400 \
	  $(SUITE_ENV) sh sql-tests/all sql-tests/soak.test

# Pieces of a minute, each a cluster of its own, with a report.
CHAOS = SEED=$(SEED) LIVE=1 SUITE_SECONDS=864000 $(SUITE_ENV) \
        sh sql-tests/all sql-tests/chaos/chaos.test
chaos: all
	@CHAOS_SECONDS=$(SECONDS) PIECES='$(PIECES)' $(CHAOS)

LOOPS ?= 100
failover: all
	@LOOPS=$(LOOPS) $(if $(WAYS),WAYS='$(WAYS)') LIVE=1 SUITE_SECONDS=86400 \
	  $(SUITE_ENV) sh sql-tests/all sql-tests/chaos/failover.test

# SQLite's own tests, with quorate as the default VFS.
SQLITE_TESTS ?=
sqlite-tests: all
	@QUORATE_LIBRARY='$(CURDIR)/$(B)/quorate.so' \
	  sh sql-tests/sqlite/run $(foreach p,$(SQLITE_TESTS),'$(p)')

# Memory errors and leaks, on the short path.
valgrind: all
	@QUORATE_LIBRARY='$(CURDIR)/$(B)/quorate.so' sh sql-tests/valgrind

demo: all
	@QUORATE_LIBRARY='$(CURDIR)/$(B)/quorate.so' sh demo/quickstart

# The benchmark knows the extension as any program does: by its file.
BENCH     := $(B)/demo/bench/bench
BENCH_OBJ := $(call objs,demo/bench)
$(B)/demo/bench/%.o: demo/bench/%.c
	@mkdir -p $(@D)
	$(CC) $(ALL_CFLAGS) -MMD -MP -c -o $@ $<
$(BENCH): $(BENCH_OBJ)
	$(CC) -o $@ $^ $(LDFLAGS) -lsqlite3 -pthread

bench: all $(BENCH)
	@$(BENCH) $(B)/quorate.so $(if $(PEERS),--peers demo/bench/peers/run) \
	  $(BENCHFLAGS)

# One seed is one history: see raft/sim/README.md.
SIM  := $(B)/raft/sim/sim
SEED ?= 1
$(SIM): $(B)/raft/sim/main.o $(NEED_raft/sim)
	$(CC) -o $@ $^ $(LDFLAGS) -lxxhash -pthread

sim: $(SIM)
	@$(SIM) $(SEED) --seeds $(or $(SEEDS),1000) $(SIMFLAGS)

HOURS ?= 1
sim-soak: $(SIM)
	@sh raft/sim/soak $(SIM) $$(($(HOURS) * 3600))

# Both, and each says what it found.
soak: SEED = $$(od -An -N3 -tu4 /dev/urandom | tr -d ' ')
soak: all $(SIM)
	@nice sh raft/sim/soak $(SIM) $$(($(HOURS) * 3600)) & sim=$$!; \
	CHAOS_SECONDS=$$(($(HOURS) * 3600)) $(CHAOS); chaos=$$?; \
	wait $$sim && exit $$chaos

# Whether the tests notice each of the mistakes in raft/sim/mutants.list.
mutants:
	@sh raft/sim/mutants $(MUTANTS)
mutants-sample:
	@sh raft/sim/mutants-sample

# Joining, catching up, latency meanwhile, restarts, of a database of MIB;
# transactions of MIB; or what a million small ones leave.
MIB   ?= 1024
PARTS ?= database large
DIR   ?= $(CURDIR)/$(B)/storage
bench-storage: all
	@mkdir -p '$(DIR)/pids'
	@QUORATE_TEST_DIR='$(DIR)' $(SUITE_ENV) \
	  tclsh sql-tests/storage.tcl $(MIB) $(PARTS)

# Bytes that come from outside, made up: see sql-tests/fuzz/README.md.
FUZZ_SECONDS ?= 3600
TARGET       ?= $(patsubst fuzz_%,%,$(notdir $(FUZZERS)))
FUZZ_BUILD   := CC=clang FUZZ=1 SAN=address,undefined
fuzzers: $(FUZZERS)
fuzz: $(FUZZERS)
	@$(MAKE) --no-print-directory -s $(FUZZ_BUILD) fuzzers
	@sh sql-tests/fuzz/run $(B) $(FUZZ_SECONDS) $(TARGET)
fuzz-minute:
	@$(MAKE) --no-print-directory FUZZ_SECONDS=60 fuzz
fuzz-coverage:
	@$(MAKE) --no-print-directory -s COVERAGE=1 fuzzers
	@bash sql-tests/fuzz/coverage $(B)/coverage $(TARGET)

compile: all $(UNITS) $(FUZZERS) $(BENCH) $(SIM) $(CRASH) $(FAULT)

coverage:
	@$(MAKE) --no-print-directory COVERAGE=1 reach

# With COVERAGE=1 only.
reach: $(UNIT_raft) $(UNIT_raft/store) $(UNIT_raft/sim) $(SIM)
	@bash .ci/coverage $(B) $(UNIT_raft) $(UNIT_raft/store) \
	  $(UNIT_raft/sim) '$(SIM) 1 --seeds 500 --quiet'

check-style:
	@bash .ci/style

# ---- what goes to other places ---------------------------------------------

# The one place of the version; a test holds the others against it.
VERSION := $(shell sed -n 's/^.define QUORATE_VERSION "\([^"]*\)".*/\1/p' ext/sql.h)

# The library is loaded by its path and is nothing to link with, so it keeps out
# of the linker's own directories.
PREFIX  ?= /usr/local
BINDIR  ?= $(PREFIX)/bin
LIBDIR  ?= $(PREFIX)/lib
EXTDIR  ?= $(LIBDIR)/sqlite3
PCDIR   ?= $(LIBDIR)/pkgconfig
MANDIR  ?= $(PREFIX)/share/man
DOCDIR  ?= $(PREFIX)/share/doc/quorate
UNITDIR ?= $(PREFIX)/lib/systemd/system
INSTALL ?= install

# What a file says of where things are; the units stand as they are installed by
# default.
FILL := sed -e 's|@VERSION@|$(VERSION)|g' -e 's|@PREFIX@|$(PREFIX)|g' \
        -e 's|@EXTDIR@|$(EXTDIR)|g' -e 's|/usr/local/bin/|$(BINDIR)/|g'
TEXTS     := $(PCDIR)/quorate.pc $(MANDIR)/man7/quorate.7 \
             $(MANDIR)/man8/quorated.8 $(UNITDIR)/quorated@.service
INSTALLED := $(EXTDIR)/quorate.so $(BINDIR)/quorated $(DOCDIR)/LICENSE $(TEXTS)
in_place   = $(patsubst %,'$(DESTDIR)%',$(1))

install: all
	$(INSTALL) -d $(call in_place,$(sort $(dir $(INSTALLED))))
	$(INSTALL) -m 644 $(B)/quorate.so '$(DESTDIR)$(EXTDIR)/quorate.so'
	$(INSTALL) -m 755 $(B)/quorated '$(DESTDIR)$(BINDIR)/quorated'
	$(INSTALL) -m 644 LICENSE '$(DESTDIR)$(DOCDIR)/LICENSE'
	$(FILL) ext/quorate.pc.in >'$(DESTDIR)$(PCDIR)/quorate.pc'
	$(FILL) ext/quorate.7 >'$(DESTDIR)$(MANDIR)/man7/quorate.7'
	$(FILL) ext/quorated.8 >'$(DESTDIR)$(MANDIR)/man8/quorated.8'
	$(FILL) ext/quorated@.service >'$(DESTDIR)$(UNITDIR)/quorated@.service'
	chmod 644 $(call in_place,$(TEXTS))

# Nothing but what was installed, and directories that nothing else is in.
uninstall:
	rm -f $(call in_place,$(INSTALLED))
	-rmdir $(call in_place,$(DOCDIR) $(EXTDIR)) 2>/dev/null

# From a tree of its own, as from a tarball: what is needed to build, and
# ext/debian at its top, where Debian's tools look.
DEB_TREE := build/deb/quorate-$(VERSION)
deb:
	rm -rf build/deb
	mkdir -p $(DEB_TREE)
	cp -R Makefile LICENSE raft tls net ext $(DEB_TREE)
	mv $(DEB_TREE)/ext/debian $(DEB_TREE)/debian
	cd $(DEB_TREE) && case $$(dpkg-parsechangelog -S Version) in \
	  $(VERSION)-*) ;; \
	  *) echo 'ext/debian/changelog has another version' >&2; exit 1 ;; esac
	cd $(DEB_TREE) && env -u MAKEFLAGS -u MFLAGS dpkg-buildpackage -b -us -uc
	rm -rf $(DEB_TREE)
	ls build/deb/*.deb

# As it is packed; by npm into one file, where that is installed.
NPM_DIR  ?= $(CURDIR)/build/npm
NPM_KIND  = linux-$(patsubst x86_64,x64,$(patsubst aarch64,arm64,$(shell \
              uname -m)))
npm: all
	rm -rf '$(NPM_DIR)'
	mkdir -p '$(NPM_DIR)/package/$(NPM_KIND)'
	cp demo/npm/package.json demo/npm/README.md demo/npm/index.js \
	  demo/npm/index.d.ts LICENSE '$(NPM_DIR)/package'
	strip -o '$(NPM_DIR)/package/$(NPM_KIND)/quorate.so' $(B)/quorate.so
	if command -v npm >/dev/null; then \
	  cd '$(NPM_DIR)' && npm pack --silent ./package; fi

-include $(shell find $(B) -name '*.d' -type f 2>/dev/null)

clean:
	rm -rf build

.PHONY: all sim sim-soak soak chaos failover fuzz fuzz-minute fuzz-coverage \
        fuzzers mutants mutants-sample crash fault unit test suites kill load \
        processes sqlite-tests valgrind demo bench bench-storage compile \
        coverage reach check-style install uninstall deb npm clean \
        $(addprefix unit-,$(ROOMS))
