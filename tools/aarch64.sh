#!/bin/sh
# Runs the runtime on aarch64: cross-compiles kiln-run with Debian's toolchain, unpacks an arm64
# Debian with PoCL, and runs tools/kiln/tests/aarch64.rs, which starts kiln-run in it by emulation.
#
#   tools/aarch64.sh [FILTER]     only the tests whose names contain FILTER
#
# For root on Debian, on x86-64. Everything is under target/aarch64; a second run reuses it. The
# mounts are in a mount namespace of their own, so that they end with this script however it ends.
set -eu
cd "$(dirname "$0")/.."
target=$PWD/target/aarch64
root=$target/root

install_packages() {
    packages="rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross
              debootstrap qemu-user-static"
    missing=""
    for package in $packages; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
            missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    echo "Installing$missing" >&2
    export DEBIAN_FRONTEND=noninteractive
    dpkg --add-architecture arm64
    apt-get update -qq
    # shellcheck disable=SC2086
    apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

build() {
    RUSTC=$(dpkg -L rustc-web | grep '/bin/rustc$' | head -n 1) \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        cargo build --locked --profile device --target aarch64-unknown-linux-gnu \
        --target-dir "$target" -p kiln-runtime --bin kiln-run --no-default-features --features cli
}

# Unpacked by this machine rather than installed by the emulated one, which takes minutes: nothing
# in it needs the packages' scripts.
make_root() {
    [ ! -e "$root/complete" ] || return 0
    echo "Unpacking an arm64 Debian" >&2
    rm -rf "$root"
    codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
    debootstrap --foreign --arch=arm64 --variant=minbase \
        --include=pocl-opencl-icd,ocl-icd-libopencl1 "$codename" "$root" >"$target/debootstrap.log"
    for package in "$root"/var/cache/apt/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
        rm "$package"
    done
    touch "$root/complete"
}

# In the mount namespace.
run_tests() {
    handlers=/proc/sys/fs/binfmt_misc
    [ -e $handlers/register ] || mount -t binfmt_misc none $handlers
    if [ ! -e $handlers/qemu-aarch64 ] && [ ! -e $handlers/kiln-aarch64 ]; then
        # F opens the emulator now, so that it is found from inside of the root too.
        ident='\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
        mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
        printf '%s' ":kiln-aarch64:M::$ident:$mask:$(command -v qemu-aarch64-static):F" \
            >$handlers/register
        trap 'echo -1 >$handlers/kiln-aarch64' EXIT
        trap 'exit 130' INT TERM
    fi
    for folder in proc sys dev; do
        mount --rbind "/$folder" "$root/$folder"
    done
    cp "$target/aarch64-unknown-linux-gnu/device/kiln-run" "$root/usr/bin/kiln-run"
    KILN_AARCH64_ROOT=$root \
        cargo test --release --locked -p kiln --test aarch64 -- --test-threads=1 "$@"
}

if [ "${1:-}" = "--inside" ]; then
    shift
    run_tests "$@"
    exit
fi
[ "$(id -u)" = 0 ] || { echo "tools/aarch64.sh: root makes and mounts the arm64 root" >&2; exit 1; }
mkdir -p "$target"
install_packages
build
make_root
unshare --mount "$0" --inside "$@"
