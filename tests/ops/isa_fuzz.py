"""Looks for a bit that depends on the instruction set: random matmuls on every set that this processor can run.

    cd tests && python -m ops.isa_fuzz [--examples N]

A set is chosen once per process, so each has a worker, which is sent cases and answers with digests of the results.
Stops at the first case in which sets differ, made as small as it can be (hypothesis).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from gguf_blocks import largest_blocks, random_blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pybatch import _C, ops

TESTS = Path(__file__).parents[1]
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda x: x,
    "heavy tails": lambda x: x * x.flip(0).exp(),
    "largest": lambda x: x.sign(),  # +-127 once quantised
    "one sign": lambda x: torch.ones_like(x),
    "zeros": lambda x: x * 0,
    "denormal": lambda x: x * 1e-39,
    "huge": lambda x: (x * 1e38).clamp(-3e38, 3e38),
}
POISONS = {"none": None, "inf": torch.inf, "-inf": -torch.inf, "nan": torch.nan}
WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal": lambda w: (w * 30).round().clamp(-127, 127),
    "largest": lambda w: w.sign() * 127,
    "one sign": lambda w: torch.full_like(w, 127),
    "smallest": lambda w: torch.full_like(w, -128),
    "zeros": lambda w: w * 0,
}


@dataclass(frozen=True)
class Case:
    kernel: str  # w8a8, w8a16, dense-TYPE or a type of GGUF
    m: int
    n: int
    k: int  # of GGUF types, in blocks
    activations: str
    poison: str
    weights: str
    dtype: str
    epilogue: int
    seed: int


cases = st.builds(
    Case,
    kernel=st.sampled_from(["w8a8", "w8a8", "w8a16", *(f"dense-{t}" for t in FLOATS), *ops.GGUF_BLOCKS]),
    m=st.integers(1, 70),
    n=st.integers(1, 100),
    k=st.integers(1, 1200),
    activations=st.sampled_from([*ACTIVATIONS]),
    poison=st.sampled_from(["none", "none", *POISONS]),
    weights=st.sampled_from([*WEIGHTS]),
    dtype=st.sampled_from([*FLOATS]),
    epilogue=st.sampled_from([int(e) for e in ops.Epilogue]),
    seed=st.integers(0, 2**31),
)


def result(case: Case) -> Tensor:
    torch.set_num_threads(1 + case.seed % 3)
    generator = torch.Generator().manual_seed(case.seed)
    epilogue, dtype = ops.Epilogue(case.epilogue), FLOATS[case.dtype]
    gated = epilogue in (ops.Epilogue.SILU_MUL, ops.Epilogue.GELU_TANH_MUL)
    n = -(-case.n // 32) * 32 if gated else case.n
    block = ops.GGUF_BLOCKS.get(case.kernel)
    k = case.k if block is None else (1 + case.k % (1200 // block.weights)) * block.weights
    x = ACTIVATIONS[case.activations](torch.randn(case.m, k, generator=generator))
    poison = POISONS[case.poison]
    if poison is not None:
        x[case.seed % case.m, case.seed % k] = poison
    x = x.to(dtype)
    out = torch.randn(case.m, n // 2 if gated else n, generator=generator).to(dtype)
    if block is not None:
        data = random_blocks if case.weights == "normal" else largest_blocks
        packed = ops.pack_gguf(torch.from_numpy(data(case.kernel, n, k)), case.kernel)
        return ops.matmul_gguf(x, packed, out=out, epilogue=epilogue)
    weight = WEIGHTS[case.weights](torch.randn(n, k, generator=generator))
    if case.kernel.startswith("dense"):
        kind = FLOATS[case.kernel.removeprefix("dense-")]
        return ops.matmul_dense(x, ops.pack_dense(weight.to(kind)), out=out, epilogue=epilogue)
    scale = torch.rand(n, generator=generator)
    packed, op = ops.pack_int8(weight.to(torch.int8)), getattr(ops, f"matmul_{case.kernel}")
    found: Tensor = op(x, packed, scale, out=out, epilogue=epilogue)
    return found


def digest(out: Tensor) -> str:
    """Of the bits; any NaN is as good as another."""
    bits = out.float().nan_to_num(nan=12345.0, posinf=torch.inf, neginf=-torch.inf).numpy()
    return sha256(np.ascontiguousarray(bits).tobytes()).hexdigest()


def work() -> None:
    print(ops.ISA, flush=True)
    for line in sys.stdin:
        print(digest(result(Case(**json.loads(line)))), flush=True)


class Worker:
    def __init__(self, isa: str, stack: ExitStack) -> None:
        path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self.isa = isa
        self.process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-m", "ops.isa_fuzz", "--worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | {"PYBATCH_ISA": isa, "PYTHONPATH": path},
            )
        )

    def send(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"{self.isa}: the worker ended"
        return line


@contextmanager
def workers(isas: Sequence[str]) -> Iterator[list[Worker]]:
    with ExitStack() as stack:
        all_of_them = [Worker(isa, stack) for isa in isas]
        for worker in all_of_them:
            assert worker.answer() == worker.isa
        yield all_of_them


def fuzz(examples: int) -> None:
    """Raises AssertionError with the smallest case found in which sets differ."""
    with workers(_C.possible_isas()) as all_of_them:

        @settings(max_examples=examples, deadline=None, database=None)
        @given(case=cases)
        def same_bits(case: Case) -> None:
            # The portable set has no fused multiply-add on x86; its int8 sums are the same, before an activation.
            plain = case.kernel == "w8a8" and case.epilogue in (ops.Epilogue.STORE, ops.Epilogue.ADD)
            # Tiles sum products of bf16 by bf16 in an order of their own (docs/processors.md).
            tiles = case.kernel == "dense-bf16" and case.dtype == "bf16"
            others = {"amx"} if tiles else set()
            asked = [w for w in all_of_them if w.isa not in others and (plain or w.isa != "portable")]
            for worker in asked:
                worker.send(json.dumps(asdict(case)))
            digests = {worker.isa: worker.answer() for worker in asked}
            assert len(set(digests.values())) <= 1, digests

        same_bits()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=10_000)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
    else:
        fuzz(args.examples)
        print(f"{args.examples} cases, the same bits on {', '.join(_C.possible_isas())}")
