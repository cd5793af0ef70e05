from __future__ import annotations

import json
from pathlib import Path

import torch
from cli_command import FAST, Cli
from safetensors.torch import save_file

from pybatch import LLM, SamplingParams


def test_an_adapter_changes_the_answers_and_is_part_of_the_job(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(1)
    module = "base_model.model.model.layers.1.mlp.down_proj.lora"
    factors = {f"{module}_A.weight": torch.randn(4, 96, generator=random), f"{module}_B.weight": torch.ones(64, 4)}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    save_file(factors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"Once {i}"}) + "\n" for i in range(3)))

    def answers(*flags: str | Path) -> list[str]:
        ran = cli("run", rows, "-o", out, "--raw", "--model", tiny_model, *FAST, *flags)
        assert ran.code == 0, ran.err
        return [json.loads(line)["response"] for line in out.read_text().splitlines()]

    plain = answers()
    refused = cli("run", rows, "-o", out, "--raw", "--model", tiny_model, *FAST, "--adapter", adapter)
    assert refused.code != 0
    assert "adapter" in refused.err
    changed = answers("--adapter", adapter, "--fresh")
    assert changed != plain
    llm = LLM(tiny_model, adapter=adapter, threads=1, num_kv_blocks=128)
    outputs = llm.generate([f"Once {i}" for i in range(3)], SamplingParams(temperature=0, max_tokens=8))
    assert [output.outputs[0].text for output in outputs] == changed
