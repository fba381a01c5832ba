# Sourced by sql-tests/run, demo/run and .ci/run: makes sure that Debian
# packages are installed.  POSIX sh and what Debian's base image has, because
# it runs where neither make nor a compiler is there yet.
#
#   need package...     installs those that are missing, or says what to do
#                       and returns 1
#   need_better_sqlite3 builds it in build/node, from npm; without it the tests
#                       that want it are skipped

# What the extension is built from, what its tests need besides, and what
# only the checks of the source need.
BUILD_PACKAGES='make gcc libc6-dev libsqlite3-dev libuv1-dev libssl-dev
  libxxhash-dev libmicrohttpd-dev sqlite3'
TEST_PACKAGES='libcmocka-dev curl openssl tcl libsqlite3-tcl python3'
# Programs that the library is preloaded into as they are. PowerDNS would start
# to serve where it is installed on a running system.
PROGRAM_PACKAGES='php-cli php-sqlite3 libdbd-sqlite3-perl fossil'
[ -d /run/systemd/system ] ||
  PROGRAM_PACKAGES="$PROGRAM_PACKAGES pdns-server pdns-backend-sqlite3
    bind9-dnsutils"
# A nodejs from elsewhere may bring its own npm, and its headers.
command -v npm >/dev/null 2>&1 ||
  PROGRAM_PACKAGES="$PROGRAM_PACKAGES nodejs npm libnode-dev"
PROGRAM_PACKAGES="$PROGRAM_PACKAGES g++ mandoc pkg-config strace"
STYLE_PACKAGES='clang clang-format'
# What the longer tests need on top of that: .ci/long.
FUZZ_PACKAGES='libclang-rt-dev valgrind'

need_missing() {
  for need_p in "$@"; do
    case $(dpkg-query -W -f '${Status}' "$need_p" 2>/dev/null) in
    *' installed') ;;
    *) printf ' %s' "$need_p" ;;
    esac
  done
}

need_as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo "$@"
  fi
}

need_apt() {
  need_as_root env DEBIAN_FRONTEND=noninteractive apt-get \
    -q -o DPkg::Lock::Timeout=300 "$@" </dev/null
}

need() {
  if ! command -v dpkg-query >/dev/null 2>&1 ||
    ! command -v apt-get >/dev/null 2>&1; then
    # Another system: its packages have other names, so only the tools can
    # be looked for; the compiler will name a header that is missing.
    for need_c in make cc sqlite3; do
      if ! command -v "$need_c" >/dev/null 2>&1; then
        echo "$0: $need_c is missing, and there is no apt-get here to" \
          "install it with." >&2
        echo "$0: please install what these Debian packages have:" "$@" >&2
        return 1
      fi
    done
    return 0
  fi
  need_list=$(need_missing "$@")
  [ -n "$need_list" ] || return 0
  if [ "$(id -u)" != 0 ] && ! command -v sudo >/dev/null 2>&1; then
    echo "$0: packages are missing, and there is no sudo here. As root:" >&2
    echo "$0:   apt-get install --no-install-recommends$need_list" >&2
    return 1
  fi
  echo "$0: installing$need_list"
  # An old list of packages may still do, so only the second step decides.
  need_apt update || echo "$0: apt-get update failed, trying on" >&2
  # The list is split in words on purpose.
  # shellcheck disable=SC2086
  if ! need_apt install -y --no-install-recommends $need_list; then
    echo "$0: apt-get could not install them. Please install:$need_list" >&2
    return 1
  fi
}

# The newest that Debian 12's Node takes. Its own binary comes from elsewhere;
# if that cannot be reached, it is built with the headers that are here.
need_better_sqlite3() {
  [ ! -d build/node/node_modules/better-sqlite3/build/Release ] || return 0
  command -v npm >/dev/null 2>&1 || return 0
  echo "$0: installing better-sqlite3 in build/node"
  mkdir -p build/node
  npm_config_nodedir=/usr npm install --prefix build/node --loglevel=error \
    --no-audit --no-fund better-sqlite3@11.10.0 </dev/null ||
    echo "$0: npm could not install it: its tests are skipped" >&2
}
