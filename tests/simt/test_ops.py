"""The suites of tests/ops on the CUDA kernels: each kernel against float64 and bit against bit, on the SIMT layer."""

from __future__ import annotations

import backends

from simt.suites import OPS, suite

# What takes minutes. test_attention.py and the probes of test_mutations.py have the same on smaller shapes, and on the
# tensor cores for every type of cache.
SLOW = [
    "test_a_layer_gives_a_token_the_same_alone_and_in_any_batch_experts",
    "test_a_row_alone_has_the_bits_it_has_in_any_batch_matmul",
    "test_a_row_alone_has_the_bits_it_has_in_any_batch_matmul_gguf",
    "test_a_sequence_is_the_same_alone_and_in_any_batch_attention",
    "test_a_sequence_is_the_same_alone_and_in_any_batch_int4_cache",
    "test_a_sum_that_is_parked_between_blocks_of_k_is_the_same_matmul_gguf",
    "test_attention_mass_matches_float64_kv_pruning",
    "test_chunks_and_decode_are_the_prefill_across_splits_attention",
    "test_chunks_and_decode_are_the_prefill_across_splits_int4_cache",
    "test_draws_at_successive_positions_do_not_tell_of_each_other_sampling",
    "test_draws_follow_the_softmax_sampling",
    "test_every_token_decoded_is_the_token_prefilled_attention",
    "test_every_token_decoded_is_the_token_prefilled_int4_cache",
    "test_mass_has_the_same_bits_in_any_pieces_and_company_kv_pruning",
    "test_threads_do_not_show_attention",
    "test_threads_do_not_show_int4_cache",
    "test_two_distributions_draw_the_same_token_as_often_as_a_common_race_makes_them_sampling",
    "test_what_is_not_finite_reaches_only_rows_that_see_it_int4_cache",
]
suite("test_experts").THREADS = (1,)  # of the CPU, which are nothing to the layer
globals().update(backends.kernel_tests(OPS, *SLOW))
