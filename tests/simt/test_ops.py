"""The suites of tests/ops on the CUDA kernels: each kernel against float64 and bit against bit, on the SIMT layer."""

from __future__ import annotations

from simt.suites import suite

SUITES = {
    "test_activation": [
        "test_activation",
        "test_extreme_gates",
        "test_infinite_gates_tend_to_their_limits_and_nan_stays",
        "test_rows_stand_alone",
        "test_out_may_be_strided",
    ],
    "test_attention": [
        "test_matches_float64",
        "test_a_sequence_is_the_same_alone_and_in_any_batch",
        "test_a_nan_reaches_only_rows_that_see_it",
        "test_a_sequence_without_queries",
    ],
    "test_copy_blocks": ["test_copies_within_a_pool", "test_swaps_between_pools"],
    "test_embedding": ["test_float_tables", "test_int8_tables", "test_infinities_and_nan_are_copied"],
    "test_matmul": [
        "test_dense_is_the_sum",
        "test_int8_is_the_sum",
        "test_a_row_that_is_not_finite_stays_alone",
        "test_w8a8_of_a_zero_row_is_the_bias",
        "test_w8a8_sums_exactly_at_the_extremes",
        "test_nothing_in_nothing_out",
        "test_an_empty_sum_is_the_bias",
        "test_fused_steps_have_the_bits_of_separate_ops",
    ],
    "test_norm": [
        "test_rms_norm",
        "test_layer_norm",
        "test_rms_norm_rounds_before_the_weight_as_the_models_were_trained",
        "test_rows_stand_alone",
        "test_out_and_residual_may_be_strided_and_out_may_be_x",
    ],
    "test_rope_kv_write": [
        "test_matches_float64",
        "test_is_what_transformers_computes",
        "test_head_norm_rounds_as_transformers_does",
        "test_int8_rounds_half_to_even",
        "test_int8_of_a_zero_head_is_zero",
        "test_a_token_is_the_same_alone_in_any_batch_and_on_any_threads",
    ],
    "test_sampling": [
        "test_even_logits_show_the_uniform_number",
        "test_draws",
        "test_greedy_takes_the_largest_and_of_those_the_lowest_id",
        "test_nan_counts_as_minus_infinity",
        "test_a_tiny_temperature_is_greedy",
        "test_sampled_rows_stand_alone",
        "test_adjust_logits",
        "test_a_bias_of_minus_infinity_bans_a_token",
        "test_neutral_penalties_leave_every_bit",
        "test_adjusted_rows_stand_alone",
        "test_token_logprobs",
        "test_logprobs_of_what_is_no_number",
        "test_logprob_rows_stand_alone",
        "test_logits_may_be_strided",
    ],
}

for module, tests in SUITES.items():
    globals().update({f"{test}_{module.removeprefix('test_')}": getattr(suite(module), test) for test in tests})
