#!/bin/sh
# Runs every test of the workspace, in two lanes at a time, as drivers compile kernels on one thread.
# The lane of the command's tests talks; the other one's words follow when it is done. Binaries run in
# alphabetical order, so that later ones find the small model's kernels in the cache.
set -eu
cd "$(dirname "$0")/.."
run() { cargo test --release --locked --no-fail-fast "$@"; }

run --workspace --no-run
run -p kiln --test full_size --no-run
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{
    good=true
    run -p kiln --test full_size || good=false
    run --workspace --exclude kiln || good=false
    $good
} </dev/null >"$log" 2>&1 &
rest=$!
failed=
run -p kiln </dev/null || failed="tests of the command"
wait "$rest" || failed="${failed:+$failed, }tests of the libraries or at full size"
cat "$log"
[ -z "$failed" ] || { echo "failed: $failed" >&2; exit 1; }
