#!/bin/sh
# Fuzzes the targets of kiln-fuzz, guided by coverage, and prints a table of what was found.
#
#   tools/fuzz/guided.sh [SECONDS] [JOBS] [TARGET]...     SECONDS for each target, JOBS at a time
#
# Inputs are kept in target/fuzz, and a later run goes on with them. An input that breaks a target is
# in target/fuzz/TARGET/default/crashes or hangs; put it into tools/fuzz/tests/broken/TARGET, where
# `make test` tries it. AFL_FUZZ and KILN_FUZZ name the two programs, if they are not to be built.
set -eu
cd "$(dirname "$0")/../.."
seconds=${1:-60}
jobs=${2:-$(nproc)}
[ $# -lt 2 ] || shift
[ $# -lt 1 ] || shift
if [ -z "${KILN_FUZZ:-}" ]; then
    [ -x "$(command -v cargo-afl)" ] || cargo install --locked cargo-afl@0.18.2
    cargo afl build --release --locked -p kiln-fuzz --features guided --target-dir target/afl
fi
export KILN_FUZZ="${KILN_FUZZ:-target/afl/release/kiln-fuzz}" AFL_FUZZ="${AFL_FUZZ:-cargo afl fuzz}"
# No settings of the machine are touched, and its screen is not painted.
export AFL_SKIP_CPUFREQ=1 AFL_I_DONT_CARE_ABOUT_MISSING_CRASHES=1 AFL_NO_AFFINITY=1 AFL_NO_UI=1
export AFL_AUTORESUME=1 FUZZ_SECONDS="$seconds"
folder=target/fuzz
mkdir -p "$folder"
[ -d "$folder/seeds" ] || "$KILN_FUZZ" --seeds "$folder/seeds"
[ $# -gt 0 ] || set -- $("$KILN_FUZZ" --list)
# At most 1 GiB of addresses and a second an input.
printf '%s\n' "$@" | xargs -P "$jobs" -I TARGET sh -c '
    $AFL_FUZZ -i target/fuzz/seeds/TARGET -o target/fuzz/TARGET -V $FUZZ_SECONDS -m 1024 -t 1000 \
        -- "$KILN_FUZZ" TARGET >target/fuzz/TARGET.log 2>&1 || {
        echo "TARGET: the fuzzer failed:" >&2
        tail -n 5 target/fuzz/TARGET.log >&2
    }'
echo "| target | minutes | inputs | kept | edges reached | crashes | hangs |"
echo "|---|---|---|---|---|---|---|"
for target in "$@"; do
    awk -F ' *: *' -v target="$target" '
        { value[$1] = $2 }
        END {
            printf "| %s | %.0f | %d | %d | %d | %d | %d |\n", target, value["run_time"] / 60,
                value["execs_done"], value["corpus_count"], value["edges_found"],
                value["saved_crashes"], value["saved_hangs"]
        }' "$folder/$target/default/fuzzer_stats"
done
