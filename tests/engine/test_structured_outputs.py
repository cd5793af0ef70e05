"""Outputs of a random model, which would be noise, match their constraints; and nobody else notices."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from typing import Any
from unittest.mock import patch

import jsonschema
import pytest
import torch
from engine.runs import EOS, MakeEngine, drain, run, some_prompt

from pybatch.engine import Engine, RequestOutput, SamplingParams
from pybatch.engine.execution.masks import BatchMasks
from pybatch.engine.execution.model_runner import ModelRunner
from pybatch.engine.scheduling.step import Chunk
from pybatch.engine.standing import BACKGROUND, Standing
from pybatch.engine.structured.params import StructuredOutputsParams
from pybatch.model import Decoder

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["a", "b", "ünï🙂"]}, "minItems": 1, "maxItems": 3},
        "next": {"anyOf": [{"type": "null"}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "next"],
    "additionalProperties": False,
}
ARITHMETIC = """
start: sum
sum: product | sum "+" product
product: NUMBER | "(" sum ")"
NUMBER: /[1-9][0-9]?/
"""
GBNF = """
root ::= "<" item+ ">"
item ::= [a-c] | "日本"
"""


def schema_holds(text: str, schema: Any = PERSON) -> bool:
    jsonschema.validate(json.loads(text), schema)
    return True


EMAIL = re.compile(r"[a-z]{3,9}@(é|[0-9]){2}\.com")
CHOICES = ["positive", "negative", "pos", 'a "b"\n\\', "日本🙂"]

CONSTRAINTS: dict[str, tuple[dict[str, Any], Any]] = {
    "json": ({"json": PERSON, "disable_any_whitespace": True}, schema_holds),
    "json as text": ({"json": json.dumps(PERSON), "whitespace_pattern": "[ ]?"}, schema_holds),
    "regex": ({"regex": EMAIL.pattern}, EMAIL.fullmatch),
    "choice": ({"choice": CHOICES}, CHOICES.__contains__),
    "lark": ({"grammar": ARITHMETIC}, re.compile(r"[0-9+()]+").fullmatch),
    "gbnf": ({"grammar": GBNF}, re.compile(r"<([a-c]|日本)+>").fullmatch),
}


def params(kind: str, **fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 1.0, "max_tokens": 300, **fields}, structured_outputs=CONSTRAINTS[kind][0])


def text_of(output: RequestOutput) -> str:
    assert output.error is None
    return output.outputs[0].text


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_outputs_match_their_constraints(make_engine: MakeEngine, temperature: float) -> None:
    engine = make_engine()
    kinds = [kind for kind in CONSTRAINTS for _ in range(6)]
    each = [params(kind, temperature=temperature, seed=i) for i, kind in enumerate(kinds)]
    ended = 0
    for kind, output in zip(kinds, run(engine, [some_prompt(5, i) for i in range(len(kinds))], each), strict=True):
        if output.outputs[0].finish_reason == "stop":
            ended += 1
            assert CONSTRAINTS[kind][1](text_of(output)), (kind, text_of(output))
    assert ended > len(kinds) * (0.3 if temperature == 0 else 0.8), "the others went on to max_tokens"


def searched(is_search: bool) -> dict[str, Any]:
    return {"n": 2, "best_of": 3, "use_beam_search": True} if is_search else {}


def test_neighbours_keep_their_bits_and_a_constrained_request_its_own(
    make_engine: MakeEngine, decoder: Decoder
) -> None:
    kinds = [*CONSTRAINTS, *CONSTRAINTS]
    prompts = [some_prompt(3 + 5 * i, i) for i in range(2 * len(kinds))]
    each = [
        params(kinds[i // 2], seed=i, max_tokens=40, logprobs=2, **searched(i % 4 == 3))
        if i % 2
        else SamplingParams(max_tokens=40, temperature=0.7 * (i % 4), seed=i, logprobs=2, ignore_eos=True)
        for i in range(len(prompts))
    ]

    def bits(outputs: list[RequestOutput]) -> list[Any]:
        return [(o.error, [(s.token_ids, s.logprobs, s.finish_reason) for s in o.outputs]) for o in outputs]

    solo = make_engine(num_kv_blocks=64, enable_prefix_caching=False)
    alone = bits([run(solo, [prompt], one)[0] for prompt, one in zip(prompts, each, strict=True)])
    assert bits(run(make_engine(), prompts, each)) == alone
    assert bits(run(make_engine(max_num_seqs=5, max_num_batched_tokens=16), prompts, each)) == alone
    tight = make_engine(num_kv_blocks=20, predict_lengths=False)
    assert bits(run(tight, prompts, each)) == alone
    assert tight.metrics.preemptions > 0


def test_drafts_are_held_to_the_grammar_and_change_nothing(make_engine: MakeEngine) -> None:
    """Answers that repeat themselves, so that there are drafts to be right about and grammars to forbid others."""
    repeating = {"regex": "(abc|abd)(ab(c|d) ){3,9}x"}
    each = [
        SamplingParams(
            structured_outputs=repeating if i % 3 else CONSTRAINTS["json"][0],
            temperature=0.4 * (i % 2),
            seed=i,
            max_tokens=40,
            logprobs=1,
        )
        for i in range(9)
    ] + [SamplingParams(max_tokens=20, ignore_eos=True, temperature=0)]
    prompts = [some_prompt(5, i) for i in range(10)]

    def bits(engine: Engine) -> list[Any]:
        return [(o.error, o.outputs[0].token_ids, o.outputs[0].logprobs) for o in run(engine, prompts, each)]

    speculative = {"method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 1, "adaptive": False}
    drafting = make_engine(speculative_config=speculative)
    assert bits(drafting) == bits(make_engine())
    assert drafting.metrics.drafts.accepted_tokens > 0


def test_masks_are_made_while_the_model_runs(make_engine: MakeEngine) -> None:
    engine, begun = make_engine(), threading.Event()
    fill, compute = BatchMasks.fill, ModelRunner.run
    waited: list[bool] = []

    def telling(masks: BatchMasks, drafts: Any) -> None:
        fill(masks, drafts)
        begun.set()

    def waiting(runner: ModelRunner, chunks: list[Chunk]) -> torch.Tensor:
        waited.append(begun.wait(5))
        begun.clear()
        return compute(runner, chunks)

    with patch.object(BatchMasks, "fill", telling), patch.object(ModelRunner, "run", waiting):
        [output] = run(engine, [some_prompt(5)], params("regex"))
    assert CONSTRAINTS["regex"][1](text_of(output))
    assert len(waited) == len(output.outputs[0].token_ids)
    assert all(waited)


def test_a_batch_that_fails_while_masks_are_made_is_tried_again_without_a_trace(make_engine: MakeEngine) -> None:
    kinds = [*CONSTRAINTS]
    prompts, each = [some_prompt(5, i) for i in range(len(kinds))], [params(kind, seed=3) for kind in kinds]
    compute = ModelRunner.run

    def failing(runner: ModelRunner, chunks: list[Chunk]) -> torch.Tensor:
        if len(chunks) > 2:
            raise LookupError("too many")
        return compute(runner, chunks)

    wanted = [text_of(output) for output in run(make_engine(), prompts, each)]
    with patch.object(ModelRunner, "run", failing):
        assert [text_of(output) for output in run(make_engine(), prompts, each)] == wanted


def test_samples_follow_the_grammar_each_by_itself(make_engine: MakeEngine) -> None:
    [output] = run(make_engine(), [some_prompt(5)], params("regex", n=8, seed=3))
    texts = [sample.text for sample in output.outputs]
    assert all(map(CONSTRAINTS["regex"][1], texts))
    assert len(set(texts)) > 4
    assert [sample.finish_reason for sample in output.outputs] == ["stop"] * 8


def test_a_sequence_ends_where_nothing_can_follow(make_engine: MakeEngine) -> None:
    """So a choice of one token is answered by the prompt's own step."""
    engine = make_engine()
    [first] = run(engine, [some_prompt(5)], SamplingParams(structured_outputs={"choice": ["x", "y"]}, min_tokens=3))
    assert first.outputs[0].text in ("x", "y")
    assert (first.outputs[0].finish_reason, first.outputs[0].stop_reason) == ("stop", None)
    assert len(first.outputs[0].token_ids) == 1
    [ignoring] = run(engine, [some_prompt(5)], SamplingParams(structured_outputs={"choice": ["xy"]}, ignore_eos=True))
    assert ignoring.outputs[0].text == "xy"


def test_the_end_of_sequence_is_allowed_where_the_grammar_may_end(make_engine: MakeEngine) -> None:
    engine = make_engine()
    wanting = {EOS: 100.0}
    one_more = {"structured_outputs": {"regex": "a{4}a*"}, "max_tokens": 50, "logit_bias": wanting}
    [output] = run(engine, [some_prompt(5)], SamplingParams(**one_more))
    assert (output.outputs[0].text, output.outputs[0].finish_reason) == ("aaaa", "stop")
    assert output.outputs[0].token_ids[-1] == EOS
    [longer] = run(engine, [some_prompt(5)], SamplingParams(**one_more, min_tokens=9))
    assert len(longer.outputs[0].token_ids) == 10
    assert set(longer.outputs[0].text) == {"a"}


def test_other_parameters_hold_beside_a_grammar(make_engine: MakeEngine) -> None:
    engine = make_engine()
    digits = {"regex": "[0-9]{20}"}
    [cut] = run(engine, [some_prompt(5)], SamplingParams(structured_outputs=digits, max_tokens=7))
    assert re.fullmatch("[0-9]+", cut.outputs[0].text)
    assert (cut.outputs[0].finish_reason, len(cut.outputs[0].token_ids)) == ("length", 7)
    stops = [str(digit) for digit in range(10)]
    [stopped] = run(engine, [some_prompt(5)], SamplingParams(structured_outputs=digits, max_tokens=40, stop=stops))
    assert (stopped.outputs[0].text, stopped.outputs[0].finish_reason) == ("", "stop")
    assert stopped.outputs[0].stop_reason in stops
    plain = run(engine, [some_prompt(5)], SamplingParams(structured_outputs=digits, max_tokens=40))[0].outputs[0]
    ids = [engine._tokenizer.encode(digit)[0] for digit in ("3", "5")]  # type: ignore[union-attr]
    only = SamplingParams(structured_outputs=digits, max_tokens=40, allowed_token_ids=ids, logprobs=1)
    [both] = run(engine, [some_prompt(5)], only)
    assert set(both.outputs[0].text) <= {"3", "5"}
    assert len(both.outputs[0].text) == len(plain.text) == 20
    assert both.outputs[0].logprobs
    assert min(next(iter(entry.values())).logprob for entry in both.outputs[0].logprobs) < -1, "of the raw logits"


def test_a_mask_without_tokens_is_the_requests_error(make_engine: MakeEngine) -> None:
    engine = make_engine()
    dead = SamplingParams(structured_outputs={"regex": "[a-c]+"}, allowed_token_ids=[EOS, 200])
    outputs = run(engine, [some_prompt(5), some_prompt(6)], [dead, params("choice")])
    assert outputs[0].error is not None
    assert "structured_outputs and allowed_token_ids leave no token to draw" in outputs[0].error
    assert CONSTRAINTS["choice"][1](text_of(outputs[1]))


# Each of these took minutes, gigabytes or was an error of the library. What comes back is an error or an output.
CIRCLE = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
ENDLESS = {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}, "required": ["n"]}
DOUBLING = {f"a{i}": {"anyOf": [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(60)} | {"a60": {}}
PRODUCT = [[{"required": [f"p{i}{j}"], "properties": {f"p{i}{j}": {}}} for j in range(6)] for i in range(14)]
RULES = " | ".join(f"r{i}" for i in range(5000)) + "\n" + "\n".join(f'r{i}: "k{i}" start?' for i in range(5000))
HOSTILE: dict[str, dict[str, Any]] = {
    "nested arrays": {"json": '{"type":"array","items":' * 400 + "{}" + "}" * 400},
    "nested objects that Python cannot read": {"json": '{"items":' * 90_000 + "{}" + "}" * 90_000},
    "a huge enum": {"json": {"enum": [f"v{i}" for i in range(60_000)]}},
    "branches that double": {"json": {"$defs": DOUBLING, "$ref": "#/$defs/a0"}},
    "a product of choices": {"json": {"allOf": [{"anyOf": branches} for branches in PRODUCT]}},
    "a multiple of a prime": {"json": {"type": "integer", "multipleOf": 9999991}},
    "optional letters": {"regex": "(a?){1000}a{1000}"},
    "a long run of word characters": {"regex": r"\w{1,100000}"},
    "repeats of repeats": {"regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
    "an exponential automaton": {"regex": "(a|b)*a(a|b){40}c"},
    "deep groups": {"regex": "(" * 50_000 + "a" + ")" * 50_000},
    "look-around": {"regex": "(?=a)b"},
    "an unclosed group": {"regex": "(("},
    "a reference to itself": {"json": {"$ref": "#"}},
    "references in a circle": {"json": CIRCLE},
    "a list that never ends": {"json": {"$defs": {"n": ENDLESS}, "$ref": "#/$defs/n"}},
    "a remote reference": {"json": {"$ref": "https://example.com/schema.json"}},
    "a file": {"json": {"$ref": "file:///etc/passwd"}},
    "a contradiction": {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
    "false": {"json": False},
    "a string of a billion characters": {"json": {"type": "string", "minLength": 10**9}},
    "items without end": {"json": {"type": "array", "minItems": 10**9}},
    "a left recursion of nothing": {"grammar": 'start: start start | ""'},
    "rules in a circle": {"grammar": "start: a\na: b\nb: a"},
    "a broken grammar": {"grammar": "start: (("},
    "a grammar of 5,000 rules": {"grammar": f"start: {RULES}"},
    "an unknown rule": {"grammar": "start: nothing"},
    "GBNF that is none": {"grammar": 'root ::= "a'},
    "no keyword": {"json": {"type": "nonsense"}},
}
MAY_RUN = {
    "a huge enum",
    "a long run of word characters",
    "an exponential automaton",
    "a list that never ends",
    "optional letters",
    "a string of a billion characters",
    "items without end",
    "repeats of repeats",
    "branches that double",
    "a left recursion of nothing",
}


def test_hostile_constraints_end_with_an_error_and_nobody_else_notices(make_engine: MakeEngine) -> None:
    engine = make_engine(structured_outputs_timeout=2.0)
    prompt = some_prompt(5)
    plain = SamplingParams(max_tokens=30, ignore_eos=True)
    wanted = run(engine, [prompt], plain)[0].outputs[0].token_ids
    refused = {}
    begin = time.perf_counter()
    for name, constraint in HOSTILE.items():
        try:
            engine.add_request(name, prompt, SamplingParams(max_tokens=12, structured_outputs=constraint))
        except ValueError as error:
            refused[name] = str(error)
    engine.add_request("neighbour", prompt, plain)
    outputs = {output.request_id: output for output in drain(engine)}
    assert time.perf_counter() - begin < 40
    assert outputs.pop("neighbour").outputs[0].token_ids == wanted
    assert refused.keys() <= {"nested objects that Python cannot read"}
    assert outputs.keys() | refused.keys() == HOSTILE.keys()
    errors = refused | {name: output.error for name, output in outputs.items() if output.error is not None}
    for name, error in errors.items():
        assert error.removeprefix("GrammarError: ").startswith("structured_outputs: "), (name, error)
        assert len(error) < 400
    runnable = HOSTILE.keys() - errors.keys()
    assert runnable <= MAY_RUN
    assert "did not compile within 2 s" in errors["a multiple of a prime"]
    assert {output.error_code for output in outputs.values() if output.error is not None} == {"invalid_request"}
    assert CONSTRAINTS["choice"][1](text_of(run(engine, [prompt], params("choice"))[0])), "the engine goes on"


def test_grammars_are_compiled_where_many_files_are_open(make_engine: MakeEngine) -> None:
    """As in a server with a connection for each; select refuses descriptors from 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        digits = StructuredOutputsParams(regex="[0-9]{7}")
        (output,) = run(make_engine(), [some_prompt(5)], SamplingParams(max_tokens=20, structured_outputs=digits))
        assert re.fullmatch("[0-9]{7}", text_of(output))
    finally:
        for file in files:
            os.close(file)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_others_run_while_a_grammar_is_compiled(make_engine: MakeEngine) -> None:
    engine = make_engine(structured_outputs_timeout=3.0)
    slow = {"json": {"type": "integer", "multipleOf": 99_999_989}}
    engine.add_request("slow", some_prompt(5), SamplingParams(structured_outputs=slow))
    engine.add_request("aborted", some_prompt(5), SamplingParams(structured_outputs=slow))
    assert engine.num_waiting == 2
    engine.abort("aborted")
    finished = []
    for i in range(3):
        engine.add_request(str(i), some_prompt(5), SamplingParams(max_tokens=5, ignore_eos=True))
        while str(i) not in finished:
            finished += [output.request_id for output in engine.step()]
    assert finished == ["0", "1", "2"]
    [slow_output] = drain(engine)
    assert slow_output.request_id == "slow"
    assert slow_output.error == "structured_outputs: it did not compile within 3 s"


def test_grammars_of_rows_hold_up_no_others(make_engine: MakeEngine) -> None:
    engine = make_engine(structured_outputs_timeout=1.0)
    rows = Standing(priority=BACKGROUND)
    for number in range(4):
        slow = {"json": {"type": "integer", "multipleOf": 99_999_989 + number}}
        engine.add_request(f"row {number}", some_prompt(5), SamplingParams(structured_outputs=slow), standing=rows)
    engine.add_request("mine", some_prompt(5), params("choice"))
    ended = [output.request_id for output in drain(engine)]
    assert ended.index("mine") < 2
    assert len(ended) == 5


ENDS_WITH_GRAMMARS = """
import time
from pybatch.engine.structured.workers import Workers

workers = Workers(1, "work")
pieces = [workers.submit(lambda: time.sleep(30)) for _ in range(10)]
time.sleep(0.1)
"""


def test_the_process_does_not_wait_for_grammars_at_its_end() -> None:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", ENDS_WITH_GRAMMARS], check=True, timeout=60)
    assert time.perf_counter() - begin < 20


def test_who_ends_while_its_grammar_is_compiled_waits_no_more(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for name in ("0", "1"):
        engine.add_request(name, [5, 6], params("choice"))
    assert engine.num_waiting == 2
    engine.abort("0")
    assert engine.num_waiting == 1
    assert [output.request_id for output in drain(engine)] == ["1"]
    assert engine.num_waiting == 0


def test_a_constraint_is_compiled_once(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    compiled = []
    from pybatch.engine.structured import compiler

    make = compiler.make_matcher
    monkeypatch.setattr(compiler, "make_matcher", lambda *args: compiled.append(args) or make(*args))
    run(engine, [some_prompt(5, i) for i in range(20)], params("choice"))
    run(engine, [some_prompt(5, i) for i in range(20)], params("choice"))
    run(
        engine, [some_prompt(5)], SamplingParams(structured_outputs=StructuredOutputsParams(**CONSTRAINTS["choice"][0]))
    )
    assert len(compiled) == 1


def test_an_engine_without_a_tokenizer_refuses_them(make_engine: MakeEngine) -> None:
    engine: Engine = make_engine(with_tokenizer=False)
    with pytest.raises(ValueError, match="structured_outputs: expected none, since the engine has no tokenizer"):
        engine.add_request("0", [1, 2], params("choice"))
