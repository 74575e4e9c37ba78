"""Reads what Mesa's compilers print of a kernel: registers, threads, spills, and its hottest loop.

A result is a flat dictionary of numbers. The loop's instructions are counted by pipe:

  Mali     fma: multiply and add, also of integers; cvt: moves, integer sums, comparisons, addresses;
           sfu: shifts, integer products, functions; ls: memory
  Adreno   alu, of which multiply-adds are a part; ls: memory; other: branches and waits
"""

import re

# Instructions of Valhall by their pipe, the first that matches.
VALHALL = [
    ("fma", r"FMA|FADD|IDP|LDEXP"),
    ("ls", r"LOAD|STORE|LD_|LEA_|ST_|ATOM"),
    ("sfu", r"[LR]SHIFT|IMUL|MUX|BITREV|CLPER|FRCP|FRSQ|FEXP|FLOG|FSIN|FCOS|FATAN|FPCLASS|POPCOUNT|NOT"),
    ("other", r"BARRIER"),
    ("cvt", r""),
]
ADRENO = [
    ("other", r"nop|br|jump|call|ret|end|pred|shp|getone|bar|fence|chmask|l\d"),
    ("ls", r"ld|st|isam|sam|atomic|resinfo"),
    ("alu", r""),
]
# Cycles of an instruction: SFU has 4 lanes where FMA and CVT have 16, and the two engines of a Mali's core
# share one LS.
CYCLES = {"fma": 1, "cvt": 1, "sfu": 4, "ls": 2, "alu": 1}


def split(text):
    """What a process printed of each file."""
    return dict(part.split("\n", 1) for part in re.split(r"^FILE ", text, flags=re.M)[1:])


def read(said, read_code, times=()):
    """The result of what was printed of a file. A kernel that does not compile has `failed` alone. `times`
    is how often each loop of the source runs, in their order."""
    private = re.search(r"^PRIVATE (\d+)", said, flags=re.M)
    if not private:
        return {"failed": " ".join(said.removeprefix("FAILED").split())[:400]}
    return {**read_code(said, times), "private": int(private[1])}


def busiest(counts):
    """The pipe with most cycles, of instructions by pipe."""
    return max(CYCLES, key=lambda pipe: counts.get(pipe, 0) * CYCLES[pipe])


def share(result):
    """Multiply-adds in the hottest loop as a part of its busiest pipe's cycles."""
    pipe = busiest(result)
    cycles = result.get(pipe, 0) * CYCLES[pipe]
    return result["mad"] / cycles if cycles else 0.0


def within(loop, other):
    """Whether a loop is a part of another."""
    return loop != other and other[0] <= loop[0] and loop[1] <= other[1]


class Code:
    """Instructions in order: the pipe of each, whether it multiplies and adds, branches backwards."""

    def __init__(self):
        self.pipes, self.multiplies, self.back = [], [], []

    def add(self, name, pipes, is_multiply_add, count=1):
        pipe = next(pipe for pipe, names in pipes if re.match(names, name))
        self.pipes += [pipe] * count
        self.multiplies += [is_multiply_add] * count

    def loops(self):
        """First and last instruction of each loop, outer ones first."""
        ends = {}
        for at, target in self.back:
            ends[target] = max(at, ends.get(target, 0))
        return sorted(ends.items())

    def whole(self, times):
        """What a work-item executes in total: cycles of the busiest pipe, instructions and multiply-adds;
        nothing if the compiler has made other loops than the source has."""
        loops = self.loops()
        if not times or len(times) != len(loops):
            return {}
        runs = [1] * len(self.pipes)
        for (first, last), count in zip(loops, times):
            for at in range(first, last + 1):
                runs[at] *= count
        by_pipe = {pipe: sum(n for n, p in zip(runs, self.pipes) if p == pipe) * cycles
                   for pipe, cycles in CYCLES.items()}
        inner = [loop for loop in loops if not any(within(other, loop) for other in loops)]
        mads = [sum(self.multiplies[first:last + 1]) * runs[first] for first, last in inner]
        # Products of a softmax are no part of the sums.
        mads = sum(n for n in mads if 4 * n > max(mads))
        return {"whole_busiest": max(by_pipe.values()), "whole": sum(runs), "whole_mad": mads}

    def hottest(self):
        """The innermost loop with most multiply-adds, the last of equal ones. Without a loop, the
        whole kernel."""
        loops = self.loops() or [(0, len(self.pipes) - 1)]
        counts = []
        for first, last in loops:
            if any(within(other, (first, last)) for other in loops):
                continue
            pipes = self.pipes[first:last + 1]
            found = {pipe: pipes.count(pipe) for pipe in ("fma", "cvt", "sfu", "ls", "alu", "other")}
            mad = sum(self.multiplies[first:last + 1])
            counts.append({**found, "mad": mad, "loop": len(pipes)})
        return max(reversed(counts), key=lambda found: found["mad"])


def trim(said):
    """Without what Mesa prints before the machine code of the last kernel. There are two: one for any
    global offset, and one for none, which is the last."""
    if "\nPRIVATE" not in said:
        return said[-1000:]
    if "MESA: info: ; CL: outputs:" in said:
        *_, body, stats = said.split("MESA: info: ; CL: outputs:")
        return "ubo_state:" + body.split("ubo_state:")[-1] + "MESA: info: ; CL: outputs:" + stats
    *_, text, end = re.split(r"^MESA_SHADER_KERNEL shader: ", said, flags=re.M)
    code = [line for line in text.splitlines() if re.match(r"   [A-Z]", line)]
    return "\n".join(code) + "\nMESA_SHADER_KERNEL shader: " + end


def mali(said, times):
    text, end = re.split(r"^MESA_SHADER_KERNEL shader: ", said, flags=re.M)
    stats = {name: number for number, name in re.findall(r"([\d.:]+) ([a-z: ]+)", end.split("\n")[0])}
    code = Code()
    for line in text.splitlines():
        match = re.match(r"   ([A-Z][A-Z0-9_]*)([.\w]*)( .*)?$", line)
        if not match:
            continue
        offset = re.search(r"offset:(-\d+)$", match[3] or "")
        if match[1].startswith("BRANCH") and offset:
            at = len(code.pipes)
            code.back.append((at, at + 1 + int(offset[1])))
        code.add(match[1], VALHALL, match[1].startswith("FMA"))
    spills, fills = stats["spills:fills"].split(":")
    return {"instructions": int(stats["instrs"]), "registers": int(stats["registers used"]),
            "threads": int(stats["threads"]), "spills": int(spills), "fills": int(fills),
            **code.hottest(), **code.whole(times)}


def adreno(said, times):
    """Registers of 32 bits, of which Mesa counts fours; `threads` is waves at once."""
    body, stats = said.split("MESA: info: ; CL: outputs:")
    code, labels = Code(), {}
    spilled = {"stp": 0, "ldp": 0}
    for line in body.splitlines():
        line = line.removeprefix("MESA: info: ").strip()
        if re.fullmatch(r"l\d+:", line):
            labels[line[:-1]] = len(code.pipes)
            continue
        match = re.match(r"((?:\([\w]+\))*) ?([a-z][\w.]*)(.*)", line)
        if not match or line.startswith(";"):
            continue
        repeat = re.search(r"\(rpt(\d+)\)", match[1])
        target = re.search(r"#(l\d+)", match[3])
        if target and target[1] in labels:
            code.back.append((len(code.pipes), labels[target[1]]))
        for name in spilled:
            spilled[name] += match[2].startswith(name)
        count = 1 + int(repeat[1]) if repeat else 1
        code.add(match[2], ADRENO, match[2].startswith("mad.f"), count)
    number = lambda name: int(re.search(rf"(\d+) {re.escape(name)}", stats)[1])
    return {"instructions": number("instr"), "registers": 4 * number("full") + 2 * number("half"),
            "threads": number("max_waves"), "spills": spilled["stp"], "fills": spilled["ldp"],
            **code.hottest(), **code.whole(times)}
