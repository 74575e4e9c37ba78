#!/bin/sh
# Installs an OpenCL CPU driver (PoCL) on Debian and Ubuntu, if target/release/kiln finds no device.
# With --tests it installs PoCL in any case, and what else the tests use: chromium (for the page of
# kiln inspect --html), kill, a C compiler, a JDK and Python's virtual environments.
set -eu
cd "$(dirname "$0")/../.."
. tools/setup/packages.sh

packages=""
if [ "${1:-}" = "--tests" ]; then
    packages="pocl-opencl-icd ocl-icd-libopencl1 chromium procps python3-venv"
    command -v gcc >/dev/null || packages="$packages gcc libc6-dev"
    command -v javac >/dev/null || packages="$packages default-jdk-headless"
elif ! target/release/kiln devices 2>/dev/null | grep -q .; then
    packages="pocl-opencl-icd ocl-icd-libopencl1"
fi
# shellcheck disable=SC2086
install_packages $packages
