"""Writes a model of a known shape and random weights, for measuring what depends on sizes alone.

    python bench/random_model.py llama-3.2-1b DIRECTORY            # bf16 safetensors, in shards
    python bench/random_model.py llama-3.1-8b FILE.gguf --type Q4_0

A directory and the files of one seed hold the same weights, rounded by their types. The tokenizer is byte-level: its
vocabulary is filled up with tokens that no text has. Weights are made a few rows at a time, so that a model larger than
memory can be written. Every number of a shape can be given instead: --num-hidden-layers 4 ...
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from pathlib import Path

import gguf
import tokenizers
import torch
from gguf import GGMLQuantizationType
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

SPREAD = 0.02  # standard deviation of weights
CHUNK = 1 << 23  # weights made at a time
SHARD = 1 << 30  # bytes of a safetensors file, or one tensor if that is more
END = "<|end|>"


@dataclass(frozen=True)
class Shape:
    """Names are those of config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int = 128256
    tie_word_embeddings: bool = False
    max_position_embeddings: int = 8192
    rope_theta: float = 500000.0
    rms_norm_eps: float = 1e-5


SHAPES = {
    "llama-3.2-1b": Shape(2048, 8192, 16, 32, 8, 64, tie_word_embeddings=True),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128),
}


def tensor_shapes(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Under their Hugging Face names."""
    hidden, mlp = shape.hidden_size, shape.intermediate_size
    q, kv = shape.num_attention_heads * shape.head_dim, shape.num_key_value_heads * shape.head_dim
    yield "model.embed_tokens.weight", (shape.vocab_size, hidden)
    for i in range(shape.num_hidden_layers):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, q)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (mlp, hidden)
        yield f"{layer}.mlp.up_proj.weight", (mlp, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)
    if not shape.tie_word_embeddings:
        yield "lm_head.weight", (shape.vocab_size, hidden)


def chunks(size: tuple[int, ...], seed: int) -> Iterator[Tensor]:
    """A tensor's rows in order, in bfloat16; norms are ones."""
    if len(size) == 1:
        yield torch.ones(size, dtype=torch.bfloat16)
        return
    random = torch.Generator().manual_seed(seed)
    step = max(1, CHUNK // size[1])
    for first in range(0, size[0], step):
        rows = torch.randn(min(step, size[0] - first), size[1], generator=random)
        yield rows.mul_(SPREAD).to(torch.bfloat16)


def vocabulary(size: int) -> list[str]:
    """The end, all bytes, and tokens to fill up; two spaces are one token, since llama.cpp wants a merge."""
    texts = [END, *sorted(pre_tokenizers.ByteLevel.alphabet()), "ĠĠ"]
    if size < len(texts):
        raise SystemExit(f"vocab_size: expected at least {len(texts)}, got {size}")
    return texts + [f"<|filler {i}|>" for i in range(len(texts), size)]


def write_directory(path: Path, shape: Shape, seed: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = tokenizers.Tokenizer(
        models.BPE({text: i for i, text in enumerate(vocabulary(shape.vocab_size))}, [("Ġ", "Ġ")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(path / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": END, "eos_token": END}
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "bos_token_id": 0,
        "eos_token_id": 0,
        **asdict(shape),
    }
    (path / "config.json").write_text(json.dumps(config, indent=1))

    shards: list[list[tuple[int, str, tuple[int, ...]]]] = [[]]
    size = 0
    for number, (name, dims) in enumerate(tensor_shapes(shape)):
        if size and size + 2 * prod(dims) > SHARD:
            shards.append([])
            size = 0
        shards[-1].append((number, name, dims))
        size += 2 * prod(dims)
    where = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        where |= {name: file for _, name, _ in shard}
        write_shard(path / file, shard, seed)
    total = sum(2 * prod(dims) for _, dims in tensor_shapes(shape))
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_shard(path: Path, tensors: list[tuple[int, str, tuple[int, ...]]], seed: int) -> None:
    """The format of https://huggingface.co/docs/safetensors: the length of a JSON header, the header, the data."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for _, name, dims in tensors:
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + 2 * prod(dims)]}
        at += 2 * prod(dims)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for number, _, dims in tensors:
            for rows in chunks(dims, seed + number):
                out.write(rows.view(torch.int16).numpy().data)


def write_gguf(path: Path, shape: Shape, seed: int, kind: GGMLQuantizationType) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    writer.add_block_count(shape.num_hidden_layers)
    writer.add_context_length(shape.max_position_embeddings)
    writer.add_embedding_length(shape.hidden_size)
    writer.add_feed_forward_length(shape.intermediate_size)
    writer.add_head_count(shape.num_attention_heads)
    writer.add_head_count_kv(shape.num_key_value_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.rms_norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind.name}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokens = vocabulary(shape.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    writer.add_token_types([control] + [normal] * (len(tokens) - 1))
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_add_bos_token(False)

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.num_hidden_layers)
    tensors = list(tensor_shapes(shape))
    for name, dims in tensors:
        stored = kind if len(dims) == 2 else GGMLQuantizationType.F32
        block, size = gguf.GGML_QUANT_SIZES[stored]
        stored_dims = (*dims[:-1], dims[-1] // block * size) if len(dims) == 2 else dims
        writer.add_tensor_info(
            names.get_name(name, (".weight",)),
            stored_dims,
            torch.empty(0, dtype=torch.uint8 if len(dims) == 2 else torch.float32).numpy().dtype,
            prod(dims) // block * size,
            raw_dtype=stored,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for number, (name, dims) in enumerate(tensors):
        heads = {"q_proj": shape.num_attention_heads, "k_proj": shape.num_key_value_heads}.get(name.split(".")[-2], 0)
        begin = out.tell()
        for rows in [torch.cat([*chunks(dims, seed + number)])] if heads else chunks(dims, seed + number):
            if heads:  # ggml's llama has the two rows of a rotated pair side by side
                rows = rows.view(heads, 2, -1, dims[1]).transpose(1, 2).reshape(dims)
            data = rows.float().numpy()
            out.write((gguf.quants.quantize(data, kind) if len(dims) == 2 else data).data)
        writer.write_padding(out, out.tell() - begin)
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("path", type=Path, help="a directory to make, or a file that ends in .gguf")
    parser.add_argument("--type", default="Q4_0", help="of a GGUF file's matrices, all of them, such as Q8_0 or F16")
    parser.add_argument("--seed", type=int, default=0)
    for field in fields(Shape):
        kind = {"int": int, "float": float, "bool": lambda text: text.lower() in ("1", "true", "yes")}[str(field.type)]
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind)
    args = parser.parse_args()
    given = {field.name: getattr(args, field.name) for field in fields(Shape)}
    shape = replace(SHAPES[args.shape], **{name: value for name, value in given.items() if value is not None})
    if args.path.suffix == ".gguf":
        write_gguf(args.path, shape, args.seed, GGMLQuantizationType[args.type])
    else:
        write_directory(args.path, shape, args.seed)


if __name__ == "__main__":
    main()
