"""Takes blocks out of the tables of sequences whose KV cache is pruned."""

from __future__ import annotations

from pybatch.engine.scheduling.block_tables import BlockTables
from pybatch.engine.scheduling.preemption import Preemption
from pybatch.engine.scheduling.pruning import Gathered, Turned, WindowPruning
from pybatch.engine.scheduling.running import Running
from pybatch.engine.scheduling.sequence import Sequence


class TablePruner:
    def __init__(self, tables: BlockTables, running: Running, preemption: Preemption) -> None:
        self._tables = tables
        self._pool = tables.pool
        self._running = running
        self._preemption = preemption

    def prune(self, sequence: Sequence) -> Turned | Gathered | None:
        """Gives a sequence that has come to next_pruning the blocks that it goes on with; those that it does not need
        any more are free. Returns what is to be done to their contents, before anything else is done to any block; None
        if all others have been preempted for want of room, and then it too."""
        self._running.end_short(sequence)
        pruning = sequence.request.pruning
        assert pruning is not None
        count = sequence.num_computed
        pruned, sequence.next_pruning = pruning.num_pruned(count), pruning.next_point(count)
        if sequence.num_pruned == 0:
            self._tables.register(sequence, min(count, len(sequence.tokens)))
        if isinstance(pruning, WindowPruning):
            done: Turned | Gathered | None = self._slide(sequence, pruning.sink_blocks, pruned)
        else:
            done = self._gather(sequence, pruned, observes=count < pruning.observed_to)
        if done is not None:
            self._running.renew(sequence)
        return done

    def _slide(self, sequence: Sequence, sinks: int, pruned: int) -> Turned | None:
        """Drops the blocks that have fallen out of a window. The sinks go on as copies: the blocks that held them at
        first may be shared, and the next copies will be made of them again."""
        blocks = sequence.blocks
        end = sinks + (pruned - sequence.num_pruned) // self._tables.block_size
        if sequence.num_pruned == 0:
            sequence.held.extend(blocks[:sinks])
            self._pool.release(blocks[sinks:end])
        else:
            self._pool.release(blocks[:end])
        del blocks[:end]
        sequence.num_pruned = pruned
        missing = max(0, self._tables.num_missing(sequence, sequence.num_due) - sinks)
        if not self._preemption.free_for(sequence, lambda: sinks + missing):
            return None
        for i in range(sinks):
            blocks.insert(i, self._pool.allocate())
        self._tables.extend(sequence, missing)
        return Turned(list(zip(sequence.held, blocks, strict=False)), pruned)

    def _gather(self, sequence: Sequence, pruned: int, *, observes: bool) -> Gathered | None:
        """Has what is kept gathered in the first of its blocks, in place. Those that others hold too are replaced by
        free ones; where there are as many, also those that the prefix cache knows, which keeps them then. observes:
        attention is still summed."""
        blocks, length = sequence.blocks, sequence.num_cached
        kept = sequence.num_computed - pruned
        count = self._tables.blocks_for(kept + max(0, sequence.num_due))
        more = max(0, count - len(blocks))

        def replaced() -> list[int]:
            spares = self._pool.num_free >= count
            return [
                place
                for place, block in enumerate(blocks[:count])
                if self._pool.references(block) > 1 or (spares and self._pool.is_known(block))
            ]

        if not self._preemption.free_for(sequence, lambda: len(replaced()) + more):
            return None
        places, source = replaced(), blocks[:]
        for _ in range(len(places) + more):
            sequence.held.append(self._pool.allocate())
        for place, block in zip(places, sequence.held, strict=False):
            blocks[place] = block
        blocks[count:] = sequence.held[len(places) :]
        del sequence.held[:]
        for block in blocks[:count]:
            self._pool.forget(block)
        self._pool.release([*(source[place] for place in places), *source[count:]])
        sequence.num_pruned = pruned
        assert sequence.mass_rows is not None
        row, _ = sequence.mass_rows
        if not observes:
            self._running.return_mass(sequence)
        return Gathered(
            source[: self._tables.blocks_for(length)], blocks[: self._tables.blocks_for(kept)], length, kept, row
        )
