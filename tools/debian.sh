#!/bin/sh
# Runs commands on this checkout in a root of another Debian release, and says how long each took.
#
#   tools/debian.sh [--built] RELEASE [COMMAND]...
#
# RELEASE is bookworm, trixie or sid. Without commands they are `make build`, `make demo` and
# `make test`. The root begins as debootstrap makes it, with make and a C compiler. It is
# target/debian/RELEASE, and a second run goes on with it; delete it for a fresh one. Rust is the
# host's. The root has a target folder of its own, target/debian/RELEASE-target, at first empty.
# With --built it begins as a copy of this checkout's: programs that Debian 12 built run in all.
#
# The script needs root on Debian. It makes its mounts in a mount namespace of its own, so that they
# end with it.
set -eu
cd "$(dirname "$0")/.."
if [ -z "${KILN_DEBIAN_INSIDE:-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "tools/debian.sh: root makes and mounts a root" >&2; exit 1; }
    KILN_DEBIAN_INSIDE=1 exec unshare --mount "$0" "$@"
fi
built=""
[ "${1:-}" != --built ] || { built=1; shift; }
release=${1:?a release: bookworm, trixie or sid}
shift
[ $# -gt 0 ] || set -- "make build" "make demo OUT=target/out.png" "make test"
root=$PWD/target/debian/$release
target=$root-target
sysroot=$(rustc --print sysroot)
cargo_home=${CARGO_HOME:-$HOME/.cargo}
[ "$sysroot" != /usr ] || { echo "tools/debian.sh: Rust must be of rustup" >&2; exit 1; }
. tools/setup/packages.sh

make_root() {
    rm -rf "$root.new"
    mkdir -p "$root.new"
    debootstrap --variant=minbase --include=make,gcc,libc6-dev "$release" "$root.new" \
        >"$root.log" || { tail -n 5 "$root.log" >&2; return 1; }
    # A mirror that stands still serves lists of the past.
    echo 'Acquire::Check-Valid-Until "false";' >"$root.new/etc/apt/apt.conf.d/check-valid-until"
    mv "$root.new" "$root"
}

# Mounts a folder of this machine, or another in its place, where the root has the same path.
mount_folder() {
    mkdir -p "$root$1"
    mount --rbind "${2:-$1}" "$root$1"
}

in_root() {
    chroot "$root" env -u TMPDIR -u KILN_CACHE -u KILN_DEBIAN_INSIDE HOME=/root \
        PATH="$sysroot/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
        CARGO_HOME="$cargo_home" CARGO_NET_OFFLINE=true sh -c "cd '$PWD' && $1"
}

minutes=$(mktemp)
trap 'echo; echo "Minutes, $release:"; cat "$minutes"; rm "$minutes"' EXIT
trap 'exit 130' INT TERM

# Runs a command under a name, and notes how long it took.
stage() {
    name=$1
    shift
    echo "$release: $name"
    begun=$(date +%s)
    result=""
    "$@" || result=", failed"
    echo "$(($(date +%s) - begun)) $name$result" |
        awk '{ printf "%7.1f  %s\n", $1 / 60, substr($0, index($0, " ") + 1) }' >>"$minutes"
    [ -z "$result" ]
}

install_packages debootstrap
[ -d "$root" ] || stage debootstrap make_root
cargo fetch --locked
if [ -n "$built" ] && [ ! -e "$target" ]; then
    mkdir -p "$target.new"
    cp -a target/release "$target.new"
    mv "$target.new" "$target"
fi
mkdir -p "$target"
for folder in /proc /sys /dev "$sysroot" "$cargo_home"; do
    mount_folder "$folder"
done
mkdir -p "$root$PWD"
mount --bind "$PWD" "$root$PWD"
mount_folder "$PWD/target" "$target"
for command in "$@"; do
    stage "$command" in_root "$command"
done
