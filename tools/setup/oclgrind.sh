#!/bin/sh
# Runs the small kernel tests under oclgrind, a simulator that finds invalid memory accesses and data
# races. The tests load it as an OpenCL driver. It stops at the first error. A release of Debian
# without oclgrind leaves these tests out.
set -eu
cd "$(dirname "$0")/../.."
. tools/setup/packages.sh
if ! is_installed oclgrind && ! is_offered oclgrind; then
    echo "This release of Debian has no oclgrind: the kernel tests under it are left out." >&2
    exit 0
fi
install_packages oclgrind
driver=$(dpkg -L oclgrind | grep "liboclgrind-rt-icd.so$" | head -n 1)
list=$(mktemp -d)
trap 'rm -rf "$list"' EXIT
echo "$driver" >"$list/oclgrind.icd"
OCL_ICD_VENDORS="$list" OCLGRIND_DATA_RACES=1 OCLGRIND_STOP_ERRORS=1 \
    TEST_ARGS="small_ --test-threads=1" tools/test.sh "/kernels-templates "
