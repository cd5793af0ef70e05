"""The table of docs/families.md, of every family's small random models beside transformers:

PYTHONPATH=.:tests python -m model.family_table [FAMILY ...]

With names of families, the lines of others stay as they are.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from engine.runs import run
from model.families import CONFIGS, make, reference_logits, save, some_ids
from model.paged import logits_of

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.model import LoadedModel, load_model
from pybatch.model.families import FAMILIES

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
HEAD = (
    "| family | models | greedy tokens | largest difference of a log-probability | int8: 1 - cosine of logits "
    "| bits in batches and chunks | GGUF |\n| --- | --- | --- | --- | --- | --- | --- |\n"
)
LENGTHS = (1, 40, 120, 300)
CLEAR = 1e-3  # apart have to be the two largest logits of transformers for the token to count


@dataclass(frozen=True)
class Result:
    greedy: bool
    difference: float
    int8: float
    bits: bool


def result_of(name: str) -> Result:
    """Of one of CONFIGS."""
    model = make(name)
    with tempfile.TemporaryDirectory() as folder:
        directory = save(model, Path(folder))
        loaded = load_model(directory, skip_tokenizer=True)
        int8 = load_model(directory, quantization="int8", skip_tokenizer=True)
    greedy, differences, errors = True, [], []
    for length in LENGTHS:
        ids = some_ids(length)
        theirs, ours = reference_logits(model, ids), logits_of(loaded.decoder, ids)
        top = theirs.topk(2).values
        clear = top[:, 0] - top[:, 1] > CLEAR
        greedy = greedy and torch.equal(ours.argmax(1)[clear], theirs.argmax(1)[clear])
        differences.append((ours.log_softmax(1) - theirs.log_softmax(1)).abs().max().item())
        errors.append(1 - torch.cosine_similarity(logits_of(int8.decoder, ids), theirs).mean().item())
    return Result(greedy, max(differences), max(errors), all(map(has_the_same_bits, (loaded, int8))))


def has_the_same_bits(loaded: LoadedModel) -> bool:
    ids = some_ids(70)
    whole = logits_of(loaded.decoder, ids)
    chunks = all(torch.equal(logits_of(loaded.decoder, ids, steps), whole) for steps in ([16, 1, 30, 23], [1] * 70))
    prompts = [some_ids(length) for length in LENGTHS]
    together, alone = answers(loaded, prompts), [answers(loaded, [prompt])[0] for prompt in prompts]
    return chunks and together == alone


def answers(loaded: LoadedModel, prompts: Sequence[list[int]]) -> list[tuple[list[int], float | None]]:
    engine = Engine(loaded.decoder, None, EngineConfig(num_kv_blocks=256))
    outputs = run(engine, prompts, SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=1))
    return [(list(each.outputs[0].token_ids), each.outputs[0].cumulative_logprob) for each in outputs]


def line_of(family: str, results: Sequence[Result]) -> str:
    says = {True: "equal", False: "DIFFERENT"}
    cells = (
        family,
        str(len(results)),
        says[all(each.greedy for each in results)],
        f"{max(each.difference for each in results):.0e}",
        f"{max(each.int8 for each in results):.0e}",
        says[all(each.bits for each in results)],
        gguf.architecture if (gguf := FAMILIES[family].gguf) else "none",
    )
    return f"| {' | '.join(cells)} |\n"


def families() -> dict[str, list[str]]:
    """The names of CONFIGS that each family has."""
    found: dict[str, list[str]] = {}
    for name, config in CONFIGS.items():
        found.setdefault(config.model_type, []).append(name)
    return found


def committed() -> dict[str, list[str]]:
    """The cells behind each family's name."""
    lines = PAGE.read_text().split(HEAD)[1].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {family: cells for family, *cells in rows}


def main() -> None:
    wanted, lines = sys.argv[1:] or list(FAMILIES), []
    known = committed()
    for family, names in families().items():
        if family in wanted:
            lines.append(line_of(family, [result_of(name) for name in names]))
            print(lines[-1], end="", file=sys.stderr)
        elif family in known:
            lines.append(f"| {' | '.join([family, *known[family]])} |\n")
    text = PAGE.read_text()
    PAGE.write_text(re.sub(re.escape(HEAD) + r"(\|.*\n)*", lambda _: HEAD + "".join(lines), text))


if __name__ == "__main__":
    main()
