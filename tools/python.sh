#!/bin/sh
# Tests the Python package with the library and the command that the tests of the workspace built.
set -eu
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
KILN_LIBRARY=$target/release/deps/libkiln_runtime.so
[ "${KILN_LIBRARY#/}" != "$KILN_LIBRARY" ] || KILN_LIBRARY=$PWD/$KILN_LIBRARY
export KILN_LIBRARY
tools/setup/python.sh
pytest=$(realpath -s "$target/python/bin/pytest")
cd runtime/python
export PYTHONDONTWRITEBYTECODE=1
exec "$pytest"
