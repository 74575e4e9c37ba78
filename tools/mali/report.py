"""Compares results with the golden file, and writes the tables of docs/benchmarks/mali-code.md."""

import textwrap
from pathlib import Path

from machine import share

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tools/mali/golden.tsv"
PAGE = ROOT / "docs/benchmarks/mali-code.md"
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
FIGURES = ("instructions", "registers", "threads", "spills", "fills", "private",
           "fma", "cvt", "sfu", "ls", "alu", "mad", "loop",
           "whole_mad", "whole_busiest", "whole")
NAMES = ("compiler", "network", "kernel", "launch", "percent", "picture_ms", *FIGURES, "failed")
# Parts of a picture's predicted time that the table of seconds needs.
MOST = 0.95


def row(kernel, result):
    figures = [str(result.get(figure, "")) for figure in FIGURES]
    part = [f"{kernel['percent']:.1f}", f"{int(kernel['picture_ns']) / 1e6:.0f}"]
    return [*part, *figures, result.get("failed", "")[:80]]


def read_golden():
    """Versions of the compilers, and rows by name."""
    if not GOLDEN.exists():
        return [], {}
    versions, _, *lines = GOLDEN.read_text().splitlines()
    cells = [line.split("\t") for line in lines]
    return versions.removeprefix("# ").split(", "), {"\t".join(c[:4]): c[4:] for c in cells}


def finish(rows, versions, sampled, bless):
    """Writes or compares. Of the compilers in `sampled`, `rows` has a part. Returns what the program
    ends with."""
    golden_versions, golden = read_golden()
    if bless:
        kept = {name: cells for name, cells in golden.items() if name.split("\t")[0] in sampled}
        write({**kept, **rows}, versions)
        return 0
    if versions != golden_versions:
        # A new Mesa counts otherwise, which is no fault of the kernels.
        print(f"Not compared: the compilers are {', '.join(versions)}, golden.tsv is of "
              f"{', '.join(golden_versions)}. make mali BLESS=1 renews it.")
        return 0
    differences = 0
    expected = {name for name in golden if name.split("\t")[0] not in sampled}
    for name in sorted(rows.keys() | expected):
        old, new = golden.get(name), rows.get(name)
        # The share of the picture is for people.
        if old is None or new is None or old[2:] != new[2:]:
            differences += 1
            print(name.replace("\t", "  "))
            print(f"   golden  {describe(old)}\n   now     {describe(new)}")
    print(f"{len(rows)} results, {differences} of them other than golden.tsv's")
    return "make mali BLESS=1 takes the differences over" if differences else 0


def figures(cells):
    return dict(zip(NAMES[4:], cells))


def describe(cells):
    if cells is None:
        return "none"
    return ", ".join(f"{name} {value}" for name, value in figures(cells).items() if value not in ("", "0"))


def write(rows, versions):
    lines = [f"# {', '.join(versions)}", "\t".join(NAMES)]
    lines += ["\t".join([name, *cells]) for name, cells in sorted(rows.items())]
    GOLDEN.write_text("\n".join(lines) + "\n")
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\nMesa: {', '.join(versions)}.\n\n{tables(rows)}\n{END}{after}")


def tables(rows):
    kernels = []
    for name, cells in rows.items():
        compiler, network, kernel, launch = name.split("\t")
        f = figures(cells)
        if not f["failed"]:
            numbers = {key: int(f[key] or 0) for key in FIGURES}
            kernels.append({**numbers, "compiler": compiler, "network": network, "kernel": kernel,
                            "launch": launch, "percent": float(f["percent"]),
                            "picture_ms": int(f["picture_ms"]), "share": share(numbers)})
    parts = ["## All kernels", "",
             "| compiler | model, precision | kernels | most registers | spilling | private memory | "
             "median share of multiply-adds in contractions and attention |", "|---|---|---|---|---|---|---|"]
    for compiler, network in sorted({(k["compiler"], k["network"]) for k in kernels}):
        own = [k for k in kernels if (k["compiler"], k["network"]) == (compiler, network)]
        hot = sorted(k["share"] for k in own if is_sum(k))
        median = f"{hot[len(hot) // 2]:.2f}" if hot else ""
        spilling = sum(k["spills"] + k["fills"] > 0 for k in own)
        private = sum(k["private"] > 0 for k in own)
        most = max(k["registers"] for k in own)
        parts.append(f"| {compiler} | {network} | {len(own)} | {most} | {spilling} | {private} | {median} |")
    parts += seconds(kernels)
    for compiler in sorted({k["compiler"] for k in kernels}):
        parts += ["", *table(compiler, kernels)]
    failed = [name.split("\t") for name, cells in rows.items() if figures(cells)["failed"]]
    if failed:
        names = sorted({f"`{kernel}` ({compiler})" for compiler, _, kernel, _ in failed})
        parts += ["", f"Not compiled by Mesa: {', '.join(names)}."]
    return "\n".join(parts)


def seconds(kernels):
    """Times of a picture's kernels: those of sums are their predicted times at the peak rates, by what a
    work-item executes for each multiply-add. Sums without code take the mean of their kind."""
    lines = []
    for compiler, network in sorted({(k["compiler"], k["network"]) for k in kernels}):
        own = [k for k in kernels if (k["compiler"], k["network"]) == (compiler, network)]
        if not compiler.startswith("v") or sum(k["percent"] for k in own) < 100 * MOST:
            continue
        peak = sum(k["picture_ms"] for k in own)
        sums = [k for k in own if is_sum(k)]
        columns = [peak]
        for cycles in ("whole_busiest", "whole"):
            total = peak - sum(k["picture_ms"] for k in sums)
            for kind in {k["kernel"] for k in sums}:
                alike = [k for k in sums if k["kernel"] == kind]
                known = [k for k in alike if k["whole_mad"]]
                known_ms = sum(k["picture_ms"] for k in known)
                longer = sum(k["picture_ms"] * k[cycles] / k["whole_mad"] for k in known)
                total += sum(k["picture_ms"] for k in alike) * (longer / known_ms if known else 1)
            columns.append(total)
        lines.append(f"| {compiler} | {network} | {' | '.join(f'{ms / 1e3:.0f}' for ms in columns)} |")
    if not lines:
        return []
    return ["", "## Seconds of a picture's kernels", "",
            *textwrap.wrap(
                "Predicted from the profile's peak rates; from the busiest pipe, with every loop's instructions as "
                "often as it runs; and as if a core's engine issued one instruction at a time. Kernels without "
                "sums take their predicted times. Waiting for memory and the start of launches are left out.", 118),
            "",
            "| compiler | model, precision | peak rates | busiest pipe | one instruction at a time |",
            "|---|---|---|---|---|", *lines]


def is_sum(kernel):
    return kernel["kernel"].startswith(("contraction_", "attention_"))


def table(compiler, kernels):
    """The kernels that take most of a picture of sd21-base in FP16."""
    own = [k for k in kernels if k["compiler"] == compiler and k["network"] == "sd21-base fp16"]
    own = sorted((k for k in own if k["percent"] >= 1.0), key=lambda k: (-k["percent"], k["launch"]))
    is_mali = compiler.startswith("v")
    loop = "FMA / CVT / SFU x4 / LS" if is_mali else "multiply-adds / ALU / LS"
    lines = [f"## {compiler}: sd21-base, FP16, kernels of 1 % of the picture and more", "",
             f"| kernel, first launch | % of the picture | instructions | registers | threads | "
             f"spills:fills | private, B | hottest loop: {loop} | share of multiply-adds |",
             "|---|---|---|---|---|---|---|---|---|"]
    for k in own:
        parts = (k["fma"], k["cvt"], 4 * k["sfu"], k["ls"]) if is_mali else (k["mad"], k["alu"], k["ls"])
        lines.append(
            f"| `{k['kernel']}` {k['launch']} | {k['percent']:.1f} | {k['instructions']} | {k['registers']} | "
            f"{k['threads']} | {k['spills']}:{k['fills']} | {k['private']} | "
            f"{' / '.join(map(str, parts))} | {k['share']:.2f} |")
    return lines
