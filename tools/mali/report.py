"""Compares results with the golden file. Writes the tables of docs/benchmarks/mali-code.md, and those
of the planner in compiler/profiles/code."""

from pathlib import Path

from machine import busiest, share

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tools/mali/golden.tsv"
PAGE = ROOT / "docs/benchmarks/mali-code.md"
# The planner's tables, by compiler.
CODE = {"v9": ROOT / "compiler/profiles/code/valhall-v9.tsv"}
CODE_NAMES = ("kernel", "pipe", "registers", "occupancy_percent", "spills", "multiply_adds",
              "busiest_cycles", "issued_cycles")
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"
FIGURES = ("instructions", "registers", "threads", "spills", "fills", "private",
           "fma", "cvt", "sfu", "ls", "alu", "mad", "loop",
           "whole_mad", "whole_busiest", "whole")
NAMES = ("compiler", "network", "kernel", "launch", "percent", "source", *FIGURES, "failed")


def row(kernel, result):
    figures = [str(result.get(figure, "")) for figure in FIGURES]
    source = kernel["entry"].rsplit("_", 1)[1]
    return [f"{kernel['percent']:.1f}", source, *figures, result.get("failed", "")[:80]]


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
    differences, renamed = 0, 0
    expected = {name for name in golden if name.split("\t")[0] not in sampled}
    for name in sorted(rows.keys() | expected):
        old, new = golden.get(name), rows.get(name)
        # The share of the picture is for people.
        if old is None or new is None or old[2:] != new[2:]:
            differences += 1
            print(name.replace("\t", "  "))
            print(f"   golden  {describe(old)}\n   now     {describe(new)}")
        elif old[1] != new[1]:
            renamed += 1
    if renamed:
        print(f"{renamed} kernels have another source than golden.tsv's, and the same machine code: the planner "
              f"scales the counts of others for them until make mali BLESS=1")
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
    for compiler, path in CODE.items():
        write_code(path, compiler, rows, versions)


def write_code(path, compiler, rows, versions):
    """What the planner reads: a line for each source whose loops' lengths are known."""
    version = next(v for v in versions if v.startswith(f"{compiler} "))
    lines = set()
    for name, cells in rows.items():
        of, _, kernel, _ = name.split("\t")
        f = figures(cells)
        if of == compiler and f["whole_mad"]:
            occupancy, spills = 50 * int(f["threads"]), int(f["spills"]) + int(f["fills"])
            pipe = busiest({pipe: int(f[pipe]) for pipe in ("fma", "cvt", "sfu", "ls")})
            lines.add("\t".join(map(str, [
                f"{kernel}_{f['source']}", pipe.upper(), f["registers"], occupancy, spills,
                f["whole_mad"], f["whole_busiest"], f["whole"]])))
    head = f"# Written by make mali BLESS=1 from tools/mali/golden.tsv. Mesa: {version}."
    path.write_text("\n".join([head, "\t".join(CODE_NAMES), *sorted(lines)]) + "\n")


def tables(rows):
    kernels = []
    for name, cells in rows.items():
        compiler, network, kernel, launch = name.split("\t")
        f = figures(cells)
        if not f["failed"]:
            numbers = {key: int(f[key] or 0) for key in FIGURES}
            kernels.append({**numbers, "compiler": compiler, "network": network, "kernel": kernel,
                            "launch": launch, "percent": float(f["percent"]),
                            "share": share(numbers)})
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
    for compiler in sorted({k["compiler"] for k in kernels}):
        parts += ["", *table(compiler, kernels)]
    failed = [name.split("\t") for name, cells in rows.items() if figures(cells)["failed"]]
    if failed:
        names = sorted({f"`{kernel}` ({compiler})" for compiler, _, kernel, _ in failed})
        parts += ["", f"Not compiled by Mesa: {', '.join(names)}."]
    return "\n".join(parts)


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
