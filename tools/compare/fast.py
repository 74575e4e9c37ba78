#!/usr/bin/env python3
"""Time and error of the presets of steps that cost less, beside runs of whole steps.

  python tools/compare/fast.py emoji.kiln [--seeds 2] [--pictures FOLDER] [--kiln target/release/kiln]

The bundle is compiled with --fast. Each prompt and seed is drawn with --fast 0, 1, 2 and 3 in turn, after
a first picture that compiles the kernels. A line for each preset has the median of the ratios of
the sampling time to the same picture's with whole steps, and median and range of the PSNR to it. Ratios of a busy
machine are rough. --settings replaces the presets by pairs of --guidance-interval and --cache-interval.
Packages: NumPy, Pillow.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import tempfile

import numpy as np
from PIL import Image

PROMPTS = ["a rocket", "a crown on a purple background", "a slice of pizza on a blue background",
           "a robot, noto style", "a red heart", "a green frog"]


def draw(kiln, bundle, prompt, seed, setting, name):
    """Draws a picture and returns the seconds of its steps."""
    options = [word for option, value in setting.items() for word in (f"--{option}", str(value))]
    report = f"{name}.json"
    subprocess.run([kiln, "run", bundle, "--prompt", prompt, "--seed", str(seed), *options,
                    "--report", report, "-o", name], check=True, stderr=subprocess.DEVNULL)
    with open(report, encoding="utf-8") as file:
        return json.load(file)["times"]["sample_seconds"]


def psnr(name, whole):
    pictures = [np.asarray(Image.open(path), dtype=np.float64) for path in (name, whole)]
    square = np.square(pictures[0] - pictures[1]).mean()
    return 10 * np.log10(255**2 / max(square, 1e-10))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--kiln", default="target/release/kiln")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--pictures")
    parser.add_argument("--settings", nargs="*", metavar="START:STOP,N")
    args = parser.parse_args()
    settings = [{"fast": preset} for preset in range(4)]
    if args.settings:
        pairs = [setting.split(",") for setting in args.settings]
        settings = [{}] + [{"guidance-interval": interval, "cache-interval": cache}
                           for interval, cache in pairs]
    found = [[] for _ in settings]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.pictures or temporary
        os.makedirs(folder, exist_ok=True)
        draw(args.kiln, args.bundle, PROMPTS[0], 0, settings[0], os.path.join(temporary, "0.png"))
        for prompt, seed in itertools.product(range(len(PROMPTS)), range(args.seeds)):
            names = [os.path.join(folder, f"{prompt}-{seed}-{n}.png") for n in range(len(settings))]
            seconds = [draw(args.kiln, args.bundle, PROMPTS[prompt], seed, setting, name)
                       for setting, name in zip(settings, names)]
            for results, taken, name in zip(found, seconds, names):
                results.append((taken / seconds[0], psnr(name, names[0])))
        for setting, results in zip(settings, found):
            ratios, errors = zip(*results)
            said = ", ".join(f"{name} {value}" for name, value in setting.items()) or "whole"
            print(f"{said}: time {statistics.median(ratios):.2f}, "
                  f"PSNR {statistics.median(errors):.1f} dB, {min(errors):.1f} to "
                  f"{max(errors):.1f} dB, {len(ratios)} pictures")


if __name__ == "__main__":
    main()
