#!/usr/bin/env python3
"""Times single ops in Kiln and in PyTorch or tinygrad, in turn.

  python tools/compare/ops.py --filter conv3x3 --pairs 5
  python tools/compare/ops.py --dtype fp16 --engine torch tinygrad --json

`kiln bench kernels --on-request` has the list of ops. For each, the script asks Kiln and then runs the same
op in the other engine. It prints medians, the median ratio of the pairs, and both rates.

A time is the median of five samples; a sample is as many calls as take 20 ms. It includes what an engine
does around its kernels, such as allocating the result. GFLOP/s count the work of the op's definition.
GB/s count each input and the output once. Feature maps are tried as NCHW and channels last, and the
faster counts. FP32 is FP32, not TF32. Kiln's weights are packed beforehand, as in a bundle.

PyTorch runs on CUDA if it can (set CUDA_VISIBLE_DEVICES= to keep it from that). tinygrad runs where its
variables say (DEV=CL). With --dtype fp16 all of PyTorch's values are FP16; Kiln on a CPU stores only
weights in FP16. Engines that are not installed are reported and left out.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time

from compare import Worker

SAMPLES, TIMED_SECONDS, LONG_SECONDS = 5, 0.02, 1.0


class Torch:
    """PyTorch's functions."""

    def __init__(self, arguments):
        import torch

        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        torch.set_grad_enabled(False)
        torch.set_num_threads(arguments.threads or os.cpu_count())
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = {"fp32": torch.float32, "fp16": torch.float16}[arguments.dtype]
        self.name = f"torch {torch.__version__} on {self.device}"

    def finish(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def calls(self, op):
        """The ways to compute an op, by name; none if it is not known."""
        functional, kind = self.torch.nn.functional, op["op"]
        x, *others = [self.random(shape) for shape in op["inputs"]]
        if not plain(op):
            return {}
        if kind == "matmul":
            return {"": lambda: functional.linear(x, *others)}
        if kind == "attention":
            # The projections before attention leave heads as columns of a row.
            heads = attribute(op, "heads")
            q, k, v = [t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (x, *others)]
            return {"": lambda: functional.scaled_dot_product_attention(q, k, v)}
        if kind == "layer_norm":
            return {"": lambda: functional.layer_norm(x, x.shape[-1:], *others, 1e-5)}
        if kind == "geglu":
            return {"": lambda: self.geglu(x)}
        if kind == "add":
            return {"": lambda: x + others[0]}
        if kind in ("conv2d", "group_norm", "upsample"):
            formats = {"channels last": self.torch.channels_last, "NCHW": self.torch.contiguous_format}
            return {way: self.picture(op, x, others, f) for way, f in formats.items()}
        return {}

    def random(self, shape):
        # Scaled so that outputs have the magnitude of inputs.
        spread = math.prod(shape[1:]) ** -0.5 if len(shape) in (2, 4) else 1.0
        return (self.torch.randn(shape) * spread).to(self.dtype).to(self.device)

    def geglu(self, x):
        value, gate = x.chunk(2, -1)
        return value * self.torch.nn.functional.gelu(gate)

    def picture(self, op, x, others, memory_format):
        """An op over a picture that is stored in one of the two orders."""
        functional = self.torch.nn.functional
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
        if op["op"] == "conv2d":
            weights = others[0].contiguous(memory_format=memory_format)
            return lambda: functional.conv2d(x, weights, padding=weights.shape[-1] // 2)
        if op["op"] == "upsample":
            return lambda: functional.interpolate(x, scale_factor=2.0, mode="nearest")
        groups = attribute(op, "groups")
        return lambda: functional.silu(functional.group_norm(x, groups, *others, 1e-5))


class Tinygrad:
    """Matrix multiplications and convolutions by tinygrad, compiled and replayed by TinyJit."""

    def __init__(self, arguments):
        import importlib.metadata

        import tinygrad

        self.tinygrad = tinygrad
        self.dtype = {"fp32": "float32", "fp16": "float16"}[arguments.dtype]
        self.device = tinygrad.Device.DEFAULT
        self.name = f"tinygrad {importlib.metadata.version('tinygrad')} on {self.device}"

    def finish(self):
        self.tinygrad.Device[self.device].synchronize()

    def calls(self, op):
        kind = op["op"]
        if kind not in ("matmul", "conv2d") or not plain(op):
            return {}
        x_shape, shape = op["inputs"]
        if kind == "conv2d":
            n, h, w, c = x_shape
            x_shape = [n, c, h, w]
        x, weights = [
            self.tinygrad.Tensor.randn(*s, dtype=self.dtype).realize() for s in (x_shape, shape)]

        @self.tinygrad.TinyJit
        def compute(x):
            if kind == "matmul":
                return x.matmul(weights.transpose()).realize()
            return x.conv2d(weights, padding=weights.shape[-1] // 2).realize()

        # The first call runs the op, the second records it, the third is the first replay.
        for _ in range(3):
            compute(x)
        return {"": lambda: compute(x)}


ENGINES = {"torch": Torch, "tinygrad": Tinygrad}


def plain(op):
    """Whether an op has no INT8 weights, and a contraction one source and no residual."""
    contraction = op["op"] in ("matmul", "conv2d")
    return " i8[" not in op["problem"] and (not contraction or len(op["inputs"]) == 2)


def attribute(op, name):
    return int(re.search(rf"\b{name}=(\d+)", op["problem"])[1])


def seconds(call, finish):
    """Of one call."""
    def run(times):
        start = time.perf_counter()
        for _ in range(times):
            call()
        finish()
        return (time.perf_counter() - start) / times

    run(1)
    first = run(1)
    if first > LONG_SECONDS:
        return first
    times = max(1, math.ceil(TIMED_SECONDS / first))
    return statistics.median(run(times) for _ in range(SAMPLES))


def compare(op, kiln, engine, arguments):
    """Runs both in turn; None if the engine does not know the op."""
    calls = engine.calls(op)
    if not calls:
        return None
    way = min(calls, key=lambda way: seconds(calls[way], engine.finish)) if len(calls) > 1 else ""
    ours, theirs = [], []
    for _ in range(arguments.pairs):
        ours.append(kiln.run(op["name"])["seconds"])
        theirs.append(seconds(calls[way], engine.finish))
    kiln_seconds, other_seconds = statistics.median(ours), statistics.median(theirs)
    if op["bound"] == "arithmetic":
        unit, amounts = "GFLOP/s", [op["flops"]] * 2
    else:
        elements = sum(math.prod(shape) for shape in (*op["inputs"], op["output"]))
        unit, amounts = "GB/s", [op["bytes"], elements * (2 if arguments.dtype == "fp16" else 4)]
    return {
        "name": op["name"], "variant": op["variant"], "engine": engine.name, "way": way,
        "kiln_seconds": kiln_seconds, "seconds": other_seconds,
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs)), "unit": unit,
        "kiln_rate": amounts[0] / kiln_seconds * 1e-9, "rate": amounts[1] / other_seconds * 1e-9}


def show(result):
    print(f"{result['name']:33} {result['kiln_seconds'] * 1e3:9.3f} {result['seconds'] * 1e3:9.3f} "
          f"{result['ratio']:6.2f} {result['kiln_rate']:9.1f} {result['rate']:9.1f} "
          f"{result['unit']:7} {result['way']}".rstrip(), flush=True)


def say(message):
    print(message, file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", nargs="+", default=["torch"], choices=list(ENGINES))
    parser.add_argument("--dtype", default="fp32", choices=["fp32", "fp16"])
    parser.add_argument("--filter", default="", help="only ops whose name has this text")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch on a CPU [default: all]")
    parser.add_argument("--kiln", default="target/release/kiln")
    parser.add_argument("--device", default="auto", help="Kiln's OpenCL device")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    engines = []
    for name in arguments.engine:
        try:
            engines.append(ENGINES[name](arguments))
        except ImportError as error:
            say(f"{name} left out: {error}")
    if not engines:
        sys.exit("error: nothing to compare with; pip install torch")
    try:
        kiln = Worker([arguments.kiln, "bench", "kernels", "--on-request", "--precision",
                       arguments.dtype, "--device", arguments.device, f"--filter={arguments.filter}"])
        results = run(kiln, engines, arguments)
        kiln.close()
    except FileNotFoundError:
        sys.exit(f"error: there is no {arguments.kiln}; cargo build --release -p kiln makes it")
    except RuntimeError as error:
        sys.exit(str(error))
    if arguments.json:
        print(json.dumps(results, indent=2))


def run(kiln, engines, arguments):
    """All ops in all engines."""
    results = []
    for engine in engines:
        if not arguments.json:
            print(f"kiln {arguments.dtype} on {kiln.ready['device']}, {engine.name}; "
                  f"{arguments.pairs} pairs")
            print(f"{'op':33} {'kiln ms':>9} {'other ms':>9} {'ratio':>6} {'kiln':>9} {'other':>9}")
        for op in kiln.ready["kernels"]:
            result = compare(op, kiln, engine, arguments)
            if result is None:
                say(f"{op['name']}: left out of {engine.name}")
                continue
            results.append(result)
            if not arguments.json:
                show(result)
    return results


if __name__ == "__main__":
    main()
