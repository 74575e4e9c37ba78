#!/bin/sh
# Installs oclgrind, under which the kernel tests run once more. A release of Debian without it
# leaves these tests out.
set -eu
cd "$(dirname "$0")/../.."
. tools/setup/packages.sh
if is_installed oclgrind; then
    exit 0
elif is_offered oclgrind; then
    install_packages oclgrind
else
    echo "This release of Debian has no oclgrind: the kernel tests under it are left out." >&2
fi
