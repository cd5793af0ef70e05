"""The ops on every instruction set that this processor can run, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pybatch import _C, ops

HERE = Path(__file__).parent
FILES = ["test_activation.py", "test_embedding.py", "test_norm.py", "test_sampling.py", "test_vec.py"]


def run(isa: str, code: str, *arguments: object) -> str:
    """What code prints under that instruction set."""
    check = f"from pybatch import ops; assert ops.ISA == {isa!r}, ops.ISA\n"
    result = subprocess.run(
        [sys.executable, "-c", check + code, *map(str, arguments)],
        env={**os.environ, "PYBATCH_ISA": isa},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.parametrize("isa", [isa for isa in _C.possible_isas() if isa != ops.ISA])
def test_the_other_instruction_sets_pass_the_same_tests(isa: str) -> None:
    run(isa, "import pytest, sys; sys.exit(pytest.main(sys.argv[1:]))", *(HERE / file for file in FILES))


DIGEST = """
import hashlib, torch
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    x, w = torch.randn(9, 1001).mul(4).to(dtype), torch.randn(1001).to(dtype)
    for out in (
        ops.rms_norm(x, w, 1e-5), ops.layer_norm(x, w, w, 1e-5), ops.silu_mul(x[:, 1:]), ops.gelu_tanh_mul(x[:, 1:])
    ):
        digest.update(out.view(torch.uint8).numpy().tobytes())
logits, n = torch.randn(500, 3001).mul(3), 500
index = torch.arange(n)
tokens = ops.sample(
    logits, torch.full((n,), 0.8), index % 60, 1 - index % 5 / 10, index % 3 / 10, seeds=index, positions=index
)
for out in (tokens, *ops.token_logprobs(logits, tokens, 5)):
    digest.update(out.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.skipif(len(_C.possible_isas()) < 3, reason="needs AVX-512")
def test_avx2_and_avx512_give_the_same_bits() -> None:
    assert run("avx2", DIGEST) == run("avx512", DIGEST)
