#!/bin/bash
# Tries the OpenCL driver of this machine with the model that ships, for docs/benchmarks/starting.md.
#
#   tools/drivers.sh NAME
#
# The device is the one that `auto` means. Results go to target/drivers/NAME: the report of `kiln doctor`, and of two
# runs, one from empty caches and one after it, their times, and the picture as numbers.
# tools/compare/drivers.py makes the table of them. It needs target/release/kiln (make build).
set -euo pipefail
cd "$(dirname "$0")/.."
name=${1:?a name of the driver}
kiln=target/release/kiln
out=target/drivers/$name
rm -rf "$out"
mkdir -p "$out/pocl"
export KILN_CACHE=$PWD/$out/cache POCL_CACHE_DIR=$PWD/$out/pocl
# NVIDIA's driver keeps kernels in a cache of its own.
export CUDA_CACHE_PATH=$PWD/$out/nvidia
# Seconds of wall clock, and of the processor in this process and in those that it started.
TIMEFORMAT="%R %U %S"

# Says how a run ended that made no picture.
ended() {
    [ "$2" != 124 ] || echo "no picture in 30 minutes" >>"$out/$1.log"
    tail -n 1 "$out/$1.log" >&2
}

timeout 1200 "$kiln" doctor --json >"$out/doctor.json" || echo "doctor: not fit" >&2
"$kiln" compile --model emoji-256 --no-prepare -o "$out/emoji.kiln" >"$out/compile.log"
for run in cold warm; do
    { time timeout 1800 "$kiln" run "$out/emoji.kiln" --prompt "a slice of pizza on a blue background" \
        --latent models/emoji-256-golden/1-init.npy --dump "$out/$run" --report "$out/$run.json" \
        -o "$out/$run.png" 2>"$out/$run.log"; } 2>"$out/$run.time" || ended "$run" $?
done
rm -rf "$out/cache" "$out/pocl" "$out/nvidia" "$out/emoji.kiln"
