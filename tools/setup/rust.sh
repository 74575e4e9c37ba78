#!/bin/sh
# Checks that the Rust which Cargo.toml asks for is there, and a linker.
set -eu
needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml")
found=$(cargo --version >/dev/null 2>&1 && rustc --version 2>/dev/null) || found=""
found=$(echo "$found" | sed -n 's/^rustc \([0-9.]*\).*/\1/p')
if [ "$(printf '%s\n' "$needed" "${found:-0}" | sort -V | head -n 1)" != "$needed" ]; then
    echo "Kiln needs Rust $needed or later, and finds ${found:-none}: install or update it with" \
        "rustup (https://rustup.rs)" >&2
    exit 1
fi
command -v cc >/dev/null || { echo "Rust needs a linker: apt-get install gcc libc6-dev" >&2; exit 1; }
