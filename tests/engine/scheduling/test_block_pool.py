from __future__ import annotations

from itertools import takewhile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pybatch.engine.scheduling.block_pool import BlockKey, BlockPool, IntegrityError

NUM_BLOCKS = 8


def chain(tokens: list[int]) -> list[BlockKey]:
    """One block a token."""
    keys: list[BlockKey] = []
    for token in tokens:
        keys.append(BlockKey.chained(keys[-1] if keys else None, bytes([token])))
    return keys


class PoolMachine(RuleBasedStateMachine):
    """Owners take, share and give back tables of blocks; what a block was registered for stays in it until it is
    allocated again."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS)
        self.tables: list[list[int]] = []
        self.content: dict[int, BlockKey] = {}
        self.settled: dict[int, BlockKey] = {}

    @precondition(lambda self: self.pool.num_free > 0)
    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def compute_prefix(self, tokens: list[int]) -> None:
        keys = chain(tokens)
        table = self.pool.match(keys)
        for block, key in zip(table, keys, strict=False):
            assert self.content[block] == key
        for key in keys[len(table) :]:
            if self.pool.num_free == 0:
                break
            block = self.pool.allocate()
            assert all(block not in other for other in (*self.tables, table))
            self.content[block] = key
            self.pool.register(block, key)
            table.append(block)
        self.tables.append(table)

    @precondition(lambda self: self.pool.num_free > 0)
    @rule(tokens=st.lists(st.integers(0, 2), min_size=1, max_size=3), begun=st.binary(min_size=1, max_size=3))
    def begin_block(self, tokens: list[int], begun: bytes) -> None:
        """After the prefix that is cached."""
        keys = chain(tokens)
        table = self.pool.match(keys)
        if self.pool.num_free:
            block = self.pool.allocate()
            self.content[block] = BlockKey.begun(keys[len(table) - 1] if table else None, begun)
            self.pool.register_begun(block, self.content[block])
            table.append(block)
        self.tables.append(table)

    @rule()
    def settle(self) -> None:
        self.pool.settle()
        self.settled = dict(self.pool._keys)

    @rule(tokens=st.lists(st.integers(0, 2), max_size=3), wanted=st.binary(min_size=1, max_size=3))
    def copy_beginning(self, tokens: list[int], wanted: bytes) -> None:
        """What is found is the best of what has been computed, and holds what it is found for."""
        parent = chain(tokens)[-1] if tokens else None
        prefix = b"" if parent is None else parent.digest
        candidates = {
            block: len(list(takewhile(lambda pair: pair[0] == pair[1], zip(key.tokens, wanted, strict=False))))
            for block, key in self.settled.items()
            if block in self.pool._keys and self.content[block] == key and key.prefix == prefix
        }
        block, shared = self.pool.begins_like(parent, wanted)
        assert shared == max(candidates.values(), default=0)
        if shared:
            assert candidates[block] == shared
            assert self.content[block].prefix == prefix
            assert self.content[block].tokens.startswith(wanted[:shared])

    @rule()
    def forget(self) -> None:
        self.pool.forget_cached()
        assert not any(self.pool.match(chain([token])) for token in range(3))

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from(self.tables))
        for block in table:
            self.pool.share(block)
        self.tables.append(list(table))

    @precondition(lambda self: self.tables)
    @rule(data=st.data(), awaited=st.booleans())
    def release(self, data: st.DataObject, awaited: bool) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.release(table, awaited=awaited)

    @rule()
    def await_none(self) -> None:
        self.pool.await_none()

    @invariant()
    def is_whole(self) -> None:
        self.pool.check_integrity(self.tables)
        assert self.pool.num_used == len({block for table in self.tables for block in table})

    def teardown(self) -> None:
        for table in self.tables:
            self.pool.release(table)
        self.pool.check_integrity([])
        assert self.pool.num_free == NUM_BLOCKS


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_prefix_is_found_again_until_its_blocks_are_needed_least_recently_used_first() -> None:
    pool = BlockPool(4)
    old, new = chain([1, 2]), chain([3, 4])
    for keys in (old, new):
        blocks = [pool.allocate() for _ in keys]
        for block, key in zip(blocks, keys, strict=True):
            pool.register(block, key)
        pool.release(blocks)
    assert pool.num_free == 4
    pool.release([pool.allocate()])  # evicts the end of the older prefix
    assert pool.num_evictions == 1
    found = pool.match(old)
    assert len(found) == 1
    pool.release(found)
    found = pool.match(new)
    assert len(found) == 2
    pool.release(found)


def test_blocks_that_a_sequence_waits_for_are_evicted_after_all_others() -> None:
    pool = BlockPool(3)
    awaited, other = chain([1]), chain([2, 3])
    for keys in (awaited, other):
        blocks = [pool.allocate() for _ in keys]
        for block, key in zip(blocks, keys, strict=True):
            pool.register(block, key)
        pool.release(blocks, awaited=keys is awaited)
    taken = [pool.allocate(), pool.allocate()]
    assert not pool.is_cached(other[0])
    assert pool.is_cached(awaited[0])
    taken.append(pool.allocate())  # better than none
    assert pool.num_free == 0
    assert not pool.is_cached(awaited[0])


def test_blocks_that_nobody_waits_for_any_more_are_evicted_in_their_turn() -> None:
    pool = BlockPool(2)
    first, second = chain([1]), chain([2])
    for keys in (first, second):
        block = pool.allocate()
        pool.register(block, keys[0])
        pool.release([block], awaited=keys is first)
        pool.await_none()
    pool.allocate()
    assert (pool.is_cached(first[0]), pool.is_cached(second[0])) == (False, True)


def test_what_is_announced_can_be_copied_once_it_is_computed() -> None:
    pool = BlockPool(3)
    parent, key = chain([1, 2])
    blocks = [pool.allocate() for _ in range(3)]
    pool.register(blocks[0], parent)
    pool.register(blocks[1], key)
    pool.register_begun(blocks[2], BlockKey.begun(parent, b"\3\4"))
    assert pool.begins_like(parent, b"\3\4\5") == (-1, 0)
    pool.settle()
    assert pool.begins_like(parent, b"\3\4\5") == (blocks[2], 2)
    assert pool.begins_like(parent, b"\2") == (blocks[1], 1)
    assert pool.begins_like(parent, b"\7") == (-1, 0)
    assert pool.begins_like(None, b"\1") == (blocks[0], 1)
    pool.forget(blocks[2])
    assert pool.begins_like(parent, b"\3") == (-1, 0)
    pool.release(blocks)


def test_begun_blocks_are_kept_only_behind_full_ones() -> None:
    pool = BlockPool(2)
    (parent,) = chain([1])
    for before in (None, parent):
        block = pool.allocate()
        pool.register_begun(block, BlockKey.begun(before, b"\5"))
        pool.settle()
        pool.release([block])
        assert pool.begins_like(before, b"\5")[1] == (0 if before is None else 1)


def test_equal_digests_of_other_tokens_are_no_hit() -> None:
    pool = BlockPool(1)
    key = chain([1])[0]
    block = pool.allocate()
    pool.register(block, key)
    assert pool.match([key._replace(tokens=b"\2")]) == []
    pool.release([block])


def test_an_empty_pool_says_so() -> None:
    pool = BlockPool(1)
    pool.allocate()
    with pytest.raises(IndexError, match="all 1 blocks are in use"):
        pool.allocate()


def test_integrity_check_finds_a_lost_block() -> None:
    pool = BlockPool(2)
    pool.allocate()
    with pytest.raises(IntegrityError, match="1 references and 0 owners"):
        pool.check_integrity([])


def test_many_blocks_are_those_that_one_would_get_one_by_one() -> None:
    pools = [BlockPool(10), BlockPool(10)]
    for pool in pools:
        pool.release([pool.allocate() for _ in range(5)])
        pool.register(block := pool.allocate(), BlockKey.chained(None, b"a"))
        pool.release([block])
    one_by_one, many = pools
    for count in (0, 1, 4, 5):
        assert many.allocate_many(count) == [one_by_one.allocate() for _ in range(count)]
        assert (many.num_free, many.num_touched, many.num_references) == (
            one_by_one.num_free, one_by_one.num_touched, one_by_one.num_references,
        )  # fmt: skip
    assert many.num_evictions == 1
    with pytest.raises(IndexError):
        many.allocate_many(1)
