"""Plans: the roofline, the traces, and the choice of a batch size."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from model.families import CONFIGS, make, save

from pybatch.engine import EngineConfig
from pybatch.engine.config import DEFAULTS
from pybatch.engine.execution.kv_cache import kv_layout
from pybatch.model.config import ModelConfig
from pybatch.model.decoder import Decoder
from pybatch.model.families.read import config_from_hf
from pybatch.model.unweighted import planned_decoder, read_config
from pybatch.tune import machines
from pybatch.tune.chips import CHIPS, find_chip, measured_shares
from pybatch.tune.cost import Prices
from pybatch.tune.machines import OnChip, ThisMachine, cut
from pybatch.tune.options import Option, Targets
from pybatch.tune.plan import plan
from pybatch.tune.roofline import Roofline, products
from pybatch.tune.simulator import Simulator
from pybatch.tune.step_times import StepShape, StepTimes
from pybatch.tune.trace import Traces
from pybatch.tune.workload import Lengths, Workload, of_lengths

LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 8192,
}


@pytest.fixture(scope="module")
def llama() -> ModelConfig:
    return config_from_hf(LLAMA_8B, name="llama-8b")


def rows(count: int, inputs: str = "200", outputs: str = "40") -> Workload:
    return of_lengths(count, Lengths.parse("input_tokens", inputs), Lengths.parse("output_tokens", outputs))


@dataclass
class Flat:
    """A machine whose steps take what they are told to."""

    step: float
    token: float
    blocks: int = 10_000
    name: str = "flat"
    kv_cache_dtypes: tuple[str, ...] = ("auto",)
    precisions: tuple[str, ...] = ("bfloat16",)
    max_num_batched_tokens: int = 512

    def decoder(self, model: ModelConfig, precision: str) -> Decoder:
        return planned_decoder(model, torch.bfloat16, None)

    def host_bytes(self, decoder: Decoder) -> int:
        return 0

    def cache_bytes(self, decoder: Decoder, max_num_seqs: int) -> int:
        return self.blocks * kv_layout(decoder, EngineConfig()).block_bytes

    def steps(self, decoder: Decoder, precision: str, config: EngineConfig) -> Flat:
        return self

    def parts(self, shape: StepShape) -> dict[str, float]:
        return {"weights": self.step, "arithmetic": self.token * shape.tokens}

    def seconds(self, shape: StepShape) -> float:
        return sum(self.parts(shape).values())


# ---- the roofline ----


@pytest.mark.parametrize("name", ["llama", "qwen3_5", "mixtral", "gemma4", "gemma4-shared"])
def test_the_products_are_the_models_matrices(name: str, tmp_path: Path) -> None:
    if name not in CONFIGS:
        pytest.skip("no such family")
    config = read_config(save(make(name), tmp_path))
    decoder = planned_decoder(config, torch.float32, None)
    of_products = sum(each.weights for each in products(decoder))
    vocab = config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)
    assert 0.6 < 2 * (of_products + vocab) / decoder.weight_bytes() < 1.2


def test_a_roofline_takes_the_bytes_and_operations_of_llama(llama: ModelConfig) -> None:
    decoder = planned_decoder(llama, torch.bfloat16, None)
    assert sum(each.weights for each in products(decoder)) == 32 * 4096 * (6144 + 4096 + 3 * 14336)
    chip, shares = CHIPS["H100-SXM"], measured_shares()
    roofline = Roofline(chip, shares, decoder, None, kv_layout(decoder, EngineConfig()), None, "auto")
    parts = roofline.parts(StepShape(1, 1, 1000, 0))
    weights = 2 * (sum(each.weights for each in products(decoder)) + 128256 * 4096)
    bandwidth = chip.bandwidth * shares.copy * shares.matmuls["dense"].bytes
    assert parts["weights"] == pytest.approx(weights / bandwidth, rel=1e-3)
    kv = 1000 * 32 * 2 * 8 * 128 * 2
    assert parts["KV"] == pytest.approx(kv / (chip.bandwidth * shares.copy * shares.decode_attention["bfloat16"]))
    many = roofline.parts(StepShape(2048, 1, 0, 0))
    assert many["arithmetic"] > many["weights"] > parts["arithmetic"]


def test_the_roofline_is_near_what_was_measured_on_the_chip(llama: ModelConfig) -> None:
    """Whole models of bench/gpu_models.py, from which no share but the layers' was taken: 22.5 and 17.1 ms."""
    for quantization, kv, measured in ((None, "auto", 0.0225), ("int8", "int8", 0.0171)):
        decoder = planned_decoder(llama, torch.bfloat16, quantization)
        layout = kv_layout(decoder, EngineConfig(kv_cache_dtype=kv))  # type: ignore[arg-type]
        roofline = Roofline(CHIPS["H100-SXM"], measured_shares(), decoder, quantization, layout, None, kv)
        assert roofline.seconds(StepShape(64, 64, 64 * 544, 0)) == pytest.approx(measured, rel=0.35)


def test_experts_are_read_by_who_goes_through_them(tmp_path: Path) -> None:
    decoder = planned_decoder(read_config(save(make("mixtral"), tmp_path)), torch.float32, None)
    expert = next(each for each in products(decoder) if each.experts > 1)
    assert expert.touched(1) == pytest.approx(expert.per_token)
    assert expert.touched(10_000) == pytest.approx(expert.experts)


def test_chips_are_found_by_name_and_cite_where_they_are_from() -> None:
    assert find_chip("h100-sxm") is CHIPS["H100-SXM"]
    assert all("Datasheet" in chip.source for chip in CHIPS.values())
    with pytest.raises(ValueError, match=r"chip: expected one of H100-SXM, .*, got 'H9000'"):
        find_chip("H9000")


# ---- traces ----


def test_a_traces_times_are_those_of_a_simulation_by_the_clock() -> None:
    machine, workload = Flat(0.01, 0.001), rows(60, "uniform:20:300", "uniform:5:60")
    config = EngineConfig(max_num_seqs=8, max_queued=0, max_num_batched_tokens=512, memory_utilization=0.9)
    run = Simulator(config, machine.seconds, max_model_len=8192, num_kv_blocks=500).run(workload.take(60))
    trace = Traces(workload, 8192, 512).trace(8, 60, 500, 0)
    ends = trace.ends(machine.seconds)
    assert ends[-1] == pytest.approx(run.seconds)
    first = ends[trace.requests[:, 1].astype(int)] - ends[trace.requests[:, 0].astype(int)]
    assert first.mean() == pytest.approx(run.ttft.mean)
    assert sum(trace.counts().values()) == run.steps


def test_a_pool_that_is_no_bound_has_one_trace() -> None:
    traces = Traces(rows(60), 8192, 512)
    large = traces.trace(4, 20, 5000, 0)
    assert traces.trace(4, 20, 9000, 0) is large
    assert traces.trace(4, 20, 40, 0) is not large
    assert traces.trace(4, 19, 5000, 0) is not large


# ---- the plan ----


def only(machine: Flat, workload: Workload, targets: Targets | None = None, **options: int) -> Option:
    (option,) = plan(config_from_hf(LLAMA_8B, name="m"), machine, workload, targets or Targets(), **options).options
    return option


def test_where_steps_cost_alike_the_largest_batch_is_best() -> None:
    option = only(Flat(0.01, 0.0), rows(2000), max_num_seqs=32)
    assert option.best is not None
    assert (option.best.max_num_seqs, option.why) == (32, "the largest batch that was tried")
    rates = [point.output_rate for point in option.points]
    assert rates == sorted(rates)


def test_where_tokens_cost_a_larger_batch_brings_nothing() -> None:
    option = only(Flat(0.0001, 0.01), rows(2000), max_num_seqs=256)
    assert option.best is not None
    assert option.best.max_num_seqs <= 4
    assert option.why == "arithmetic takes most of a step"
    assert len(option.points) < 9  # it stops where there is nothing to be had


def test_a_jobs_time_is_that_of_all_its_rows() -> None:
    """What is told from a few batches is what a simulation of all rows takes."""
    machine, workload = Flat(0.01, 0.001), rows(3000, "uniform:20:300", "uniform:5:60")
    option = only(machine, workload, max_num_seqs=16)
    assert option.best is not None
    best = option.best
    config = EngineConfig(max_num_seqs=best.max_num_seqs, max_num_batched_tokens=512, memory_utilization=0.9)
    run = Simulator(config, machine.seconds, max_model_len=8192, num_kv_blocks=10_000).run(workload.take(3000))
    assert best.seconds == pytest.approx(run.seconds, rel=0.05)


def test_a_pool_that_is_too_small_bounds_the_batch() -> None:
    option = only(Flat(0.01, 0.0, blocks=60), rows(2000), max_num_seqs=256)
    assert option.best is not None
    assert option.best.max_num_seqs <= 8
    assert option.why == "the KV cache holds no more"
    tiny = only(Flat(0.01, 0.0, blocks=10), rows(2000))
    assert tiny.best is None
    assert tiny.why.startswith("does not fit: ")


def test_targets_bound_the_batch() -> None:
    machine = Flat(0.01, 0.001)
    free = only(machine, rows(2000))
    bound = only(machine, rows(2000), Targets(tpot=0.1))
    assert free.best is not None
    assert bound.best is not None
    assert bound.best.max_num_seqs < free.best.max_num_seqs
    assert bound.best.tpot_p99 <= 0.1
    assert bound.why.endswith("would miss the targets")
    none = only(machine, rows(2000), Targets(tpot=0.001))
    assert none.best is None
    assert none.why.startswith("no batch size meets the targets")


def test_machines_share_the_rows_so_that_the_deadline_is_met() -> None:
    alone = only(Flat(0.01, 0.001), rows(5000))
    assert alone.job_seconds is not None
    option = only(Flat(0.01, 0.001), rows(5000), Targets(deadline=alone.job_seconds / 4.5))
    assert option.machines is not None
    assert 5 <= option.machines <= 6
    assert option.job_seconds is not None
    assert option.job_seconds <= alone.job_seconds / 4.5
    assert option.usage is not None
    assert option.usage.seconds == pytest.approx(option.machines * option.job_seconds)
    never = only(Flat(0.01, 0.001), rows(5000), Targets(deadline=0.01))
    assert (never.machines, never.usage) == (None, None)


def test_a_plan_for_a_chip_has_every_precision_and_its_cost(llama: ModelConfig) -> None:
    made = plan(llama, OnChip(CHIPS["H100-SXM"]), rows(500, "128", "32"), Targets(), max_num_seqs=32)
    assert len(made.options) == 9
    chosen = made.chosen
    assert chosen is not None
    assert chosen.usage is not None
    assert chosen.usage.seconds == min(each.usage.seconds for each in made.options if each.usage)
    told = made.to_json(Prices(2.0))
    assert told["options"][told["chosen"]]["cost"]["dollars"] == pytest.approx(2 * chosen.usage.seconds / 3600)
    dense, int8 = made.options[0], made.options[-1]
    assert dense.weight_bytes > 1.9 * int8.weight_bytes
    small = plan(llama, OnChip(CHIPS["A10"]), rows(500), Targets(), precisions=["bfloat16"], kv_cache_dtypes=["auto"])
    assert (small.options[0].best is None) == (small.options[0].kv_blocks < 15)
    huge = replace(llama, layers=llama.layers * 4)
    assert plan(huge, OnChip(CHIPS["L4"]), rows(5), Targets(), precisions=["bfloat16"]).chosen is None


def test_weights_on_the_host_make_room_and_take_the_bus(llama: ModelConfig) -> None:
    chip = CHIPS["L4"]
    whole, machine = OnChip(chip), OnChip(chip, 8)
    decoder = machine.decoder(llama, "bfloat16")
    of_layer = 2 * 4096 * (6144 + 4096 + 3 * 14336)
    host = 8 * 2**30 // of_layer * of_layer
    assert machine.host_bytes(decoder) == host
    room = machine.cache_bytes(decoder, 1) - whole.cache_bytes(decoder, 1)
    assert room == pytest.approx(DEFAULTS["cuda"]["memory_utilization"] * (host - 2 * of_layer), abs=1)
    steps, plain = (each.steps(decoder, "bfloat16", EngineConfig()) for each in (machine, whole))
    few, many = StepShape(1, 1, 1000, 0), StepShape(4096, 1, 0, 4096**2 // 2)
    assert steps.seconds(few) == pytest.approx(host / 32e9)
    assert steps.parts(few)["transfer"] == pytest.approx(host / 32e9 - plain.seconds(few))
    assert steps.seconds(many) == plain.seconds(many) > host / 32e9
    (option,) = plan(
        llama, machine, rows(500), Targets(), precisions=["bfloat16"], kv_cache_dtypes=["auto"], max_num_seqs=4
    ).options
    assert (option.host_weight_bytes, option.weight_bytes) == (host, decoder.weight_bytes())
    assert option.best is not None
    assert option.best.spent["transfer"] > 0


def test_this_machine_is_measured_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(machines, "SECONDS", 0.2)
    config = read_config(tiny_model)
    chosen = {"precisions": ["float32"], "kv_cache_dtypes": ["auto"], "max_num_seqs": 8}
    made = plan(config, ThisMachine(), rows(50, "20", "8"), Targets(), **chosen)  # type: ignore[arg-type]
    assert made.chosen is not None
    monkeypatch.setattr(machines, "measured", lambda *arguments: pytest.fail("measured again"))
    again = plan(config, ThisMachine(), rows(50, "20", "8"), Targets(), **chosen)  # type: ignore[arg-type]
    assert [each.seconds for each in again.options[0].points] == [each.seconds for each in made.options[0].points]


def test_a_large_model_is_told_from_two_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = read_config(save(make("qwen3_5"), tmp_path))
    deep = replace(config, layers=config.layers * 5)
    assert [cut(deep, layers).num_layers for layers in (2, 6)] == [2, 6]
    assert cut(deep, 2).attentions
    monkeypatch.setattr(machines, "MEASURED", 0)

    def times_of(model: ModelConfig, *of: object) -> StepTimes:
        return StepTimes([0.1 + model.num_layers, *[0.0] * 8, 1.0 * model.num_layers, 0.0])

    monkeypatch.setattr(machines, "times_of", times_of)
    times = machines.measured(deep, "float32", "auto", torch.float32)
    assert times.coefficients[0] == pytest.approx(0.1 + deep.num_layers)
    assert times.coefficients[-2] == pytest.approx(deep.num_layers)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precisions": ["fp4"]}, "precision: expected one of bfloat16, int8-weight-only, int8, got 'fp4'"),
        ({"kv_cache_dtypes": ["fp4"]}, "kv_cache_dtype: expected one of auto, fp8, int4, got 'fp4'"),
    ],
)
def test_what_no_machine_has_is_refused(llama: ModelConfig, options: dict[str, list[str]], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        plan(llama, OnChip(CHIPS["H200"]), rows(5), Targets(), **options)  # type: ignore[arg-type]


def test_rows_longer_than_the_context_are_refused(llama: ModelConfig) -> None:
    with pytest.raises(ValueError, match="a row has 9,040 tokens, and the context of llama-8b is 8,192"):
        plan(llama, OnChip(CHIPS["H200"]), rows(5, "9000"), Targets())


@pytest.mark.parametrize("seconds", [0, -1, math.inf, math.nan])
def test_targets_are_times(seconds: float) -> None:
    with pytest.raises(ValueError, match="deadline: expected seconds, above 0"):
        Targets(deadline=seconds)
