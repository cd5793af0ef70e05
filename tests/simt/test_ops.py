"""The suites of tests/ops on the CUDA kernels: each kernel against float64 and bit against bit, on the SIMT layer."""

from __future__ import annotations

import backends

from simt.suites import OPS

SLOW = [
    "test_all_of_a_large_vocabulary_in_order_sampling",
    "test_a_row_alone_has_the_bits_it_has_in_any_batch_matmul",
    "test_a_row_alone_has_the_bits_it_has_in_any_batch_matmul_gguf",
    "test_a_sum_that_is_parked_between_blocks_of_k_is_the_same_matmul_gguf",
    "test_chunks_and_decode_are_the_prefill_across_splits_attention",
    "test_draws_follow_the_softmax_sampling",
    "test_every_token_decoded_is_the_token_prefilled_attention",
    "test_threads_do_not_show_attention",
]
globals().update(backends.kernel_tests(OPS, *SLOW))
