#!/usr/bin/env python3
"""Holds the model of the planner to what others measured: `make mali-published` calls this script.

Predicts the cases of published.toml as the planner predicts a launch: the busiest pipe, and one instruction
at a time. Writes the table into docs/benchmarks/mali-code.md and prints it. Needs no compiler.
"""

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/benchmarks/mali-code.md"
BEGIN, END = "<!-- published -->", "<!-- end of published -->"


def lanes(gpu):
    """Lanes of a GPU by pipe; of `issued`, which is no pipe, those of one instruction at a time."""
    cores, engines = gpu["cores"], gpu["engines"]
    return {"fma": cores * gpu["fma"], "cvt": cores * engines * 16, "sfu": cores * engines * 4,
            "ls": cores * 16, "issued": cores * engines * 16}


def seconds(gpu, loops):
    """Seconds of the instructions of each pipe."""
    hertz = gpu["clock_ghz"] * 1e9
    count = {pipe: sum(loop["runs"] * loop[pipe] for loop in loops) for pipe in lanes(gpu)}
    return {pipe: count[pipe] / (lanes(gpu)[pipe] * hertz) for pipe in count}


def ratios(least, most, published):
    low, high = least / max(published), most / min(published)
    return f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"


def table(cases):
    lines = ["| GPU | kernel | published | predicted | predicted over published | bound by | published in |",
             "|---|---|---|---|---|---|---|"]
    for case in cases["peak"]:
        gpu, published = cases["gpu"][case["gpu"]], case["published_gflops"]
        multiply_adds = case["fp32_gflops"] / 2 if "fp32_gflops" in case else lanes(gpu)["fma"] * gpu["clock_ghz"]
        gflops = multiply_adds * case["flop"]
        shown = " to ".join(f"{rate:,}" for rate in published)
        lines.append(f"| {gpu['name']} | {case['kernel']} | {shown} GFLOP/s | {gflops:,.0f} GFLOP/s | "
                     f"{ratios(gflops, gflops, published)} | FMA | {case['source']} |")
    for case in cases["kernel"]:
        gpu = cases["gpu"][case["gpu"]]
        times = seconds(gpu, case["loops"])
        most = max(times.values())
        times.pop("issued")
        pipe = max(times, key=times.get)
        lines.append(f"| {gpu['name']} | {case['kernel']} | {case['published_s']} s | {times[pipe]:.1f} to {most:.1f} s | "
                     f"{ratios(times[pipe], most, [case['published_s']])} | {pipe.upper()} | {case['source']} |")
    return "\n".join(lines)


def main():
    text = table(tomllib.loads((ROOT / "tools/mali/published.toml").read_text()))
    print(text)
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    main()
