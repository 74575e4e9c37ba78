#!/bin/sh
# Runs every test of the workspace in two lanes at a time, as drivers compile kernels on one thread.
#
#   tools/test.sh [REGEX]     only the test programs whose line "FOLDER PROGRAM" matches REGEX
#
# TEST_ARGS holds arguments of each program, such as part of the names of its tests.
#
# The command's tests run in order, as one job: later ones find the small model's kernels in the
# cache. Test programs are run by themselves, since cargo, asked for a part of the workspace, builds
# crates anew with the features of that part.
set -eu
cd "$(dirname "$0")/.."

# Runs the tests of a list, and prints what each said when it is done.
job() {
    while read -r folder program; do
        name=$(basename "$program")
        begun=$(date +%s)
        (cd "$folder" && "$program" ${TEST_ARGS:-}) </dev/null >"$1.log" 2>&1 ||
            echo "$name" >>"$(dirname "$1")/failed"
        {
            echo
            echo "$folder: $name, $(($(date +%s) - begun)) s"
            cat "$1.log"
        } >"$1.said"
        cat "$1.said"
    done <"$1"
}
[ "${1:-}" != --job ] || { job "$2"; exit; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
cargo test --release --locked --workspace --no-run --message-format=json-render-diagnostics >"$logs/built"
# Folder and program of each test binary, as cargo would run them.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1 \2|p' \
    "$logs/built" | sort | grep -E -e "${1:-}" >"$logs/tests" ||
    { echo "cargo lists no such tests" >&2; exit 1; }
# The command's tests are the first job, contractions, which take longest, the second.
grep -e '/tools/kiln ' "$logs/tests" >"$logs/job-0" || true
grep -vxFf "$logs/job-0" "$logs/tests" >"$logs/rest" || true
grep -e '/contraction-' "$logs/rest" >"$logs/job-1" || true
grep -vxFf "$logs/job-1" "$logs/rest" | split -l 1 -a 3 - "$logs/job-2-" || true
printf '%s\n' "$logs"/job-* | xargs -P 2 -n 1 tools/test.sh --job
if [ -s "$logs/failed" ]; then
    echo "failed:" $(cat "$logs/failed") >&2
    exit 1
fi
[ -n "${1:-}" ] || cargo test --release --locked --workspace --doc
# Bundles and checkpoints of tests that passed are of no more use, and take gigabytes.
find "${CARGO_TARGET_DIR:-target}/tmp" -type f '(' -name '*.kiln' ! -path '*/robust/cache.kiln' \
    -o -name '*.safetensors*' ')' -delete
