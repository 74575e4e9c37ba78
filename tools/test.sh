#!/bin/sh
# Runs every test of the workspace, three programs at a time, as drivers compile kernels on one
# thread, and tests wait now and then. The small kernel tests run once more under oclgrind, where it
# is installed: a simulator that finds invalid memory accesses and data races, and stops at the first.
#
#   tools/test.sh [REGEX]     only the test programs whose line "FOLDER PROGRAM DRIVER" matches REGEX
#
# DRIVER is oclgrind or empty. Test programs are run by themselves, since cargo, asked for a part of
# the workspace, builds crates anew with the features of that part.
set -eu
cd "$(dirname "$0")/.."

# Programs that run for long, the longest first. Others start after them, so that no long one is left
# at the end.
LONG="emoji full_size robust serve injected contraction:oclgrind contraction faults chain:oclgrind bench limits \
attention group_norm pointwise group_norm:oclgrind attention:oclgrind plans chain striped python.sh mali rows"

# Runs one test program, and prints what it said when it is done.
run() {
    logs=$1 folder=$2 program=$3 driver=${4:-}
    name=$(basename "$program")${driver:+ under $driver}
    begun=$(date +%s)
    set --
    if [ -n "$driver" ]; then
        export OCL_ICD_VENDORS="$logs/vendors" OCLGRIND_DATA_RACES=1 OCLGRIND_STOP_ERRORS=1
        set -- small_ --test-threads=1
    fi
    (cd "$folder" && "$program" "$@") </dev/null >"$logs/$name.log" 2>&1 ||
        echo "$name" >>"$logs/failed"
    times >"$logs/$name.times"
    {
        echo
        # The second line is of the children, user and system.
        echo "$folder: $name, $(($(date +%s) - begun)) s, processor $(sed -n 2p "$logs/$name.times")"
        cat "$logs/$name.log"
    } >"$logs/$name.said"
    cat "$logs/$name.said"
}
[ "${1:-}" != --run ] || { shift; run "$@"; exit; }

logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
cargo test --release --locked --workspace --no-run --message-format=json-render-diagnostics >"$logs/built"
# Folder and program of each test binary, as cargo would run them.
sed -n 's|.*"manifest_path":"\([^"]*\)/Cargo.toml".*"profile":{[^}]*"test":true}.*"executable":"\([^"]*\)".*|\1 \2|p' \
    "$logs/built" | sort >"$logs/programs"
# The package for Python is tested as one program.
echo "$PWD/runtime/python $PWD/tools/python.sh" >>"$logs/programs"
oclgrind=$(dpkg -L oclgrind 2>/dev/null | grep "liboclgrind-rt-icd.so$" | head -n 1)
if [ -n "$oclgrind" ]; then
    # The tests load it as an OpenCL driver.
    mkdir "$logs/vendors"
    echo "$oclgrind" >"$logs/vendors/oclgrind.icd"
    sed -n '/\/kernels-templates /s/$/ oclgrind/p' "$logs/programs" >"$logs/simulated"
    cat "$logs/simulated" >>"$logs/programs"
fi
grep -E -e "${1:-}" "$logs/programs" >"$logs/chosen" || { echo "cargo lists no such tests" >&2; exit 1; }
awk -v long="$LONG" '
    BEGIN { n = split(long, names, " "); for (i = 1; i <= n; i++) rank[names[i]] = i }
    {
        name = $2; sub(/.*\//, "", name); sub(/-[0-9a-f]*$/, "", name)
        key = name ($3 ? ":" $3 : "")
        print (key in rank ? rank[key] : n + 1), $0
    }' "$logs/chosen" | sort -s -n -k 1,1 | cut -d " " -f 2- |
    xargs -P 3 -L 1 tools/test.sh --run "$logs"
if [ -s "$logs/failed" ]; then
    echo "failed:" >&2
    cat "$logs/failed" >&2
    exit 1
fi
# Bundles and checkpoints of tests that passed are of no more use, and take gigabytes.
find "${CARGO_TARGET_DIR:-target}/tmp" -type f '(' -name '*.kiln' ! -path '*/robust/cache.kiln' \
    -o -name '*.safetensors*' ')' -delete
