#!/bin/sh
# Runs every test of the workspace in two lanes at a time, as drivers compile kernels on one thread.
#
#   tools/test.sh [REGEX]     only the test programs whose line "FOLDER PROGRAM" matches REGEX
#
# TEST_ARGS holds arguments of each program, such as part of the names of its tests.
#
# The command's tests run in order: later ones find the small model's kernels in the cache. Test
# programs are run by themselves, since cargo, asked for a part of the workspace, builds crates anew
# with the features of that part.
set -eu
cd "$(dirname "$0")/.."
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
cargo test --release --locked --workspace --no-run --message-format=json-render-diagnostics >"$logs/built"
# Folder and program of each test binary, as cargo would run them.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1 \2|p' \
    "$logs/built" | sort | grep -E -e "${1:-}" >"$logs/tests" ||
    { echo "cargo lists no such tests" >&2; exit 1; }
# The tests of attention make the lanes alike.
grep -e '/tools/kiln ' -e '/runtime ' -e '/attention-' "$logs/tests" >"$logs/command" || true
grep -vxFf "$logs/command" "$logs/tests" >"$logs/rest" || true

# Runs the tests of a list, and prints what each said when it is done.
lane() {
    while read -r folder program; do
        name=$(basename "$program")
        begun=$(date +%s)
        (cd "$folder" && "$program" ${TEST_ARGS:-}) </dev/null >"$logs/$name" 2>&1 || echo "$name" >>"$logs/failed"
        {
            echo
            echo "$folder: $name, $(($(date +%s) - begun)) s"
            cat "$logs/$name"
        } >"$logs/$name.said"
        cat "$logs/$name.said"
    done <"$1"
}

lane "$logs/command" &
lane "$logs/rest"
wait
if [ -s "$logs/failed" ]; then
    echo "failed:" $(cat "$logs/failed") >&2
    exit 1
fi
[ -n "${1:-}" ] || cargo test --release --locked --workspace --doc
