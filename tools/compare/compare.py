#!/usr/bin/env python3
"""Times a network in Kiln and in other engines, in turn.

  python tools/compare/compare.py sd21.kiln --network unet decoder --engine torch openvino --pairs 5

The script starts `kiln bench networks --on-request` and a worker of the other engine, and asks them in
turn. It prints medians and the median ratio of the pairs, by the wall clock and by processor time.
Other programs on the machine disturb processor time less. The batch is that of the bundle. Engines
that are not installed are reported and left out. Run it with the Python that has the engines; worker.py
says which packages.

stable-diffusion.cpp is a program of its own. With --sd-cpp PROGRAM --sd-weights FILE the script prints its
time for one sampler step of the whole picture, beside two passes of the U-Net.
"""

import argparse
import json
import os
import re
import shlex
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))


class Worker:
    """A process that answers each line with the seconds of a run."""

    def __init__(self, command):
        self.errors = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            bufsize=1)
        self.ready = self.answer()

    def answer(self):
        line = self.process.stdout.readline()
        if not line:
            self.errors.seek(0)
            raise RuntimeError((self.errors.read().strip().splitlines() or ["no answer"])[-1])
        return json.loads(line)

    def run(self, request="run"):
        self.process.stdin.write(request + "\n")
        self.process.stdin.flush()
        return self.answer()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def kiln(arguments, network):
    return [arguments.kiln, "bench", "networks", arguments.bundle, "--network", network,
            "--on-request", "--device", arguments.device]


def peer(arguments, engine, network, batch):
    engine, *options = engine.split("+")
    command = [sys.executable, os.path.join(HERE, "worker.py"), engine, network,
               "--batch", str(batch), "--dtype", arguments.dtype]
    command += [f"--{option}" for option in options]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    if arguments.folder:
        command += ["--folder", arguments.folder]
    return command


def compare(name, ours, theirs, pairs):
    """Runs both in turn and prints a line."""
    first, second = [], []
    for _ in range(pairs):
        first.append(ours.run())
        second.append(theirs.run())

    def median(runs, key):
        return statistics.median(run[key] for run in runs)

    def ratio(key):
        return statistics.median(a[key] / b[key] for a, b in zip(first, second) if b[key])

    engine = f"{theirs.ready['engine']} {theirs.ready['version']}"
    print(f"{name:26} kiln {median(first, 'seconds'):8.3f} s  {engine:24} "
          f"{median(second, 'seconds'):8.3f} s  kiln/other {ratio('seconds'):5.2f} wall "
          f"{ratio('processor_seconds'):5.2f} processor  ({pairs} pairs)", flush=True)


def stable_diffusion_cpp(arguments):
    """Seconds of a sampler's step, as the program says them."""
    command = shlex.split(arguments.sd_cpp) + [
        "-m", arguments.sd_weights, "-p", "a lighthouse", "-W", "512", "-H", "512", "--steps", "2",
        "--cfg-scale", "7.5", "-o", os.devnull]
    log = subprocess.run(command, capture_output=True, text=True)
    found = re.findall(r"([0-9.]+)s/it", log.stdout + log.stderr)
    if not found:
        return print("stable-diffusion.cpp: its output names no seconds a step")
    print(f"stable-diffusion.cpp: {found[-1]} s a step of both branches of guidance")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--network", nargs="+", default=["text_encoder", "unet", "decoder"])
    parser.add_argument("--engine", nargs="+", default=["torch", "onnxruntime", "openvino"],
                        help="with options behind a plus sign: torch+channels-last, torch+compiled")
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16", "bf16"])
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of the other engines [default: all]")
    parser.add_argument("--kiln", default="target/release/kiln")
    parser.add_argument("--device", default="auto", help="Kiln's OpenCL device")
    parser.add_argument("--folder", help="where ONNX files are kept [default: made anew]")
    parser.add_argument("--sd-cpp", help="command line of stable-diffusion.cpp")
    parser.add_argument("--sd-weights")
    arguments = parser.parse_args()
    plan = json.loads(subprocess.run(
        [arguments.kiln, "inspect", arguments.bundle, "--json"], capture_output=True, text=True,
        check=True).stdout)
    batches = {"text_encoder": 2, "unet": plan["manifest"]["guidance_batch"], "decoder": 1}
    for network in arguments.network:
        ours = Worker(kiln(arguments, network))
        for engine in arguments.engine:
            try:
                theirs = Worker(peer(arguments, engine, network, batches[network]))
            except RuntimeError as error:
                print(f"{network}: {engine} left out: {error}", flush=True)
                continue
            compare(f"{network}, batch {batches[network]}", ours, theirs, arguments.pairs)
            theirs.close()
        ours.close()
    if arguments.sd_cpp:
        stable_diffusion_cpp(arguments)


if __name__ == "__main__":
    main()
