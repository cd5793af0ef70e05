"""From a checkpoint to packed weights, a few rows at a time: beside the packed copy, no more than some rows per thread
is ever in memory. The checkpoint itself is mapped, and its pages are given back as they have been read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby
from math import prod
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pybatch import ops
from pybatch.machine.huge_pages import WeightMemory
from pybatch.machine.memory import trim_memory
from pybatch.model.calibration import PackedWhenCalled, pack_by_running
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder, Layer
from pybatch.model.errors import ModelError
from pybatch.model.layers import DenseLinear, GGUFLinear, Int8Linear, Linear, Packed, SideBySide
from pybatch.model.rope import rotary_table

INT8_MATMULS = {"int8": ops.matmul_w8a8, "int8-weight-only": ops.matmul_w8a16}
QUANTIZATIONS = (*INT8_MATMULS, "gguf")
CHUNK = 1 << 17  # weights handled at a time by one thread: what stays in its cache


class Rows(Protocol):
    """A tensor of a file, such as a matrix, whose rows can be read as float tensors."""

    @property
    def shape(self) -> Sequence[int]: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def __getitem__(self, rows: slice, /) -> Tensor: ...

    def release(self, rows: slice, /) -> None: ...  # these will not be read again, so that memory need not hold them


@runtime_checkable
class BlockRows(Rows, Protocol):
    """A matrix whose rows can also be read as the quantised blocks of a GGUF file."""

    @property
    def block_type(self) -> str: ...  # such as "Q4_0"

    @property
    def blocks(self) -> Rows: ...  # [N, bytes of a row] uint8


class Checkpoint(Protocol):
    """Tensors under their Hugging Face names, mapped from a file and not yet read."""

    config: ModelConfig

    generation_config: dict[str, Any]  # of generation_config.json

    def __contains__(self, name: str) -> bool: ...

    def __getitem__(self, name: str) -> Rows: ...

    def unread(self) -> list[str]: ...  # the tensors that have not been read

    def files(self) -> list[Path]: ...  # that weights, or how to read them, come from


class Stacked:
    """The rows of several matrices, one below the other."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = parts
        self.shape = (sum(part.shape[0] for part in parts), parts[0].shape[1])
        dtypes = {part.dtype for part in parts}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        found = [part[wanted] for part, wanted in self._found(rows)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def release(self, rows: slice) -> None:
        for part, wanted in self._found(rows):
            part.release(wanted)

    def _found(self, rows: slice) -> Iterator[tuple[Rows, slice]]:
        offset = 0
        for part in self.parts:
            start, stop = max(rows.start - offset, 0), min(rows.stop - offset, part.shape[0])
            if start < stop:
                yield part, slice(start, stop)
            offset += part.shape[0]


class Interleaved:
    """The rows of gate and up as ops.interleave_gate_up puts them; slices begin and end at multiples of PANEL."""

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = gate, up = parts
        self.shape = (-(-gate.shape[0] // ops.PANEL) * ops.PANEL * 2, gate.shape[1])
        self.dtype = gate.dtype if gate.dtype == up.dtype else torch.float32

    def __getitem__(self, rows: slice) -> Tensor:
        gate, up = self.parts
        halves = self._halves(rows)
        both = ops.interleave_gate_up(gate[halves], up[halves])
        skipped = rows.start % (2 * ops.PANEL)
        return both[skipped : skipped + rows.stop - rows.start]

    def release(self, rows: slice) -> None:
        for part in self.parts:
            part.release(self._halves(rows))

    def _halves(self, rows: slice) -> slice:
        """The rows of gate, and of up, that are among these."""
        first, last = rows.start // ops.PANEL, rows.stop // ops.PANEL
        return slice(first // 2 * ops.PANEL, min(-(-last // 2) * ops.PANEL, self.parts[0].shape[0]))


class WeightLoader:
    """Builds a decoder of a checkpoint.

    dtype: of activations; dense weights are kept in it, or in the checkpoint's own dtype where that is smaller (a
    bfloat16 weight is the same number in float32). quantization: None, "int8", "int8-weight-only" or "gguf": the
    blocks of a GGUF file as they are, for the types in ops.GGUF_BLOCKS; other tensors as for None.
    device: where the decoder is to run.
    advance is called with the number of weights done, from any thread.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        quantization: str | None,
        device: torch.device,
        advance: Callable[[int], None] = lambda count: None,
    ) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.dtype, self.quantization, self.device, self.advance = dtype, quantization, device, advance
        self.smooths = quantization == "int8"  # scales weights by the activations that they meet
        self.memory = WeightMemory(device)

    def decoder(self, max_model_len: int) -> Decoder:
        """The decoder, with a rotary table of max_model_len positions. Raises ModelError if a tensor is missing or not
        of the shape that the config asks for."""
        config = self.config
        with _worker_pool() as self.pool:
            embedding = self.linear({"model.embed_tokens": config.vocab_size}, config.hidden_size)
            tied = config.tie_word_embeddings
            decoder = Decoder(
                config,
                self.dtype,
                embedding=embedding,
                layers=[self.layer(index) for index in range(config.num_layers)],
                final_norm=self.vector("model.norm.weight", config.hidden_size),
                lm_head=embedding if tied else self.linear({"lm_head": config.vocab_size}, config.hidden_size),
                rotary=rotary_table(config.rope, max_model_len).to(self.device),
            )
            if self.smooths:
                pack_by_running(decoder)
        trim_memory()
        return decoder

    def layer(self, index: int) -> Layer:
        config, hidden, mlp = self.config, self.config.hidden_size, self.config.intermediate_size
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        layer = f"model.layers.{index}"
        attention = f"{layer}.self_attn"
        return Layer(
            attention_norm=self.vector(f"{layer}.input_layernorm.weight", hidden),
            qkv=self.linear_behind_norm(
                {f"{attention}.q_proj": q, f"{attention}.k_proj": kv, f"{attention}.v_proj": kv},
                hidden,
                bias=config.attention_bias,
            ),
            q_norm=self.vector(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
            k_norm=self.vector(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
            attention_out=self.linear({f"{attention}.o_proj": hidden}, q, bias=config.attention_out_bias),
            mlp_norm=self.vector(f"{layer}.post_attention_layernorm.weight", hidden),
            gate_up=self.linear_behind_norm(
                {f"{layer}.mlp.gate_proj": mlp, f"{layer}.mlp.up_proj": mlp},
                hidden,
                bias=config.mlp_bias,
                gated=True,
            ),
            down=self.linear({f"{layer}.mlp.down_proj": hidden}, mlp, bias=config.mlp_bias),
            window=config.sliding_window[index],
        )

    def vector(self, name: str, length: int) -> Tensor:
        return self.tensor(name, (length,))[:].to(self.device, self.dtype, copy=True)

    def linear(self, rows: Mapping[str, int], columns: int, *, bias: bool = False) -> Packed:
        """The projections of these names, with so many rows each, fused into one."""
        return self._pack(Stacked(self._weights(rows, columns)), self._biases(rows, bias))

    def linear_behind_norm(
        self, rows: Mapping[str, int], columns: int, *, bias: bool = False, gated: bool = False
    ) -> Linear:
        """As linear; for W8A8 its packing waits for activations. gated: the names are gate and up, and the product's
        epilogue multiplies them."""
        parts = self._weights(rows, columns)
        if self.quantization == "gguf" and len(set(map(_block_type, parts))) > 1:
            return self._gguf_parts(parts, self._biases(rows, bias))
        together = Interleaved(parts) if gated else Stacked(parts)
        biases = self._biases(rows, bias, gated)
        if self.smooths:
            return PackedWhenCalled(lambda scale: self._pack(together, biases, scale))
        return self._pack(together, biases)

    def tensor(self, name: str, shape: tuple[int, ...]) -> Rows:
        config = self.config
        if name not in self.checkpoint:
            raise ModelError(f"{config.name} has no tensor {name!r}, which {config.architecture} needs")
        tensor = self.checkpoint[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{config.name}: {name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        return tensor

    def _weights(self, rows: Mapping[str, int], columns: int) -> list[Rows]:
        return [self.tensor(f"{name}.weight", (count, columns)) for name, count in rows.items()]

    def _biases(self, rows: Mapping[str, int], wanted: bool, gated: bool = False) -> Tensor | None:
        if not wanted:
            return None
        parts = [self.vector(f"{name}.bias", count) for name, count in rows.items()]
        return ops.interleave_gate_up(*parts) if gated else torch.cat(parts)

    def _pack(self, rows: Stacked | Interleaved, bias: Tensor | None, column_scale: Tensor | None = None) -> Packed:
        if self.quantization is None:
            return self._dense(rows, bias)
        return self._gguf(rows, bias) if self.quantization == "gguf" else self._int8(rows, bias, column_scale)

    def _dense(self, rows: Rows, bias: Tensor | None) -> DenseLinear:
        n, k = rows.shape
        dtype = rows.dtype if rows.dtype.itemsize < self.dtype.itemsize else self.dtype
        packed = self.memory.empty(*ops.packed_dense_shape(n, k, dtype), dtype=dtype)

        def pack(chunk: slice, panels: slice) -> None:
            packed[panels] = ops.pack_dense(rows[chunk].to(dtype))

        self._for_chunks(rows, pack)
        return DenseLinear(packed, n, bias)

    def _int8(self, rows: Rows, bias: Tensor | None, column_scale: Tensor | None) -> Int8Linear:
        assert self.quantization is not None
        n, k = rows.shape
        packed = self.memory.empty(-(-n // ops.PANEL), -(-k // 4) + 1, ops.PANEL, 4, dtype=torch.int8)
        scale = torch.empty(n, dtype=torch.float32, device=self.device)

        def pack(chunk: slice, panels: slice) -> None:
            weight = rows[chunk] if column_scale is None else rows[chunk] * column_scale
            quantized, scale[chunk] = ops.quantize_int8(weight)
            packed[panels] = ops.pack_int8(quantized)

        self._for_chunks(rows, pack)
        return Int8Linear(INT8_MATMULS[self.quantization], packed, scale, bias)

    def _gguf_parts(self, parts: Sequence[Rows], bias: Tensor | None) -> SideBySide:
        """A projection for each run of parts of one type."""
        runs = [Stacked(list(run)) for _, run in groupby(parts, _block_type)]
        biases = [None] * len(runs) if bias is None else bias.split_with_sizes([run.shape[0] for run in runs])
        return SideBySide([self._gguf(run, part) for run, part in zip(runs, biases, strict=True)])

    def _gguf(self, rows: Stacked | Interleaved, bias: Tensor | None) -> DenseLinear | GGUFLinear:
        kind = _block_type(rows.parts[0])
        if kind is None:
            return self._dense(rows, bias)
        n, k = rows.shape
        blocks = type(rows)([part.blocks for part in rows.parts if isinstance(part, BlockRows)])
        block = ops.GGUF_BLOCKS[kind]
        packed = self.memory.empty(-(-n // ops.PANEL), k // block.weights, ops.PANEL * block.bytes, dtype=torch.uint8)

        def pack(chunk: slice, panels: slice) -> None:
            packed[panels] = ops.pack_gguf(blocks[chunk], kind)

        self._for_chunks(rows, pack)
        return GGUFLinear(packed, n, bias)

    def _for_chunks(self, rows: Rows, pack: Callable[[slice, slice], None]) -> None:
        n, k = rows.shape
        panels, step = -(-n // ops.PANEL), max(1, CHUNK // (k * ops.PANEL))

        def run(panel: int) -> None:
            chunk = slice(panel * ops.PANEL, min((panel + step) * ops.PANEL, n))
            pack(chunk, slice(panel, min(panel + step, panels)))
            rows.release(chunk)
            self.advance((chunk.stop - chunk.start) * k)

        for _ in self.pool.map(run, range(0, panels, step)):
            pass


class WeightPlan(WeightLoader):
    """A WeightLoader that allocates nothing: what it makes has shapes and dtypes only."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype, quantization: str | None) -> None:
        super().__init__(checkpoint, dtype, quantization, torch.device("meta"))
        self.smooths = False

    def weight_bytes(self) -> int:
        """Bytes that the weights will take, tensor by tensor. Raises ModelError as WeightLoader.decoder does."""
        return self.decoder(1).weight_bytes()

    def _for_chunks(self, rows: Rows, pack: Callable[[slice, slice], None]) -> None:
        pass


def _block_type(rows: Rows) -> str | None:
    """The matrix's block type, if matmul_gguf takes it as it is."""
    return rows.block_type if isinstance(rows, BlockRows) and rows.block_type in ops.GGUF_BLOCKS else None


@contextmanager
def _worker_pool() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, each of which runs torch's own operations serially."""
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the workers' setting is also the default of threads still to come


def projection_shapes(config: ModelConfig) -> Iterator[tuple[int, int]]:
    """(N, K) of every projection that `WeightLoader` makes."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    for _ in range(1 if config.tie_word_embeddings else 2):
        yield config.vocab_size, hidden
    for _ in range(config.num_layers):
        yield from ((q + 2 * kv, hidden), (hidden, q), (2 * mlp, hidden), (hidden, mlp))


def count_weights(config: ModelConfig) -> int:
    return sum(prod(shape) for shape in projection_shapes(config))
