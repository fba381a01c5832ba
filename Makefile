# quorate: a loadable SQLite extension that keeps one database in agreement on
# several machines.
#
#   make               build/quorate.so
#   make demo          the quickstart (demo/run installs what is missing first)
#   make test          everything that must hold (sql-tests/run likewise)
#   make unit          only the C tests
#   make bench         timings, as ratios to stock SQLite
#   make check-style   formatter, warnings of both compilers, house rules
#   make SAN=address,undefined ...   the same with sanitizers; or SAN=thread
#   make clean

CC     ?= cc
SAN    ?=
comma  := ,
B      := build$(if $(SAN),/$(subst $(comma),-,$(SAN)))

WARN   := -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion \
          -Wstrict-prototypes -Wmissing-prototypes -Wpointer-arith \
          -Wcast-qual -Wwrite-strings -Wvla -Wundef -Wformat=2
CFLAGS ?= -O2 -g
ALL_CFLAGS := -std=c11 -D_GNU_SOURCE -fPIC -fvisibility=hidden -pthread \
          $(WARN) $(if $(WERROR),-Werror) \
          $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer \
              -fno-sanitize-recover=all) $(CFLAGS)
LDFLAGS += $(if $(SAN),-fsanitize=$(SAN))
LIBS   := -luv -lssl -lcrypto -lxxhash -pthread
CMOCKA := -lcmocka

# Who may know whom: each room is compiled with these include paths only.
INC_raft       := -Iraft
INC_raft/store := -Iraft -Iraft/store
INC_tls        := -Itls
INC_net        := -Iraft -Itls -Inet
INC_ext        := -Iraft -Iraft/store -Itls -Inet -Iext

ROOMS  := raft raft/store tls net ext
objs    = $(patsubst %.c,$(B)/%.o,$(wildcard $(1)/*.c))
OBJ_raft       := $(call objs,raft)
OBJ_raft/store := $(call objs,raft/store)
OBJ_tls        := $(call objs,tls)
OBJ_net        := $(call objs,net)
OBJ_ext        := $(call objs,ext)

# What the tests of a room are linked with.
NEED_raft       := $(OBJ_raft)
NEED_raft/store := $(OBJ_raft) $(OBJ_raft/store)
NEED_tls        := $(OBJ_tls)
NEED_net        := $(OBJ_raft) $(OBJ_tls) $(OBJ_net)
NEED_ext        := $(OBJ_raft) $(OBJ_raft/store) $(OBJ_tls) $(OBJ_net) \
                   $(OBJ_ext)

all: $(B)/quorate.so

$(B)/quorate.so: $(NEED_ext) ext/exports.map
	$(CC) -shared -o $@ $(NEED_ext) $(LDFLAGS) $(LIBS) \
	  -Wl,--version-script=ext/exports.map -Wl,-z,defs,-z,now,-z,nodelete

define room
$$(B)/$(1)/%.o: $(1)/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/test/%.o: $(1)/test/%.c
	@mkdir -p $$(@D)
	$$(CC) $$(ALL_CFLAGS) $$(INC_$(1)) -MMD -MP -c -o $$@ $$<
$$(B)/$(1)/test/%: $$(B)/$(1)/test/%.o $$(NEED_$(1))
	$$(CC) -o $$@ $$^ $$(LDFLAGS) $$(CMOCKA) $$(LIBS) $$(LIBS_$(1))
UNIT_$(1) := $$(patsubst %.c,$$(B)/%,$$(wildcard $(1)/test/test_*.c))
UNITS += $$(UNIT_$(1))
unit-$(1): $$(UNIT_$(1))
	@set -e; for t in $$^; do echo "== $$$$t"; $$$$t; done
endef
LIBS_ext := -lsqlite3
$(foreach r,$(ROOMS),$(eval $(call room,$(r))))
.SECONDARY:

unit: $(UNITS)
	@set -e; for t in $(UNITS); do echo "== $$t"; $$t; done

-include $(shell find $(B) -name '*.d' 2>/dev/null)

clean:
	rm -rf build

.PHONY: all unit clean $(addprefix unit-,$(ROOMS))
