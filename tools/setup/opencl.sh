#!/bin/sh
# Installs an OpenCL CPU driver (PoCL) on Debian and Ubuntu, if the machine has no driver.
# With --tests it installs PoCL in any case, and what else the tests use: oclgrind, chromium (for the
# page of kiln inspect --html), a C compiler and a JDK.
set -eu
. "$(dirname "$0")/packages.sh"

packages=""
if [ "${1:-}" = "--tests" ]; then
    packages="pocl-opencl-icd ocl-icd-libopencl1 oclgrind chromium"
    command -v gcc >/dev/null || packages="$packages gcc libc6-dev"
    command -v javac >/dev/null || packages="$packages default-jdk-headless"
elif ! ls /etc/OpenCL/vendors/*.icd >/dev/null 2>&1; then
    packages="pocl-opencl-icd ocl-icd-libopencl1"
fi
# shellcheck disable=SC2086
install_packages $packages
