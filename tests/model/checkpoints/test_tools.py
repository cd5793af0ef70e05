"""Matrices quantised by the tools themselves (make_with_tools.py) are read as these dequantise them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from pybatch.model.checkpoints.formats import open_format
from pybatch.model.checkpoints.formats.mxfp4 import Stack
from pybatch.model.checkpoints.stored import StoredTensors, read_header
from pybatch.model.rows import BlockRows, ScaledRows

FILES = sorted((Path(__file__).parents[2] / "data" / "quantized").glob("*.safetensors"))
BLOCKS = {
    "autoawq": "Q4_1",
    "gptqmodel-3": "Q4_1",
    "gptqmodel-4": "Q4_1",
    "compressed-tensors-w4a16": "Q4_0",
    "compressed-tensors-w4a16-zeros": "Q4_1",
    "torchao-int4": "Q4_0",
    "compressed-tensors-w8a8": None,
    "torchao-w8a8": None,
    "compressed-tensors-fp8": None,
    "torchao-float8": None,
}  # the others: Q8_0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_matrix_is_what_its_tool_dequantises_it_to(path: Path) -> None:
    stored, texts = read_header(path)
    tensors = StoredTensors(path.parent, stored, texts)
    form = open_format(json.loads(texts["quantization_config"]), tensors, path.stem)
    assert form.holds("m")
    rows, expected = form.matrix("m"), tensors.whole("expected")
    exact = path.stem.startswith(("gptqmodel", "bitsandbytes-nf4", "compressed-tensors-w"))
    rtol = 1e-6 if exact else 2**-10  # for the other tools compute in 16 bits
    torch.testing.assert_close(rows[0:32].float(), expected, rtol=rtol, atol=1e-7)
    kind = BLOCKS.get(path.stem, "Q8_0")
    assert (rows.block_type if isinstance(rows, BlockRows) else None) == kind
    assert isinstance(rows, ScaledRows) == (kind is None)


def test_experts_are_what_transformers_dequantises_them_to(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 32, 2, 16), generator=generator, dtype=torch.uint8)
    scales = torch.randint(115, 125, (3, 32, 2), generator=generator, dtype=torch.uint8)
    save_file({"m.up_blocks": blocks, "m.up_scales": scales}, tmp_path / "x.safetensors")
    tensors = StoredTensors(tmp_path, *read_header(tmp_path / "x.safetensors"))
    stack = open_format({"quant_method": "mxfp4"}, tensors, "x").matrix("m.up")
    expected = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32).transpose(1, 2)
    assert tuple(stack.shape) == (3, 32, 64)
    assert torch.equal(stack[1:3], expected[1:3])
    assert isinstance(stack, Stack)
    assert isinstance(stack.flattened(), BlockRows)
    assert torch.equal(stack.flattened()[40:50], expected.flatten(0, 1)[40:50])


def test_there_are_files_of_every_tool() -> None:
    tools = {path.stem.split("-")[0] for path in FILES}
    assert tools == {"autoawq", "gptqmodel", "compressed", "bitsandbytes", "torchao"}
