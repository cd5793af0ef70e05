from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_command import FAST, Cli
from safetensors.torch import save_file

from pybatch import LLM, SamplingParams


def save_adapter(folder: Path, seed: int) -> Path:
    random = torch.Generator().manual_seed(seed)
    module = "base_model.model.model.layers.1.mlp.down_proj.lora"
    factors = {f"{module}_A.weight": torch.randn(4, 96, generator=random), f"{module}_B.weight": torch.ones(64, 4)}
    folder.mkdir(exist_ok=True)
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    return folder


def test_an_adapter_changes_the_answers_and_is_part_of_the_job(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", 1)
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


def test_rows_name_their_adapters(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    first, second = (save_adapter(tmp_path / name, seed) for seed, name in enumerate(("first", "second"), 1))
    rows, out, cache = tmp_path / "rows.jsonl", tmp_path / "out.jsonl", tmp_path / "cache"
    names = [None, "first", "second", None, "first", "second"]
    rows.write_text("".join(json.dumps({"prompt": "Once", **({"model": n} if n else {})}) + "\n" for n in names))
    modules = ["--lora-modules", f"first={first}", "--lora-modules", f"second={second}"]
    command = ["run", rows, "-o", out, "--raw", "--model", tiny_model, "--cache", cache, *FAST]
    ran = cli(*command, *modules)
    assert ran.code == 0, ran.err
    responses = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    for adapter, response in zip((None, first, second), responses, strict=False):
        llm = LLM(tiny_model, adapter=adapter, threads=1, num_kv_blocks=128)
        wanted = llm.generate("Once", SamplingParams(temperature=0, max_tokens=8), use_tqdm=False)
        assert wanted[0].outputs[0].text == response
    assert responses[:3] == responses[3:]
    assert len(set(responses)) == 3
    save_adapter(second, 3)  # of the same name, with other content
    refused = cli(*command, *modules)
    assert refused.code != 0
    assert "lora_modules" in refused.err
    ran = cli(*command, *modules, "--fresh")
    assert ran.code == 0, ran.err
    changed = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    assert [a == b for a, b in zip(changed, responses, strict=True)] == [True, True, False] * 2
    rows.write_text(json.dumps({"prompt": "Once", "model": "frist"}) + "\n")
    ran = cli(*command, *modules, "--fresh")
    assert ran.code == 1
    assert "model: expected 'first' or 'second', or none, got 'frist'" in out.read_text()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("first", "lora_modules: expected name=path, got 'first' and ''"),
        ("first=/none", "lora_modules: adapter: expected a directory with"),
    ],
)
def test_what_is_no_adapter_is_told_at_once(cli: Cli, tiny_model: Path, tmp_path: Path, value: str, said: str) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Once"}\n')
    ran = cli("run", rows, "-o", tmp_path / "out.jsonl", "--raw", "--model", tiny_model, *FAST, "--lora-modules", value)
    assert ran.code == 2
    assert said in " ".join(ran.err.split())
