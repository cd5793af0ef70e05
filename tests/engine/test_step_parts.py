from __future__ import annotations

from pathlib import Path

import pytest

from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.step_parts import StepParts, decode_step
from pybatch.model import load_model


@pytest.fixture
def engine(tiny_model: Path) -> Engine:
    decoder = load_model(tiny_model, skip_tokenizer=True).decoder
    return Engine(decoder, None, EngineConfig(num_kv_blocks=64, max_num_seqs=4))


def answer(engine: Engine) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True, detokenize=False)
    engine.add_request("a", [5, 6, 7], params)
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    return list(outputs[0].outputs[0].token_ids)


def test_the_parts_are_the_step(engine: Engine) -> None:
    expected = answer(engine)
    parts = decode_step(engine, 4, 20, 5)
    named = {name: seconds for name, seconds in parts.items() if name not in ("step", "other")}
    assert {"schedule", "inputs", "sample", "update"} < named.keys()
    assert len(named) > 6  # the kernels
    assert min(named.values()) >= 0
    assert sum(named.values()) < 1.5 * parts["step"]
    assert not engine.has_unfinished()
    engine.check_integrity()
    assert answer(engine) == expected


def test_the_engine_is_as_it_was_afterwards(engine: Engine) -> None:
    before = dict(vars(engine))
    with StepParts(engine):
        assert vars(engine).keys() > before.keys()
        assert answer(engine)
    assert vars(engine).keys() == before.keys()


@pytest.mark.parametrize(("sequences", "context"), [(0, 8), (5, 8), (1, 5000), (4, 300)])
def test_what_has_no_room_is_refused(engine: Engine, sequences: int, context: int) -> None:
    with pytest.raises(ValueError, match=r"sequences: expected 1 to 4|context: expected at most|context: .* KV blocks"):
        decode_step(engine, sequences, context, 4)
