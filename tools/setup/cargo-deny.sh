#!/bin/sh
# Installs cargo-deny if it is not there, which takes 3 min 20 s of processor time.
set -eu
cargo deny --version >/dev/null 2>&1 || cargo install --quiet --locked cargo-deny@0.20.2
