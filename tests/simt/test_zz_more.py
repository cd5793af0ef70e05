from simt.test_ops import tests_of
for suite, names in {
 "test_norm": ["test_rms_norm","test_layer_norm","test_rms_norm_rounds_before_the_weight_as_the_models_were_trained","test_out_and_residual_may_be_strided_and_out_may_be_x"],
 "test_activation": ["test_activation","test_extreme_gates","test_infinite_gates_tend_to_their_limits_and_nan_stays","test_out_may_be_strided"],
 "test_embedding": ["test_float_tables","test_int8_tables","test_infinities_and_nan_are_copied"],
 "test_rope_kv_write": ["test_matches_float64","test_is_what_transformers_computes","test_head_norm_rounds_as_transformers_does","test_int8_rounds_half_to_even","test_int8_of_a_zero_head_is_zero"],
 "test_sampling": ["test_even_logits_show_the_uniform_number","test_draws","test_draws_follow_the_softmax","test_greedy_takes_the_largest_and_of_those_the_lowest_id","test_nan_counts_as_minus_infinity","test_a_tiny_temperature_is_greedy","test_sampled_rows_stand_alone","test_adjust_logits","test_a_bias_of_minus_infinity_bans_a_token","test_neutral_penalties_leave_every_bit","test_adjusted_rows_stand_alone","test_token_logprobs","test_all_of_a_large_vocabulary_in_order","test_logprobs_of_what_is_no_number","test_logits_may_be_strided"],
}.items():
    globals().update(tests_of(suite, names))
