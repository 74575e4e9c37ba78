#!/bin/sh
# Unpacks Mesa's OpenCL compilers for mobile GPUs into target/mali, from Debian packages alone.
#
#   root-arm64   an arm64 Debian with the compiler for Mali, which the emulator of qemu-user runs
#   root-amd64   an amd64 Debian with the compiler for Adreno
#
# Both have Mesa's stand-ins for the GPUs (package mesa-drm-shim): kernels are compiled, none runs.
# The script needs root on Debian, x86-64, and 0.6 GB of disk. A second run finds the roots.
set -eu
cd "$(dirname "$0")/../.."
folder=$PWD/target/mali
suite=trixie-backports
here=$PWD/tools/mali
[ "$(id -u)" = 0 ] || { echo "tools/mali: root unpacks the compilers' roots" >&2; exit 1; }
[ ! -e "$folder/complete" ] || exit 0
. tools/setup/packages.sh
install_packages qemu-user-static gcc gcc-aarch64-linux-gnu libc6-dev libc6-dev-arm64-cross \
    opencl-c-headers python3
mirror=$(sed -n 's/^URIs: *\([^ ]*\).*/\1/p; s/^deb \(\[[^]]*\] \)\{0,1\}\([^ ]*\) .*/\2/p' \
    /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list 2>/dev/null | head -n 1)
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT

# Downloads packages of an architecture with their dependencies, and unpacks them. apt has lists and
# a status of its own, so that this machine's stay as they are.
unpack() {
    arch=$1
    shift
    root=$folder/root-$arch
    state=$apt/$arch
    rm -rf "$root"
    mkdir -p "$state/lists/partial" "$state/cache/archives/partial"
    touch "$state/status"
    for name in trixie "$suite"; do
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $name main"
    done >"$state/sources"
    cat >"$state/conf" <<END
Dir::Etc::SourceList "$state/sources";
Dir::Etc::SourceParts "-";
Dir::Etc::Parts "-";
Dir::Etc::PreferencesParts "-";
Dir::State "$state";
Dir::State::status "$state/status";
Dir::Cache "$state/cache";
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
Acquire::Check-Valid-Until "false";
END
    APT_CONFIG=$state/conf apt-get -qq update
    APT_CONFIG=$state/conf apt-get -qq install -y --no-install-recommends --download-only \
        -t "$suite" "$@" >/dev/null
    for name in bin sbin lib lib64; do
        mkdir -p "$root/usr/$name"
        ln -sfn "usr/$name" "$root/$name"
    done
    mkdir -p "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/in"
    for package in "$state"/cache/archives/*.deb; do
        dpkg-deb -x "$package" "$root"
    done
    basename "$state"/cache/archives/mesa-opencl-icd_*.deb | cut -d_ -f2 >"$root/mesa-version"
}

build() {
    "$1" -O1 -Wall -I/usr/include -Wl,--allow-shlib-undefined "$here/build.c" \
        -o "$2/usr/bin/build-kernels" "$2/usr/lib/$3/libOpenCL.so.1"
}

echo "Unpacking Mesa's compilers for Mali and Adreno" >&2
for arch in arm64 amd64; do
    unpack $arch mesa-opencl-icd mesa-drm-shim ocl-icd-libopencl1 libc-bin
done
cp "$(command -v qemu-aarch64-static)" "$folder/root-arm64/usr/bin/"
build aarch64-linux-gnu-gcc "$folder/root-arm64" aarch64-linux-gnu
build gcc "$folder/root-amd64" x86_64-linux-gnu
touch "$folder/complete"
