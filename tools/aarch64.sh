#!/bin/sh
# Tests the runtime on arm64, emulated by QEMU.
#
#   tools/aarch64.sh [FILTER]     only the tests whose names contain FILTER
#
# The script cross-compiles kiln-run with Debian's toolchain, unpacks an arm64 Debian with PoCL, and runs
# tools/kiln/tests/aarch64.rs, which starts kiln-run there. It needs root on Debian, x86-64. Everything is
# under target/aarch64, and a second run reuses it. Mounts are made in a mount namespace of their own, so
# that they end with the script.
set -eu
cd "$(dirname "$0")/.."
target=$PWD/target/aarch64
root=$target/root

build() {
    RUSTC=$(dpkg -L rustc-web | grep '/bin/rustc$' | head -n 1) \
        CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
        cargo build --locked --profile device --target aarch64-unknown-linux-gnu \
        --target-dir "$target" -p kiln-runtime --bin kiln-run --no-default-features --features cli
}

# This machine unpacks the packages. The emulated one would take minutes to install them, and nothing
# here needs their scripts.
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

# Runs inside the mount namespace.
run_tests() {
    handlers=/proc/sys/fs/binfmt_misc
    [ -e $handlers/register ] || mount -t binfmt_misc none $handlers
    if [ ! -e $handlers/qemu-aarch64 ] && [ ! -e $handlers/kiln-aarch64 ]; then
        # Flag F opens the emulator now, so that programs inside the root find it too.
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
. tools/setup/packages.sh
dpkg --add-architecture arm64
install_packages rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross \
    debootstrap qemu-user-static
build
make_root
unshare --mount "$0" --inside "$@"
