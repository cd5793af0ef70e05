"""Engines find the prefixes of earlier ones on the disk, and no bit of an answer depends on it."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import stat
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from engine.runs import MakeEngine, drain, run, some_prompt

from pybatch.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from pybatch.engine.disk import prefix_files
from pybatch.engine.disk.prefix_files import PrefixFiles
from pybatch.engine.standing import Standing
from pybatch.model import Decoder

PARAMS = SamplingParams(max_tokens=6, seed=1, ignore_eos=True, logprobs=2)
PREFIX = some_prompt(70)  # four blocks and a bit
PROMPTS = [[*PREFIX, *some_prompt(20 + i, i)] for i in range(4)]


def files_of(engine: Engine) -> PrefixFiles:
    files = engine.prefix_files
    assert files is not None
    files.wait()
    return files


def blocks_in(engine: Engine) -> list[Path]:
    """From the first of the chain, which is the last to be deleted."""
    return sorted(files_of(engine).folder.iterdir(), key=lambda path: -path.stat().st_mtime_ns)


def answers(engine: Engine, prompts: list[list[int]] = PROMPTS) -> list[Any]:
    return [(output.outputs, output.error) for output in run(engine, prompts, PARAMS)]


def num_from_disk(outputs: list[RequestOutput]) -> list[int]:
    return [0 if output.metrics is None else output.metrics.num_disk_tokens for output in outputs]


@pytest.fixture
def filled(make_engine: MakeEngine, tmp_path: Path) -> list[Path]:
    """The folder as an engine leaves it that has run PROMPTS."""
    engine = make_engine(prefix_cache_dir=tmp_path)
    answers(engine)
    return blocks_in(engine)


@pytest.mark.parametrize("kv_cache_dtype", ["float32", "bfloat16", "int8", "int4"])
def test_a_new_engine_finds_the_prefix_and_has_the_same_bits(
    make_engine: MakeEngine, tmp_path: Path, kv_cache_dtype: str
) -> None:
    config: dict[str, Any] = {"kv_cache_dtype": kv_cache_dtype}
    expected = answers(make_engine(**config, enable_prefix_caching=False))
    first = make_engine(**config, prefix_cache_dir=tmp_path)
    assert answers(first) == expected
    assert len(blocks_in(first)) == first.prefix_files.num_written == 4  # type: ignore[union-attr]
    second = make_engine(**config, prefix_cache_dir=str(tmp_path))
    outputs = run(second, PROMPTS, PARAMS)
    assert [(output.outputs, output.error) for output in outputs] == expected
    assert num_from_disk(outputs) == [64, 0, 0, 0]  # the others find it in the pool
    assert [output.num_cached_tokens for output in outputs] == [64, 64, 64, 64]
    metrics = second.metrics
    assert (metrics.disk_tokens, metrics.prefilled_disk_tokens, metrics.summary().disk_tokens) == (64, 64, 64)
    assert metrics.step_tokens == sum(map(len, PROMPTS)) - 4 * 64 + 4 * 5
    assert files_of(second).num_written == 0


def test_nothing_is_written_of_what_one_request_has_alone(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(prefix_cache_dir=tmp_path, num_kv_blocks=14, max_num_seqs=3, predict_lengths=False)
    run(engine, [some_prompt(40, i) for i in range(6)], SamplingParams(max_tokens=40, ignore_eos=True))
    assert engine.metrics.preemptions > 0  # and goes on with blocks of its own that it finds
    assert blocks_in(engine) == []


def test_a_pinned_prefix_is_written(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(prefix_cache_dir=tmp_path)
    pinned = engine.pin_prefix("pin", PREFIX)
    assert len(list(drain(engine))) == 1
    engine.unpin(pinned)
    assert len(blocks_in(engine)) == 4
    assert num_from_disk(run(make_engine(prefix_cache_dir=tmp_path), PROMPTS[:1], PARAMS)) == [64]


@pytest.mark.parametrize("place", [0, 2])
def test_damage_is_found_and_repaired(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path], caplog: pytest.LogCaptureFixture, place: int
) -> None:
    expected = answers(make_engine(enable_prefix_caching=False))
    content = bytearray(filled[place].read_bytes())
    content[-5] ^= 1
    filled[place].write_bytes(content)
    engine = make_engine(prefix_cache_dir=tmp_path)
    with caplog.at_level(logging.WARNING):
        assert answers(engine) == expected
    assert len(caplog.records) == 1
    assert "prefix_cache_dir" in caplog.text
    assert "checksum" in caplog.text
    assert files_of(engine).num_read == place
    assert len(blocks_in(engine)) == 4
    assert num_from_disk(run(make_engine(prefix_cache_dir=tmp_path), PROMPTS[:1], PARAMS)) == [64]


@pytest.mark.parametrize("harm", ["cut", "empty", "deleted", "pipe", "unreadable"])
def test_files_that_are_not_whole_are_computed(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path], harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(make_engine(enable_prefix_caching=False))
    path = filled[1]
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif harm == "empty":
        path.write_bytes(b"")
    elif harm == "unreadable":
        path.unlink()
        path.symlink_to(path)
    else:
        path.unlink()
        if harm == "pipe":
            os.mkfifo(path)
    engine = make_engine(prefix_cache_dir=tmp_path)
    assert answers(engine) == expected
    assert files_of(engine).num_read == 1


def test_a_file_that_is_cut_while_it_is_read_is_computed(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answers(make_engine(enable_prefix_caching=False))
    readv = os.readv

    def cut(file: int, buffers: list[Any]) -> int:
        os.truncate(filled[2], 300)  # after its size has been seen
        return readv(file, buffers)

    engine = make_engine(prefix_cache_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "readv", cut)
        assert answers(engine) == expected
    assert files_of(engine).num_read == 2


def test_two_engines_share_a_folder_at_once(make_engine: MakeEngine, tmp_path: Path) -> None:
    expected = answers(make_engine(enable_prefix_caching=False))
    a, b = (make_engine(prefix_cache_dir=tmp_path, max_num_batched_tokens=48) for _ in range(2))
    outputs: dict[Engine, dict[str, RequestOutput]] = {a: {}, b: {}}
    for engine in (a, b):
        for i, prompt in enumerate(PROMPTS):
            engine.add_request(str(i), prompt, PARAMS, index=i)
    while a.has_unfinished() or b.has_unfinished():
        for engine in (a, b):
            outputs[engine] |= {each.request_id: each for each in engine.step()}
            files_of(engine)
    for engine in (a, b):
        assert [(outputs[engine][str(i)].outputs, None) for i in range(4)] == expected
    assert len(blocks_in(a)) == 4
    assert files_of(a).num_written + files_of(b).num_written == 4


def test_a_full_disk_is_told_once_and_tried_again_later(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answers(make_engine(enable_prefix_caching=False))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine = make_engine(prefix_cache_dir=tmp_path)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(prefix_files, "write_block", full)
        assert answers(engine) == expected
        files_of(engine)
    assert [record.getMessage() for record in caplog.records] == [
        "prefix_cache_dir: prefixes are not written: [Errno 28] No space left on device"
    ]
    assert answers(engine) == expected
    assert blocks_in(engine) == []  # within the minute
    files_of(engine)._resume_at = files_of(engine)._period_end = 0.0
    assert answers(engine) == expected
    assert len(blocks_in(engine)) > 4  # the whole prompts: they have come twice


def test_what_does_not_fit_the_writer_s_queue_is_written_when_it_is_next_found(
    make_engine: MakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, may_write = prefix_files.write_block, Event()

    def write_block(*args: Any, **kwargs: Any) -> None:
        may_write.wait()
        written(*args, **kwargs)

    monkeypatch.setattr(prefix_files, "_MOST_QUEUED", 1)
    monkeypatch.setattr(prefix_files, "write_block", write_block)
    engine = make_engine(prefix_cache_dir=tmp_path)
    for blocks in (1, 2, 3, 4):
        may_write.clear()
        answers(engine)
        may_write.set()
        assert len(blocks_in(engine)) == blocks
    assert num_from_disk(run(make_engine(prefix_cache_dir=tmp_path), PROMPTS[:1], PARAMS)) == [64]


def test_a_folder_may_be_deleted_at_any_time(
    make_engine: MakeEngine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(prefix_cache_dir=tmp_path / "prefixes")
    expected = answers(engine)
    assert len(blocks_in(engine)) == 4
    shutil.rmtree(tmp_path / "prefixes")
    assert engine.reset_prefix_cache()
    files_of(engine)._period_end = 0.0
    with caplog.at_level(logging.WARNING):
        assert answers(engine) == expected
    assert len(blocks_in(engine)) == 4
    assert not caplog.records
    assert stat.S_IMODE((tmp_path / "prefixes").stat().st_mode) == 0o700


def test_the_least_recently_used_prefix_makes_way(make_engine: MakeEngine, tmp_path: Path) -> None:
    size = make_engine(prefix_cache_dir=tmp_path / "sizing")
    answers(size)
    block = blocks_in(size)[0].stat().st_size
    prefixes = [some_prompt(70, seed) for seed in (1, 2, 3)]

    def run_prefix(number: int, folder: Path = tmp_path / "a") -> list[int]:
        engine = make_engine(prefix_cache_dir=folder, prefix_cache_space=9.5 * block / 2**30)
        outputs = run(engine, [[*prefixes[number], 7, i] for i in range(2)], PARAMS)
        assert len(blocks_in(engine)) <= 9
        return num_from_disk(outputs)

    assert run_prefix(0) == [0, 0]
    assert run_prefix(1) == [0, 0]
    assert run_prefix(0) == [64, 0]  # the other is now the older one
    assert run_prefix(2) == [0, 0]
    assert run_prefix(0) == [64, 0]
    assert run_prefix(1)[0] < 64


def test_others_cannot_read_it(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine(prefix_cache_dir=tmp_path / "new" / "folder")
    answers(engine)
    paths = blocks_in(engine)
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o600}
    for folder in (tmp_path / "new" / "folder", paths[0].parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_blocks_to_be_moved_to_the_host_are_moved_before_others_are_read_into_them(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path]
) -> None:
    """One of better priority takes the place of another, and finds its prefix on the disk."""
    long = SamplingParams(max_tokens=20, seed=1, ignore_eos=True, logprobs=1)
    low, high = some_prompt(140, 9), PROMPTS[0]
    alone = [run(make_engine(), [prompt], long)[0].outputs for prompt in (low, high)]
    engine = make_engine(prefix_cache_dir=tmp_path, num_kv_blocks=11, swap_space=0.01, predict_lengths=False)
    engine._swap_cost.pays = lambda tokens, blocks: True  # type: ignore[method-assign]
    engine._new_schedule()
    engine.add_request("low", low, long, standing=Standing(priority=1))
    done = [output for _ in range(10) for output in engine.step()]
    engine.add_request("high", high, long)
    done += list(drain(engine))
    outputs = {output.request_id: output for output in done}
    assert engine.metrics.swapped_out_blocks >= engine.metrics.swapped_in_blocks > 0
    assert num_from_disk([outputs["high"]]) == [64]
    assert [outputs["low"].outputs, outputs["high"].outputs] == alone


def test_reading_that_takes_longer_than_computing_is_given_up(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path]
) -> None:
    engine = make_engine(prefix_cache_dir=tmp_path)
    files = files_of(engine)
    assert num_from_disk(run(engine, PROMPTS[:1], PARAMS)) == [64]
    files._seconds = 4 * 16 * 10 * engine.metrics.step_cost.line()[1]  # ten times as long
    assert engine.reset_prefix_cache()
    assert num_from_disk(run(engine, PROMPTS[:1], PARAMS)) == [0]
    files._seconds = 0.0
    assert engine.reset_prefix_cache()
    assert num_from_disk(run(engine, PROMPTS[:1], PARAMS)) == [64]


def test_other_models_and_settings_have_their_own_folders(
    make_engine: MakeEngine, tmp_path: Path, filled: list[Path], int8_decoder: Decoder
) -> None:
    for other in (
        make_engine(int8_decoder, prefix_cache_dir=tmp_path),
        make_engine(block_size=8, prefix_cache_dir=tmp_path),
    ):
        assert num_from_disk(run(other, PROMPTS, PARAMS)) == [0] * 4
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"prefix_cache_dir": 3}, "prefix_cache_dir: expected a folder's path, got 3"),
        ({"prefix_cache_dir": ""}, "prefix_cache_dir: expected a folder's path, got ''"),
        ({"prefix_cache_dir": "x", "enable_prefix_caching": False}, "prefix_cache_dir: expected None where"),
        ({"prefix_cache_space": -1}, "prefix_cache_space: expected a number of GiB, at least 0, got -1"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EngineConfig(**given)


def test_a_folder_that_cannot_be_is_refused(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"prefix_cache_dir: expected a folder to write to: .*Not a directory"):
        make_engine(prefix_cache_dir=tmp_path / "file" / "below")
