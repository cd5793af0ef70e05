"""A decoder whose layers' weights are on the host has the bits of one that has them all, from two buffers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from engine.runs import run, some_prompt
from hypothesis import given
from hypothesis import strategies as st
from model.families import SMALL, make, save, some_ids
from model.paged import logits_of
from torch import Tensor

from pybatch import LLM
from pybatch.engine import Engine, EngineConfig, SamplingParams
from pybatch.engine.disk.fingerprint import fingerprint
from pybatch.engine.execution.decode_graphs import DecodeGraphs
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.model import Decoder, ModelError, load_model
from pybatch.model.layers import Packed
from pybatch.model.offload import BUFFERS, GIB, HostLayers, choose_layers, spread, weights_size
from pybatch.model.tensors import changed

ALL = 1.0  # GiB: more than the weights of these models
CPU = torch.device("cpu")


def loaded(model: Path | str, gib: float = 0, **arguments: Any) -> Decoder:
    return load_model(model, skip_tokenizer=True, cpu_offload_gb=gib, **arguments).decoder


def weights_of(layer: object) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(linear: Packed) -> Packed:
        found.append(linear.weight)
        return linear

    changed(layer, Packed, keep)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("family", "quantization"),
    [("qwen2", None), ("qwen3_next", None), ("qwen3_next", "int8"), ("gemma4", "int8-weight-only"), ("gpt_oss", None)],
)
def test_bits_are_those_of_a_resident_model(family: str, quantization: str | None, tmp_path: Path) -> None:
    directory, ids = save(make(family), tmp_path), some_ids(40)
    resident = loaded(directory, quantization=quantization)
    offloaded = loaded(directory, ALL, quantization=quantization)
    for steps in (None, [17, 1, 22], [40]):
        assert torch.equal(logits_of(offloaded, ids, steps), logits_of(resident, ids, steps))
    assert offloaded.weight_bytes() == resident.weight_bytes()
    config = EngineConfig()
    assert fingerprint(offloaded, kv_layout(offloaded, config)) == fingerprint(resident, kv_layout(resident, config))


def test_all_weights_of_projections_are_in_two_buffers(tmp_path: Path) -> None:
    decoder = loaded(save(make("qwen3_next"), tmp_path), ALL, quantization="int8")
    assert decoder._host is not None
    buffers = [buffer.untyped_storage().data_ptr() for buffer in decoder._host.buffers]
    for index, layer in enumerate(decoder.layers):
        places = {weight.untyped_storage().data_ptr() for weight in weights_of(layer)}
        assert places == {buffers[index % BUFFERS]}
    assert {len(buffer) for buffer in decoder._host.buffers} == {max(map(weights_size, decoder.layers))}


def test_an_engine_gives_the_tokens_of_a_resident_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """SmolLM2, of whose 30 layers 15 are on the host."""
    monkeypatch.setattr(
        DecodeGraphs, "takes", staticmethod(lambda chunks: False)
    )  # a CPU's graph records kernels alone, a GPU's the copies too
    resident = loaded("smollm2-135m", quantization="int8")
    half = sum(map(weights_size, resident.layers)) / 2 / GIB
    offloaded = loaded("smollm2-135m", half, quantization="int8")
    assert offloaded._host is not None
    assert len(offloaded._host._turns) == 15
    prompts = [some_prompt(length) for length in (3, 40, 17)]
    params = [SamplingParams(temperature=t, max_tokens=4, ignore_eos=True, logprobs=1, seed=1) for t in (0, 0.9, 0.9)]
    config = EngineConfig(num_kv_blocks=12, max_num_batched_tokens=24, kv_cache_dtype="int8")
    found = [
        [(each.outputs[0].token_ids, each.outputs[0].logprobs) for each in run(engine, prompts, params)]
        for engine in (Engine(decoder, None, config) for decoder in (resident, offloaded))
    ]
    assert found[0] == found[1]


class Clocks:
    """A device whose streams are vector clocks: how much of each stream's work is sure to be done before what comes
    next on it. What one stream does is seen by another through events alone."""

    def __init__(self) -> None:
        self._count = 0
        self.entered: Callable[[], None] = lambda: None
        self.current = self.Stream(CPU)

    def Stream(self, device: torch.device) -> Any:  # noqa: N802
        self._count += 1
        return SimpleNamespace(name=self._count, done=Counter[int](), previous=None)

    def Event(self) -> Any:  # noqa: N802
        event = SimpleNamespace(done=Counter[int]())

        def record(stream: Any) -> None:
            event.done = Counter(stream.done)

        def wait(stream: Any) -> None:
            stream.done |= event.done

        event.record, event.wait = record, wait
        return event

    def current_stream(self, device: torch.device) -> Any:
        return self.current

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        before, self.current = self.current, stream
        self.entered()
        yield
        self.current = before

    def work(self) -> tuple[int, int]:
        """Something on the current stream, and the moment at which it is done."""
        self.current.done[self.current.name] += 1
        return self.current.name, self.current.done[self.current.name]

    def is_done(self, moment: tuple[int, int]) -> bool:
        """Before what comes next on the current stream."""
        return bool(self.current.done[moment[0]] >= moment[1])


@given(st.lists(st.integers(1, 5), min_size=1, max_size=12), st.data())
def test_streams_wait_for_each_other(sizes: list[int], data: st.DataObject) -> None:
    """No copy into a buffer begins before the layer that reads it has run, no layer before its copy is there, in any
    order in which streams might do their work; a step leaves no copy under way; copies are as early as can be."""
    chosen = sorted(data.draw(st.sets(st.sampled_from(range(len(sizes))), min_size=1)))
    clocks = Clocks()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_device_module", lambda device: clocks)
        host = HostLayers({index: 256 * sizes[index] for index in chosen}, CPU)
    host._used = [256 * sizes[index] for index in chosen]
    filled: list[tuple[int, int]] = [(0, 0)] * BUFFERS  # when each buffer was
    read: list[tuple[int, int]] = [(0, 0)] * BUFFERS
    copies = 0  # of the step

    def copying() -> None:
        nonlocal copies
        assert clocks.is_done(read[copies % BUFFERS])
        filled[copies % BUFFERS] = clocks.work()
        copies += 1

    clocks.entered = copying
    layers: list[Any] = list(range(len(sizes)))
    for _ in range(2):
        copies = 0
        for index in host.in_turn(layers):
            turn = host._turns.get(index)  # type: ignore[call-overload]
            if turn is not None:
                assert copies == min(turn + BUFFERS, len(chosen))
                assert clocks.is_done(filled[turn % BUFFERS])
                read[turn % BUFFERS] = clocks.work()
        assert all(map(clocks.is_done, filled))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 200))
def test_layers_are_chosen_at_even_distances(sizes: list[int], most: int) -> None:
    chosen = spread(sizes, most)
    assert sum(sizes[index] for index in chosen) <= most
    if chosen:
        gaps = [b - a for a, b in zip([-1, *chosen], chosen, strict=False)]
        assert max(gaps) - min(gaps) <= 1
        assert chosen[-1] == len(sizes) - 1
    if sum(sizes) <= most:
        assert len(chosen) == len(sizes)


def test_bad_sizes_are_refused(tmp_path: Path) -> None:
    directory = save(make("qwen2"), tmp_path)
    decoder = loaded(directory)
    assert choose_layers(decoder.layers, 0) == {}
    assert len(choose_layers(decoder.layers, ALL)) == SMALL["num_hidden_layers"]
    with pytest.raises(ModelError, match=r"cpu_offload_gb: expected at least the weights of 3 layers, 0\.00034 GiB"):
        loaded(directory, 0.0001)
    with pytest.raises(ValueError, match=r"cpu_offload_gb: expected 0 on the CPU, .*, got 0\.5"):
        LLM(directory, device="cpu", cpu_offload_gb=0.5)
    for wrong in (-1, float("nan"), float("inf"), "4", True):
        with pytest.raises(ValueError, match="cpu_offload_gb: expected a number of GiB, at least 0, got"):
            LLM(directory, cpu_offload_gb=wrong)  # type: ignore[arg-type]
