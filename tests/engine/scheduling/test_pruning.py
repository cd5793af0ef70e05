from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pybatch import StreamingLLM
from pybatch.engine.scheduling.pruning import WindowPruning


@given(
    sinks=st.integers(0, 40),
    window=st.integers(1, 90),
    prompt=st.integers(1, 200),
    size=st.sampled_from([8, 16, 32]),
)
def test_what_the_window_needs_is_kept_and_no_whole_block_more(sinks: int, window: int, prompt: int, size: int) -> None:
    pruning = WindowPruning(StreamingLLM(sinks, window), prompt, size)
    kept_sinks = -(-sinks // size) * size
    point, pruned, most = pruning.next_point(0), 0, 0
    assert point == pruning.first_point >= prompt
    for count in range(prompt, pruning.first_point + 3 * size):
        if count == point:
            before, pruned = pruned, pruning.num_pruned(count)
            assert pruned > before
            assert pruned % size == 0
            point = pruning.next_point(count)
            assert count < point
        # The token of index `count` sees this window, itself included.
        if pruned:
            seen = count + 1 - kept_sinks - pruned
            assert window <= seen < window + size
            most = max(most, 2 * kept_sinks // size + -(-seen // size))
        else:
            assert count + 1 - kept_sinks < window + size or count < prompt
    assert most <= pruning.peak_tokens // size <= most + 1
