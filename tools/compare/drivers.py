#!/usr/bin/env python3
"""Prints the table of drivers from the folders that tools/drivers.sh wrote.

    tools/compare/drivers.py target/drivers/*
"""
import array
import json
import math
import sys
from pathlib import Path

EXPECTED = Path(__file__).resolve().parents[2] / "models/emoji-256-golden/1-image.npy"
MIB = 1 << 20


def numbers(path):
    """Elements of a float32 .npy file."""
    data = path.read_bytes()
    start = 10 + int.from_bytes(data[8:10], "little")
    return array.array("f", data[start:])


def psnr_db(found, expected):
    """Peak signal-to-noise ratio of pictures in [-1, 1], clamped as in a PNG."""
    clamp = lambda value: max(-1.0, min(1.0, value))
    square = sum((clamp(a) - clamp(b)) ** 2 for a, b in zip(found, expected, strict=True))
    return math.inf if square == 0 else 10 * math.log10(4 * len(found) / square)


def read(path):
    return json.loads(path.read_text()) if path.is_file() and path.stat().st_size else None


def row(folder):
    doctor, warm = read(folder / "doctor.json"), read(folder / "warm.json")
    # The device of the run, of all that doctor tried.
    names = [report["device"]["name"] for report in doctor["devices"]]
    report = doctor["devices"][names.index(warm["device"]) if warm else 0]
    device = report["device"]
    tests = report["tests"]
    families = {test["family"] for test in tests}
    wrong = {test["family"] for test in tests if test["fault"]}
    cells = [folder.name, device["driver"], device["name"]]
    cells.append(f"{len(families - wrong)} of {report['families']}")
    if warm is None:
        last = (folder / "warm.log").read_text().strip().splitlines()[-1:]
        return cells + [": ".join(["none", *last]), "", "", "", "", ""]
    decoded = next((folder / "warm").glob("decoded.npy"))
    cells.append(f"{psnr_db(numbers(decoded), numbers(EXPECTED)):.0f} dB")
    for run in ("cold", "warm"):
        wall, user, system = map(float, (folder / f"{run}.time").read_text().split()[-3:])
        cells += [f"{wall:.1f}", f"{user + system:.1f}"]
    planned, measured = warm["planned"]["peak_bytes"], warm["measured"]["process_peak_bytes"]
    cold_peak = read(folder / "cold.json")["measured"]["process_peak_bytes"]
    cells.append(f"{planned / MIB:.0f} / {cold_peak / MIB:.0f} / {measured / MIB:.0f} MiB")
    return cells


HEAD = ["", "driver", "device", "doctor", "picture", "cold, s", "processor", "warm, s", "processor",
        "peak: planned / cold / warm"]
print("| " + " | ".join(HEAD) + " |")
print("|" + "---|" * len(HEAD))
for folder in map(Path, sys.argv[1:]):
    print("| " + " | ".join(row(folder)) + " |")
