"""The loops of CUDA kernels by their machine code: how many instructions each has, and of which kinds.

    python bench/machine_code.py FILE... [--kernel REGEX] [--arch sm_90a] [--least 8] [--json PATH]

FILE: an object, a cubin or a library that nvcc has made, which cuobjdump (of CUDA, or PyPI's nvidia-cuda-cuobjdump)
takes apart. A loop is what lies between a backward branch and its target; those inside it are part of its count, and
so are both sides of its branches: what a warp executes is what its path through it has.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*)(.*?);")


def functions(text: str) -> dict[str, list[tuple[int, str, str]]]:
    """Of each kernel its instructions: address, name, operands."""
    parts = re.split(r"Function : (\S+)", text)[1:]
    names = subprocess.run(["c++filt"], input="\n".join(parts[::2]), capture_output=True, text=True, check=True).stdout
    return {
        name: [(int(address, 16), what, rest) for address, what, rest in INSTRUCTION.findall(body)]
        for name, body in zip(names.splitlines(), parts[1::2], strict=True)
    }


def loops(code: list[tuple[int, str, str]], least: int) -> list[dict[str, Any]]:
    """In order of their ends, the inner before the outer; one for each target, the longest."""
    at = {address: i for i, (address, _, _) in enumerate(code)}
    found: dict[int, dict[str, Any]] = {}
    for i, (_, what, rest) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)\s*$", rest.strip()) if what.startswith("BRA") else None
        begin = at.get(int(target[1], 16)) if target else None
        if begin is not None and begin <= i and i - begin + 1 >= least:
            kinds = Counter(name.partition(".")[0] for _, name, _ in code[begin : i + 1])
            found[begin] = {"from": begin, "instructions": i - begin + 1, "kinds": dict(kinds.most_common())}
    return sorted(found.values(), key=lambda loop: loop["from"] + loop["instructions"])


def main() -> None:
    parser = argparse.ArgumentParser(description="The loops of CUDA kernels by their machine code.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--kernel", default="", metavar="REGEX", help="kernels whose name, with its types, matches")
    parser.add_argument("--arch", default="sm_90a", help="of a file that holds several (default: %(default)s)")
    parser.add_argument("--least", type=int, default=8, help="instructions of a loop shown (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the loops there")
    arguments = parser.parse_args()
    if shutil.which("cuobjdump") is None:
        raise SystemExit("cuobjdump is not on the PATH: it comes with CUDA, and from PyPI as nvidia-cuda-cuobjdump")
    kernels = []
    for file in arguments.files:
        dump = ["cuobjdump", "-sass", "-arch", arguments.arch, str(file)]
        text = subprocess.run(dump, capture_output=True, text=True, check=True).stdout
        for name, code in functions(text).items():
            if re.search(arguments.kernel, name):
                found = loops(code, arguments.least)
                kernels.append({"kernel": name, "instructions": len(code), "loops": found})
    table = Table("kernel", "instructions", "loop from", "instructions", "of which")
    for kernel in kernels:
        name = re.sub(r"\(anonymous namespace\)::|pybatch::cuda::|\(pybatch.*", "", kernel["kernel"])
        for i, loop in enumerate(kernel["loops"] or [{"from": "", "instructions": "", "kinds": {}}]):
            kinds = ", ".join(f"{kind} {count}" for kind, count in list(loop["kinds"].items())[:8])
            head = [] if i else [name, str(kernel["instructions"])]
            table.add_row(*(head or ["", ""]), str(loop["from"]), str(loop["instructions"]), kinds)
    Console(width=200).print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps(kernels, indent=1) + "\n")


if __name__ == "__main__":
    main()
