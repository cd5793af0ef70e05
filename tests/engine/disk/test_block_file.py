"""A block's file gives back its bytes or nothing."""

from __future__ import annotations

import os
import stat
from array import array
from pathlib import Path

import pytest

from pybatch.engine.disk.block_file import BadFileError, num_bytes, read_block, write_block
from pybatch.engine.scheduling.block_pool import BlockKey

FIRST = BlockKey.chained(None, array("q", range(16)).tobytes())
KEY = BlockKey.chained(FIRST, array("q", range(16, 32)).tobytes())
BLOCK = bytes(range(256)) * 7


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "block"
    write_block(path, KEY, BLOCK, used=123)
    return path


def read(path: Path, key: BlockKey = KEY, size: int = len(BLOCK)) -> bytes:
    block = bytearray(size)
    assert read_block(path, key, memoryview(block))
    return bytes(block)


@pytest.mark.parametrize("key", [FIRST, KEY])
def test_a_block_comes_back(tmp_path: Path, key: BlockKey) -> None:
    write_block(tmp_path / "x", key, BLOCK, used=1)
    assert read(tmp_path / "x", key) == BLOCK


def test_its_owner_alone_may_read_it_and_nothing_else_is_left(path: Path) -> None:
    about = path.stat()
    assert stat.S_IMODE(about.st_mode) == 0o600
    assert about.st_mtime_ns == 123
    assert about.st_size == num_bytes(KEY, BLOCK)
    assert os.listdir(path.parent) == ["block"]


def test_a_file_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    assert not read_block(tmp_path / "none", KEY, memoryview(bytearray(4)))
    assert not read_block(tmp_path / "no folder" / "none", KEY, memoryview(bytearray(4)))


def test_every_flipped_byte_is_found(path: Path) -> None:
    content = path.read_bytes()
    for at in [*range(0, 190, 3), *range(190, len(content), 97), -1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at:][1:])
        with pytest.raises(BadFileError, match="its checksum or its tokens are wrong"):
            read(path)


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_file_that_is_cut_is_found(path: Path, cut: int) -> None:
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(BadFileError, match="expected 1,972 bytes, got "):
        read(path)


def test_a_block_of_other_tokens_or_another_size_is_not_taken(path: Path) -> None:
    other = BlockKey(KEY.digest, FIRST.tokens, KEY.prefix)  # as if two had one digest
    with pytest.raises(BadFileError, match="tokens"):
        read(path, other)
    with pytest.raises(BadFileError, match="bytes"):
        read(path, size=8)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    for name in ("pipe", "folder"):
        with pytest.raises(BadFileError, match="it is not a file of this user"):
            read(tmp_path / name)
    with pytest.raises(OSError, match="symbolic"):
        read(tmp_path / "link")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_user_s_file_is_not_taken(path: Path) -> None:
    os.chown(path, 12345, 12345)
    with pytest.raises(BadFileError, match="it is not a file of this user"):
        read(path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_block(tmp_path / "x", KEY, BLOCK, used=1)
    assert os.listdir(tmp_path) == ["x"]
