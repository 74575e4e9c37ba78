#!/bin/sh
# Runs the small kernel tests under oclgrind, a simulator that finds invalid memory accesses and data
# races. The tests load it as an OpenCL driver. It stops at the first error.
set -eu
driver=$(dpkg -L oclgrind 2>/dev/null | grep "liboclgrind-rt-icd.so$" | head -n 1)
[ -n "$driver" ] || { echo "oclgrind is not installed: tools/setup/opencl.sh --tests" >&2; exit 1; }
list=$(mktemp -d)
trap 'rm -rf "$list"' EXIT
echo "$driver" >"$list/oclgrind.icd"
OCL_ICD_VENDORS="$list" OCLGRIND_DATA_RACES=1 OCLGRIND_STOP_ERRORS=1 \
    cargo test --release --locked -p kiln-kernels --tests -- small_ --test-threads=1
