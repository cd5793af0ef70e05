from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pybatch.engine import SamplingParams
from pybatch.engine.execution.step_inputs import StepInputs
from pybatch.engine.scheduling.sequence import Request, Sequence
from pybatch.engine.scheduling.step import Chunk

BLOCK, SEQUENCES, TOKENS, BLOCKS = 4, 6, 40, 10
CPU = torch.device("cpu")


def make_inputs(states: bool = True) -> StepInputs:
    return StepInputs(
        max_tokens=TOKENS, max_seqs=SEQUENCES, max_blocks=BLOCKS, block_size=BLOCK, device=CPU, states=states
    )


def make_sequence(prompt: list[int]) -> Sequence:
    request = Request(
        "0",
        None,
        prompt,
        SamplingParams(),
        max_total_tokens=99,
        stop_ids=frozenset(),
        stream=False,
        arrival_time=0.0,
    )
    return Sequence(request, 0, 0, None)


def grow(sequence: Sequence, tokens: int, first_block: int) -> None:
    """Blocks for the next tokens, numbered from first_block + their place in the table on."""
    while len(sequence.blocks) * BLOCK < sequence.num_computed + tokens:
        sequence.blocks.append(first_block + len(sequence.blocks))


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_step_holds_its_sequences_whatever_was_in_it_before(data: st.DataObject) -> None:
    """Sequences come, decode, change their rows, are computed again and go; a step may be filled twice, or in part."""
    inputs = make_inputs()
    prompts: list[Sequence] = []
    decodes: list[Chunk] = []
    for step in range(12):
        if len(prompts) + len(decodes) < SEQUENCES and data.draw(st.booleans()):
            prompts.append(make_sequence([1 + (step + i) % 50 for i in range(data.draw(st.integers(1, 20)))]))
        if decodes and data.draw(st.integers(0, 3)) == 0:
            gone = decodes.pop(data.draw(st.integers(0, len(decodes) - 1)))
            if decodes and data.draw(st.booleans()):
                decodes[0], decodes[-1] = decodes[-1], decodes[0]
            if data.draw(st.booleans()):  # preempted
                gone.sequence.num_computed = 0
                del gone.sequence.blocks[:]
                prompts.append(gone.sequence)
        counts = [min(p.num_pending, data.draw(st.integers(1, 6))) for p in prompts]
        chunks = [*decodes, *(Chunk(p, n) for p, n in zip(prompts, counts, strict=True))]
        for i, chunk in enumerate(chunks):
            grow(chunk.sequence, chunk.num_tokens, 1000 * step + 100 * i)
        if not chunks:
            continue
        if data.draw(st.booleans()):
            check(inputs, chunks[len(chunks) // 2 :])
        check(inputs, chunks)
        for chunk in chunks:
            if chunk.complete:
                chunk.sequence.tokens.append(step)
            chunk.sequence.num_computed += chunk.num_tokens
        for p in list(prompts):
            if p.num_pending == 1:
                prompts.remove(p)
                decodes.append(Chunk(p, 1, decodes=True))


def check(inputs: StepInputs, chunks: list[Chunk]) -> None:
    decode = all(chunk.decodes for chunk in chunks)
    size = SEQUENCES if decode else 0
    batch = inputs.fill(chunks, size)
    tokens: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    starts, lengths, rows = [0], [], []
    for i, chunk in enumerate(chunks):
        sequence, begin = chunk.sequence, chunk.sequence.num_computed
        end = begin + chunk.num_tokens
        tokens += sequence.tokens[begin:end]
        positions += range(begin, end)
        slots += [sequence.blocks[p // BLOCK] * BLOCK + p % BLOCK for p in range(begin, end)]
        starts.append(starts[-1] + chunk.num_tokens)
        lengths.append(end)
        used = -(-end // BLOCK)
        assert batch.block_tables[i, :used].tolist() == sequence.blocks[:used].tolist()
        if chunk.complete:
            rows.append(starts[-1] - 1)
    padding = max(0, size - len(chunks))
    starts += range(starts[-1] + 1, starts[-1] + 1 + padding)
    rows += range(len(rows), len(rows) + padding)
    assert batch.token_ids.tolist() == tokens + [0] * padding
    assert batch.positions.tolist() == positions + [0] * padding
    assert batch.slots.tolist() == slots + [-1] * padding
    assert batch.query_start.tolist() == starts
    assert batch.seq_lens.tolist() == lengths + [1] * padding
    assert batch.logits_rows.tolist() == rows


def test_batches_of_all_sizes_are_views_of_one_memory() -> None:
    inputs = StepInputs(max_tokens=512, max_seqs=256, max_blocks=131_072 // 16, block_size=16, device=CPU)
    sequence = make_sequence([1])
    sequence.blocks.append(0)
    chunk = Chunk(sequence, 1, decodes=True)
    batches = [inputs.fill([chunk], size) for size in (1, 7, 256)]

    def memory(tensor: Tensor) -> tuple[int, int]:
        return tensor.data_ptr(), tensor.untyped_storage().data_ptr()

    for name in ("token_ids", "positions", "slots", "block_tables", "query_start", "seq_lens", "logits_rows"):
        assert len({memory(getattr(batch, name)) for batch in batches}) == 1
        assert getattr(batches[0], name).is_contiguous()
    assert batches[0].block_tables.untyped_storage().nbytes() < 9 * 2**20  # 1 GiB with tables for each size


def test_slots_of_states_are_in_the_steps_of_models_that_have_some() -> None:
    sequence = make_sequence([1, 2, 3])
    sequence.state, sequence.next_state = 5, 6
    grow(sequence, 3, 0)
    chunks = [Chunk(sequence, 3)]
    batch = make_inputs(states=True).fill(chunks)
    assert batch.state_source is not None
    assert batch.state_destination is not None
    assert (batch.state_source.tolist(), batch.state_destination.tolist()) == ([5], [6])
    without = make_inputs(states=False).fill(chunks)
    assert not {"state_source", "state_destination"} & without.tensors().keys()
    assert all(torch.equal(tensor, batch.tensors()[name]) for name, tensor in without.tensors().items())
