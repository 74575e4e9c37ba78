#!/bin/sh
# Makes the Python environment of the tests, target/python, with the package of runtime/python in it.
# KILN_LIBRARY is the library to put there; without it, cargo builds one.
set -eu
cd "$(dirname "$0")/../.."
venv=${CARGO_TARGET_DIR:-target}/python
wanted=runtime/python/tests/requirements.txt
if ! cmp -s "$wanted" "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install -q --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$venv/requirements.txt"
fi
"$venv/bin/pip" install -q --disable-pip-version-check --no-deps --no-build-isolation \
    --force-reinstall ./runtime/python
