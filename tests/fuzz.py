"""Looks for a bit that depends on the batch: random ragged batches of every kernel, against their sequences alone.

    cd tests && python -m fuzz {simt,cuda} [--batches N] [--seconds S] [--seed SEED] [--jobs J]

simt runs the CUDA kernels on the CPU, as on sm_86 or on sm_90, blocks and threads in another order each time; cuda runs
them on the GPU. A batch is made from its seed alone. Prints each batch in which bits differ, then the totals; exits
with 1 if there were any.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from random import Random
from types import ModuleType
from typing import Any

import torch
from backends import suite
from torch import Tensor

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float32, *HALVES)
Pairs = Iterator[tuple[str, Tensor, Tensor]]  # kernel, bits in the batch, bits alone


class Fuzzer:
    """chips: the functions of pybatch.ops on each. shuffle: called with what sets the order of blocks and threads."""

    def __init__(self, chips: Sequence[Any], shuffle: Callable[[int], None]) -> None:
        self.chips, self.ops, self.shuffle = chips, chips[0], shuffle

    def _suite(self, name: str) -> ModuleType:
        return suite(f"test_{name}", self.ops)

    def batch(self, seed: int) -> Pairs:
        """One ragged batch through attention and the KV cache, and as many rows through the rest of a step."""
        random = Random(seed)
        self.ops = random.choice(self.chips)
        self.shuffle(random.randrange(1 << 32))
        counts = [1 if random.random() < 0.5 else random.randint(1, 30) for _ in range(random.randint(2, 5))]
        yield from self.attention(random, counts)
        yield from self.kv_write(random, sum(counts))
        for kernel, op, x in (self.matmul(random), self.norm(random), self.activation(random), self.sample(random)):
            rows = x(sum(counts))
            whole = op(rows)
            begin = random.randrange(len(rows))
            for part in (slice(begin, begin + 1), slice(begin, random.randint(begin + 1, len(rows)))):
                self.shuffle(random.randrange(1 << 32))
                yield kernel, whole[part], op(rows[part])

    def attention(self, random: Random, counts: list[int]) -> Pairs:
        tests = self._suite("attention")
        dtype = random.choice((*HALVES, *HALVES, torch.float32))
        kv_heads = random.choice((1, 2))
        shape = tests.Shape(
            heads=kv_heads * random.choice((1, 2, 4, 5, 8)),
            kv_heads=kv_heads,
            head_dim=random.choice((8, 16, 40, 64) if dtype == torch.float32 else (8, 40, 64, 64, 128)),
            block_size=random.choice((8, 16, 32, 64)),
            cache=random.choice((dtype, torch.int8, torch.float8_e4m3fn)),
            dtype=dtype,
        )
        mask = tests.Mask(random.choice((0, 0, 1, 7, 50)), random.choice((0.0, 0.0, 5.0)), random.random() < 0.3)
        work = []
        for count in counts:
            context = random.choice((0, random.randrange(100), random.randrange(100)))
            if dtype != torch.float32 and random.random() < 0.1:
                context = random.randrange(480, 600)  # over the edge of a split
            end = context + count
            work.append((tests.make_sequence(shape, end, random.randrange(1 << 32)), context, end))
        for out, (sequence, begin, end) in zip(tests.attend(shape, mask, work, seed=1), work, strict=True):
            self.shuffle(random.randrange(1 << 32))
            earlier = random.randint(max(0, begin - 20), begin)  # in larger chunks, too
            (alone,) = tests.attend(shape, mask, [(sequence, earlier, end)])
            yield "paged_attention", out, alone[begin - earlier :]

    def kv_write(self, random: Random, tokens: int) -> Pairs:
        tests = self._suite("rope_kv_write")
        shape = tests.Shape(
            heads=random.choice((1, 3)),
            kv_heads=random.choice((1, 2)),
            head_dim=(head_dim := random.choice((8, 24, 64))),
            rotary_dim=random.choice((head_dim, head_dim // 4 * 2)),
            block_size=random.choice((8, 16)),
            cache=random.choice((*FLOATS, torch.int8, torch.float8_e4m3fn)),
            dtype=random.choice(FLOATS),
            interleaved=random.random() < 0.5,
            norm=random.random() < 0.5,
        )
        batch = tests.make_batch(shape, tokens, random.randrange(1 << 32))
        blocks = tokens // shape.block_size + 2
        together = tests.Cache.empty(shape, blocks)
        q = tests.write(batch, together)
        self.shuffle(random.randrange(1 << 32))
        i, alone = random.randrange(tokens), tests.Cache.empty(shape, blocks)
        yield "rope_kv_write", q[i], tests.write(batch.rows(slice(i, i + 1)), alone)[0]
        block, offset = divmod(int(batch.slots[i]), shape.block_size)
        for mine, theirs in zip(together.tensors(), alone.tensors(), strict=True):
            at = (block, ..., offset) if mine is together.k or mine.dim() == 3 else (block, slice(None), offset)
            yield "rope_kv_write", mine[at], theirs[at]

    def matmul(self, random: Random) -> tuple[str, Callable[[Tensor], Tensor], Callable[[int], Tensor]]:
        gguf = random.random() < 0.3
        tests = self._suite("matmul_gguf" if gguf else "matmul")
        many = "w8a8, many rows"  # from 256 rows on Hopper has another kernel
        kernel = random.choice([*self.ops.GGUF_BLOCKS] if gguf else [*tests.KERNELS, many])
        n, k = random.randint(1, 70), random.choice((256, 768)) if gguf else random.randint(1, 300)
        if kernel == many:
            n, k = random.randint(1, 200), random.randint(1, 900)
        dtype, seed, more = random.choice(FLOATS), random.randrange(1 << 32), 256 if kernel == many else 0
        op = tests.matmul(kernel.partition(",")[0], n, k)
        return f"matmul_{kernel}", op, lambda rows: normal(rows + more, k, seed).to(dtype)

    def norm(self, random: Random) -> tuple[str, Callable[[Tensor], Tensor], Callable[[int], Tensor]]:
        width, dtype, seed = random.randint(1, 600), random.choice(FLOATS), random.randrange(1 << 32)
        weight = normal(1, width, seed + 1).to(dtype)[0]

        def op(x: Tensor) -> Tensor:
            return self.ops.rms_norm(x.contiguous(), weight, 1e-5, residual=x.flip(1))

        return "rms_norm", op, lambda rows: normal(rows, width, seed).to(dtype)

    def activation(self, random: Random) -> tuple[str, Callable[[Tensor], Tensor], Callable[[int], Tensor]]:
        width, dtype, seed = random.randint(1, 300), random.choice(FLOATS), random.randrange(1 << 32)
        name = random.choice(("silu_mul", "gelu_tanh_mul", "gelu", "gelu_tanh", "relu2"))
        return name, getattr(self.ops, name), lambda rows: normal(rows, 2 * width, seed).to(dtype)

    def sample(self, random: Random) -> tuple[str, Callable[[Tensor], Tensor], Callable[[int], Tensor]]:
        vocab, seed = random.randint(1, 400), random.randrange(1 << 32)
        settings = {
            "temperature": random.choice((0.0, 0.7, 1.5)),
            "top_k": random.choice((0, 1, 40)),
            "top_p": random.choice((1.0, 0.9)),
            "min_p": random.choice((0.0, 0.05)),
        }
        return "sample", lambda x: self._suite("sampling").sample(x, **settings), lambda rows: normal(rows, vocab, seed)


def normal(rows: int, width: int, seed: int) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def differing_bits(a: Tensor, b: Tensor) -> int:
    x, y = (t.reshape(-1).clone(memory_format=torch.contiguous_format).view(torch.uint8) for t in (a, b))
    return sum(int(bits).bit_count() for bits in (x ^ y).tolist())


def fuzzer(backend: str) -> Fuzzer:
    if backend == "cuda":
        from on_cuda import OnCuda

        return Fuzzer([OnCuda()], lambda seed: None)
    from simt import device

    device.RUNTIME.simt_set_os_threads(1)  # a job is one thread
    return Fuzzer([device.SimtOps(capability=capability) for capability in (86, 90)], device.set_schedule)


def work(backend: str, seeds: range, deadline: float) -> tuple[int, Counter[str], Counter[str]]:
    """Batches done; comparisons and differing bits by kernel."""
    torch.set_num_threads(1)
    fuzz, done, compared, differing = fuzzer(backend), 0, Counter[str](), Counter[str]()
    for seed in seeds:
        if time.monotonic() > deadline:
            break
        for kernel, together, alone in fuzz.batch(seed):
            compared[kernel] += 1
            if bits := differing_bits(together, alone):
                differing[kernel] += bits
                print(f"batch {seed}: {bits} bits of {kernel} differ", flush=True)
        done += 1
        if done % 500 == 0:
            print(f"{done} of {len(seeds)} batches", flush=True)
    return done, compared, differing


def main() -> None:
    parser = argparse.ArgumentParser(description="Looks for a bit that depends on the batch.")
    parser.add_argument("backend", choices=["simt", "cuda"])
    parser.add_argument("--batches", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop then, at the latest")
    parser.add_argument("--seed", type=int, default=0, help="of the first batch")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    begin = time.monotonic()
    seeds = range(arguments.seed, arguments.seed + arguments.batches)
    parts = [(arguments.backend, seeds[i :: arguments.jobs], begin + arguments.seconds) for i in range(arguments.jobs)]
    with get_context("spawn").Pool(arguments.jobs) as pool:
        results = pool.starmap(work, parts)
    batches = sum(done for done, _, _ in results)
    compared, differing = (sum((result[i] for result in results), Counter[str]()) for i in (1, 2))
    for kernel, count in sorted(compared.items()):
        print(f"{kernel}: {count} comparisons, {differing[kernel]} differing bits")
    seconds = time.monotonic() - begin
    print(f"{batches} batches, {compared.total()} comparisons, {differing.total()} differing bits in {seconds:.0f} s")
    sys.exit(differing.total() > 0)


if __name__ == "__main__":
    main()
