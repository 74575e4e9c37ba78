#!/usr/bin/env python3
"""Machine code of Kiln's kernels for mobile GPUs. `make mali` calls this script.

  tools/mali/code.py [--mali N] [--bless]

The kernels are those of the plans of sd21-base and emoji-256 in FP16, FP32 and INT8. Mesa's compilers,
which tools/mali/setup.sh unpacks into target/mali, compile each distinct one once: the machine code is
kept in target/mali/code by source, options and compiler. The results are held against golden.tsv beside
this file, if they are of the same Mesa; every difference is printed, and any is an error. --bless writes
golden.tsv, and from it docs/benchmarks/mali-code.md and the planner's tables in compiler/profiles/code.

--mali N compiles, for each Mali, only the N kernels of sd21-base in FP16 with most predicted time.
"""

import argparse
import csv
import gzip
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import machine
import report

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target/mali"
MODELS = ("sd21-base", "emoji-256")
PRECISIONS = ("fp16", "fp32", "int8")
# Kernels of a process. Results are kept after each, so that little is lost when the script is stopped.
BATCH = 8


class Compiler:
    """Mesa's compiler for one GPU in a root, with a stand-in for the GPU."""

    def __init__(self, name, profile, arch, environment, start, options):
        self.name, self.profile, self.environment, self.options = name, profile, environment, options
        self.root = FOLDER / f"root-{arch}"
        self.version = (self.root / "mesa-version").read_text().strip()
        self.libraries = f"/usr/lib/{ {'arm64': 'aarch64', 'amd64': 'x86_64'}[arch] }-linux-gnu"
        self.start = start
        # OpenCL's built-in functions, compiled for the GPU.
        self.built_in = FOLDER / f"built-in-{name}-{self.version}"
        self.read_code = {"mali-g78": machine.mali, "adreno": machine.adreno}[profile]

    def run(self, options, names, cache):
        """Builds files of the root's folder /in, and returns what the driver prints."""
        shim, environment = f"{self.libraries}/{self.environment['SHIM']}", {
            "PATH": "/usr/sbin:/usr/bin",
            "XDG_CACHE_HOME": f"/tmp/{Path(cache).name}",
            "OCL_ICD_VENDORS": f"{self.libraries}/libRusticlOpenCL.so.1",
            **self.environment,
        }
        enter = "for f in proc sys dev; do mount --bind /$f $0/$f; done; exec chroot $0 \"$@\""
        command = ["unshare", "--mount", "sh", "-c", enter, str(self.root)]
        command += [part.replace("SHIM", shim) for part in self.start]
        command += ["/usr/bin/build-kernels", f"{options} {self.options}".strip()]
        done = subprocess.run(command + [f"/in/{name}" for name in names], env=environment, text=True,
                              errors="replace", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout

    def prepare(self):
        """Compiles the built-in functions, if that was not done: 75 s of processor time for a Mali."""
        if self.built_in.exists():
            return
        (self.root / "in/first.cl").write_text("__kernel void first(__global float *a) { a[0] = 1; }\n")
        with tempfile.TemporaryDirectory(dir=self.root / "tmp") as cache:
            said = self.run("-w", ["first.cl"], cache)
            if "DONE" not in said:
                sys.exit(f"{self.name}: the compiler does not run: {said[-2000:]}")
            shutil.copytree(cache, self.built_in)

    def compile(self, options, sources):
        """The machine code of sources by key, by one process. Mesa prints nothing of kernels that its cache
        holds, so each process begins with a copy of the built-in functions alone."""
        for key, source in sources.items():
            (self.root / f"in/{key}.cl").write_text(source)
        with tempfile.TemporaryDirectory(dir=self.root / "tmp") as cache:
            shutil.copytree(self.built_in, cache, dirs_exist_ok=True)
            said = self.run(options, [f"{key}.cl" for key in sources], cache)
        found = machine.split(said)
        # A kernel on which the compiler crashes ends the process, and those after it say nothing.
        lost = [key for key in sources if f"/in/{key}.cl" not in found] if len(sources) > 1 else []
        for key in sources:
            (self.root / f"in/{key}.cl").unlink()
        code = {key: machine.trim(found.get(f"/in/{key}.cl", said)) for key in sources if key not in lost}
        for key in lost:
            code |= self.compile(options, {key: sources[key]})
        return code


def compilers():
    emulator = ("/usr/bin/qemu-aarch64-static", "-E", "LD_PRELOAD=SHIM")
    mali = {"SHIM": "libpanfrost_noop_drm_shim.so", "RUSTICL_ENABLE": "panfrost",
            "BIFROST_MESA_DEBUG": "shaders,shaderdb"}
    loader = ("/lib64/ld-linux-x86-64.so.2", "--preload", "SHIM")
    adreno = {"SHIM": "libfreedreno_noop_drm_shim.so", "RUSTICL_ENABLE": "freedreno",
              "FD_MESA_DEBUG": "shaderdb", "IR3_SHADER_DEBUG": "cs"}
    return [
        # A Mali-G57, which has the instruction set of the G78, and a G610, which has the next one.
        Compiler("v9", "mali-g78", "arm64", {**mali, "PAN_GPU_ID": "9093"}, emulator, ""),
        Compiler("v10", "mali-g78", "arm64", {**mali, "PAN_GPU_ID": "a867"}, emulator, ""),
        Compiler("a630", "adreno", "amd64", {**adreno, "FD_GPU_ID": "630"}, loader, ""),
        Compiler("a730", "adreno", "amd64", {**adreno, "FD_GPU_ID": "730"}, loader, ""),
    ]


def dump(profile, model, precision):
    """The kernels of a plan: the lines of kernels.tsv with their sources, most predicted time first."""
    folder = FOLDER / f"kernels/{profile}/{model}-{precision}"
    shutil.rmtree(folder, ignore_errors=True)
    command = ["compile", "--model", model, "--device", profile, "--precision", precision]
    command += ["--budget-sweep", "1GiB..1GiB", "--kernels", str(folder)]
    subprocess.run([str(ROOT / "target/release/kiln"), *command], check=True, stdout=subprocess.DEVNULL)
    with open(folder / "kernels.tsv") as file:
        kernels = list(csv.DictReader(file, delimiter="\t"))
    picture_ns = sum(int(kernel["picture_ns"]) for kernel in kernels)
    for kernel in kernels:
        source = (folder / kernel["file"]).read_text()
        # How often each loop of a kernel runs, in their order. The code does not depend on it.
        kernel["times"] = [int(times) for times in re.findall(r" /\* (\d+) times \*/", source)]
        kernel["source"] = re.sub(r" /\* \d+ times \*/", "", source)
        kernel["percent"] = 100 * int(kernel["picture_ns"]) / picture_ns
        kernel["network"] = f"{model} {precision}"
    return sorted(kernels, key=lambda kernel: -kernel["percent"])


def identify(kernels):
    """The distinct kernels. Each gets a name that stays the same when its source changes: its network,
    its entry point without the source's suffix, and its first launch."""
    seen, sources, distinct = {}, set(), []
    for kernel in kernels:
        if kernel["source"] in sources:
            continue
        sources.add(kernel["source"])
        name = (kernel["network"], kernel["entry"].rsplit("_", 1)[0], kernel["launch"])
        seen[name] = seen.get(name, 0) + 1
        kernel["name"] = "\t".join(name) + (f" #{seen[name]}" if seen[name] > 1 else "")
        distinct.append(kernel)
    return distinct


def key_of(compiler, kernel):
    text = "\0".join([compiler.name, compiler.version, compiler.options, kernel["options"], kernel["source"]])
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def results(compiler, kernels):
    """The result of each kernel, by name. Compiles those that target/mali/code does not have."""
    folder = FOLDER / "code"
    folder.mkdir(exist_ok=True)
    keys = {kernel["name"]: key_of(compiler, kernel) for kernel in kernels}
    missing = {}
    for kernel in kernels:
        key = keys[kernel["name"]]
        if not (folder / f"{key}.gz").exists():
            missing.setdefault(kernel["options"], {})[key] = kernel["source"]
    batches = []
    for options, sources in missing.items():
        items = list(sources.items())
        batches += [(options, dict(items[i:i + BATCH])) for i in range(0, len(items), BATCH)]
    if batches:
        count = sum(len(sources) for _, sources in batches)
        print(f"{compiler.name}: compiling {count} of {len(kernels)} kernels", flush=True)
        compiler.prepare()

    def compile_batch(batch):
        for key, code in compiler.compile(*batch).items():
            part = folder / f".{key}.part"
            part.write_bytes(gzip.compress(code.encode()))
            part.rename(folder / f"{key}.gz")

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_batch, batches))
    code = {name: gzip.decompress((folder / f"{key}.gz").read_bytes()) for name, key in keys.items()}
    times = {kernel["name"]: kernel["times"] for kernel in kernels}
    return {name: machine.read(text.decode(), compiler.read_code, times[name]) for name, text in code.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--mali", type=int, metavar="N", help="a sample for Mali")
    parser.add_argument("--bless", action="store_true", help="write the golden file and the tables")
    arguments = parser.parse_args()
    profiles, rows = {}, {}
    for compiler in compilers():
        if compiler.profile not in profiles:
            profiles[compiler.profile] = identify(
                [k for model in MODELS for p in PRECISIONS for k in dump(compiler.profile, model, p)])
        kernels = profiles[compiler.profile]
        if compiler.profile == "mali-g78" and arguments.mali is not None:
            kernels = [k for k in kernels if k["network"] == "sd21-base fp16"][:arguments.mali]
        found = results(compiler, kernels)
        for kernel in kernels:
            name = f"{compiler.name}\t{kernel['name']}"
            rows[name] = report.row(kernel, found[kernel["name"]])
    versions = {f"{c.name} {c.version}" for c in compilers()}
    sampled = {"v9", "v10"} if arguments.mali is not None else set()
    sys.exit(report.finish(rows, sorted(versions), sampled, arguments.bless))


if __name__ == "__main__":
    main()
