#!/bin/sh
# Installs an OpenCL CPU driver (PoCL) on Debian and Ubuntu, if the machine has no driver.
# With --tests it installs PoCL in any case, and what else the tests use: oclgrind, chromium (for the
# page of kiln inspect --html), a C compiler and a JDK.
set -eu

packages=""
if [ "${1:-}" = "--tests" ]; then
    packages="pocl-opencl-icd ocl-icd-libopencl1 oclgrind chromium"
    command -v gcc >/dev/null || packages="$packages gcc libc6-dev"
    command -v javac >/dev/null || packages="$packages default-jdk-headless"
elif ! ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1; then
    packages="pocl-opencl-icd ocl-icd-libopencl1"
fi
missing=""
for package in $packages; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q "install ok installed" ||
        missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "No OpenCL driver found. Install one (for example PoCL) with your package manager." >&2
    exit 1
fi
sudo=""
[ "$(id -u)" = 0 ] || sudo="sudo"
echo "Installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# shellcheck disable=SC2086
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null
