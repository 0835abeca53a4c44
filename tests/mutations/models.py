"""Changes of `models/`, without the modules that read videos."""

CREDENTIALS = "tests/models/test_credentials.py"
ECOSYSTEM = "tests/models/test_ecosystem.py::test_"
FSQ = "tests/models/test_fsq.py::test_"
LABEL_SETS = "tests/models/test_label_sets.py::test_"
MASKING = "tests/models/test_masking.py::test_"
MIXED_PRECISION = "tests/models/test_mixed_precision.py::test_"
PROCESSING = "tests/models/test_processing.py::test_"
RECOMPUTATION = "tests/models/test_recomputation.py::test_"
TOKENIZER = "tests/models/test_modeling_fsq_magvit.py::test_"
LVMAE = "tests/models/test_modeling_lvmae.py::test_"
VERSION_0_1 = "tests/test_version_0_1.py::test_"

MUTATIONS = [
    # The tokenizer's configuration
    (
        "models/configuration_fsq_magvit.py",
        "return self.stem_patch_size[0] * 2 ** sum(self.temporal_downsample)",
        "return self.stem_patch_size[0] * 2 ** len(self.temporal_downsample)",
        TOKENIZER + "default_grid_is_that_of_the_vit",
    ),
    (
        "models/configuration_fsq_magvit.py",
        "return math.ceil(self.num_frames / self.tubelet_size), height",
        "return self.num_frames // self.tubelet_size, height",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        "isinstance(size, int) else (size[0], size[1])",
        "isinstance(size, int) else (size[1], size[0])",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        "not 0 < self.min_keep_ratio <= self.keep_ratio",
        "not 0 < self.min_keep_ratio < self.keep_ratio",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        '            "keep_ratio": 1.0,\n',
        "",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        "pixel_mean: float | int = 0.45",
        "pixel_mean: float | int = 0.5",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        "topk_sigma: float | int = POSITIVE(default=0.05)",
        "topk_sigma: float | int = POSITIVE(default=0.5)",
        TOKENIZER + "fields_are_the_papers_and_sides_keep_their_order",
    ),
    (
        "models/configuration_fsq_magvit.py",
        " or weights > MOST_PARAMETERS:",
        ":",
        TOKENIZER + "configs_that_do_not_fit_are_refused",
    ),
    # The autoencoder's configuration
    (
        "models/configuration_lvmae.py",
        "chosen = int(round((1 - self.decoder_mask_ratio) * seq_length, 6))",
        "chosen = int((1 - self.decoder_mask_ratio) * seq_length)",
        LVMAE + "token_counts_are_whole_percentages_exactly",
    ),
    (
        "models/configuration_lvmae.py",
        "random_besides else (chosen + drawn, 0)",
        "random_besides else (chosen, 0)",
        LVMAE + "all_decoder_masks_have_one_budget_but_none",
    ),
    (
        "models/configuration_lvmae.py",
        "return slots * int(self.mask_ratio * height * width)",
        "return int(self.mask_ratio * slots * height * width)",
        LVMAE + "all_decoder_masks_have_one_budget_but_none",
    ),
    (
        "models/configuration_lvmae.py",
        '"everest": DecoderMask("everest", random_besides=True)',
        '"everest": DecoderMask("everest")',
        LVMAE + "all_decoder_masks_have_one_budget_but_none",
    ),
    (
        "models/configuration_lvmae.py",
        "key=lambda item: item[1])",
        "key=lambda item: item[0])",
        LABEL_SETS + "label_sets_survive_json_in_their_order",
    ),
    (
        "models/configuration_lvmae.py",
        "pair[0] == end < pair[1]",
        "pair[0] == end <= pair[1]",
        LABEL_SETS + "label_sets_that_do_not_cover_the_outputs_are_refused",
    ),
    (
        "models/configuration_lvmae.py",
        "if self.decoder_random_ratio > self.decoder_mask_ratio:",
        "if self.decoder_random_ratio >= self.decoder_mask_ratio:",
        LVMAE + "defaults_are_the_papers_limits_are_allowed_and_sides_keep_their_order",
    ),
    (
        "models/configuration_lvmae.py",
        "isinstance(size, int) else (size[0], size[1])",
        "isinstance(size, int) else (size[1], size[0])",
        LVMAE + "defaults_are_the_papers_limits_are_allowed_and_sides_keep_their_order",
    ),
    (
        "models/configuration_lvmae.py",
        "exclude_min=True)(default=1e-6)",
        "exclude_min=True)(default=1e-5)",
        LVMAE + "defaults_are_the_papers_limits_are_allowed_and_sides_keep_their_order",
    ),
    (
        "models/configuration_lvmae.py",
        "tube_drop_ratio: float | int = SHARE(default=0.2)",
        "tube_drop_ratio: float | int = SHARE(default=0.0)",
        LVMAE + "defaults_are_the_papers_limits_are_allowed_and_sides_keep_their_order",
    ),
    (
        "models/configuration_lvmae.py",
        'return sum(self.levels) if self.target_type == "levels" else len(self.levels)',
        "return len(self.levels)",
        LVMAE + "loss_of_levels_is_the_mean_cross_entropy_of_each_channel_on_its_own",
    ),
    # Credentials
    ("models/credentials.py", 'rf"(?i)(?<!', 'rf"(?<!', CREDENTIALS),
    ("models/credentials.py", '    text = _USER.sub(rf"\\g<1>{HIDDEN}@", text)\n', "", CREDENTIALS),
    ("models/credentials.py", "[A-Za-z0-9]{16,}", "[a-z0-9]{16,}", CREDENTIALS),
    # Finite scalar quantization
    (
        "models/fsq.py",
        "torch.where(counts % 2 == 0, 0.5, 0.0)",
        "torch.where(counts % 2 == 1, 0.5, 0.0)",
        FSQ + "codes_indices_and_gradients_are_vector_quantize_pytorchs",
    ),
    (
        "models/fsq.py",
        "half_range = (counts.float() - 1) * (1 + 1e-3) / 2",
        "half_range = (counts.float() - 1) / 2",
        FSQ
        + "codes_indices_and_gradients_are_vector_quantize_pytorchs "
        + FSQ
        + "the_largest_latents_take_the_outermost_codes",
    ),
    (
        "models/fsq.py",
        "return (latents.float() + (offset / half_range).atanh()).tanh()",
        "return (latents + (offset / half_range).atanh().to(latents.dtype)).tanh()",
        FSQ + "quantizing_stays_in_float32",
    ),
    (
        "models/fsq.py",
        "math.prod(levels[:channel])",
        "math.prod(levels[channel + 1 :])",
        FSQ + "every_index_is_one_code_and_back",
    ),
    ("models/fsq.py", "// 2)).round().long()", "// 2)).long()", FSQ + "every_index_is_one_code_and_back"),
    (
        "models/fsq.py",
        "straight_through(bounded.detach().round(), bounded)",
        "bounded.round()",
        FSQ + "the_gradient_is_that_of_the_bound_values",
    ),
    (
        "models/fsq.py",
        "enumerate(logits.float().split(list(levels), dim=-1))",
        "enumerate(logits.split(list(levels), dim=-1))",
        LVMAE + "losses_of_half_precision_are_computed_in_float32",
    ),
    (
        "models/fsq.py",
        "(shares * shares.log2())",
        "(shares * shares.log())",
        FSQ + "histograms_count_the_codes_and_statistics_are_their_usage_and_entropy",
    ),
    (
        "models/fsq.py",
        "channels = [channel.argmax(dim=-1)",
        "channels = [channel.argmin(dim=-1)",
        LVMAE + "predicted_codes_are_what_the_tokenizer_can_decode",
    ),
    # The image processors
    (
        "models/image_processing_pil_lvmae.py",
        "sides, crop = image.shape[-2:], (size.height, size.width)",
        "sides, crop = image.shape[-2:], (size.width, size.height)",
        PROCESSING + "a_crop_that_is_not_square_is_covered_and_no_more",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "scale = max(part / side for",
        "scale = min(part / side for",
        PROCESSING + "a_crop_that_is_not_square_is_covered_and_no_more",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "if image.shape[0] in (1, 3):",
        "if image.shape[0] in (1, 3, 4):",
        PROCESSING + "other_channels",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "known = {1, 3, 4} |",
        "known = {1, 3} |",
        PROCESSING + "grey_and_transparent_video_becomes_rgb",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "resample = PILImageResampling.BILINEAR",
        "resample = PILImageResampling.BICUBIC",
        PROCESSING + "video_processor_equals_videomae",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "image = np.ascontiguousarray(image)",
        "pass",
        PROCESSING + "flipped_view_equals_its_copy",
    ),
    (
        "models/image_processing_pil_lvmae.py",
        "if return_tensors is not None and len(shapes) > 1:",
        "if return_tensors is not None and len(shapes) > len(clips):",
        PROCESSING + "errors",
    ),
    (
        "models/image_processing_lvmae.py",
        '["vision", "torchvision"]',
        '["vision"]',
        ECOSYSTEM + "models_and_the_pil_processor_need_no_torchvision",
    ),
    # Masks
    (
        "models/masking.py",
        "return topk_mask(noise, int(mask_ratio * cells)).repeat(1, slots)",
        "return topk_mask(noise, int(mask_ratio * cells)).repeat_interleave(slots, dim=1)",
        MASKING + "tube_mask_is_one_mask_in_every_slot",
    ),
    (
        "models/masking.py",
        "noise = torch.rand(batch_size, cells, generator",
        "noise = torch.rand(1, cells, generator",
        MASKING + "tube_masks_differ_between_rows_and_hide_every_cell_equally_often",
    ),
    (
        "models/masking.py",
        "tokens - tube_visible_count(grid_size, mask_ratio))",
        "int(mask_ratio * tokens))",
        MASKING + "every_encoder_mask_hides_as_many_tokens_as_the_tubes",
    ),
    (
        "models/masking.py",
        'topk_mask(noise.masked_fill(important, float("-inf")), num_random)',
        "topk_mask(noise, num_random)",
        MASKING + "decoder_mask_is_the_top_k_and_random_others",
    ),
    (
        "models/masking.py",
        'topk_mask(noise.masked_fill(scores != last, float("-inf")), rest)',
        'topk_mask(scores.masked_fill(scores != last, float("-inf")), rest)',
        MASKING + "tied_scores_are_decoded_everywhere_alike",
    ),
    (
        "models/masking.py",
        "indices // width % height, indices % width]",
        "indices // height % height, indices % width]",
        LVMAE + "tubelets_are_cut_and_gathered_by_position",
    ),
    (
        "models/masking.py",
        '"b (t frames) c (h rows) (w columns) -> b',
        '"b (frames t) c (h rows) (w columns) -> b',
        LVMAE + "tubelets_are_cut_and_gathered_by_position",
    ),
    (
        "models/masking.py",
        ".expand_as(scores) < k",
        ".expand_as(scores) <= k",
        MASKING + "rows_may_have_budgets_of_their_own",
    ),
    (
        "models/masking.py",
        "max(1, round(keep_ratio * scores.shape[1]))",
        "max(1, round(keep_ratio * (scores.shape[1] - first_slot)))",
        MASKING + "the_first_slot_is_kept_besides_a_share_of_all_tokens",
    ),
    (
        "models/masking.py",
        "centered = (value - value.mean(dim=1, keepdim=True)) * (samples / (samples - 1))",
        "centered = value",
        MASKING + "what_all_tokens_gain_alike_adds_no_noise_to_the_gradient",
    ),
    (
        "models/masking.py",
        " * (samples / (samples - 1))",
        "",
        MASKING + "two_samples_already_give_an_unbiased_gradient",
    ),
    (
        "models/masking.py",
        "(noise * centered).mean(dim=1) / ctx.sigma",
        "(noise * centered).mean(dim=1)",
        MASKING + "perturbed_mask_and_gradient_match_the_closed_form_of_two_tokens",
    ),
    (
        "models/masking.py",
        "        centered = centered.masked_fill((kept == kept[:, :1]).all(dim=(1, 2)).view(-1, 1, 1), 0.0)\n",
        "",
        MASKING + "a_budget_of_all_tokens_has_exactly_no_gradient",
    ),
    (
        "models/masking.py",
        "if mask.dtype != torch.bool or tuple",
        "if tuple",
        LVMAE + "masks_of_another_shape_are_refused_by_name",
    ),
    (
        "models/masking.py",
        "if expected is not None and counts[0] != expected:",
        "if expected is not None and counts[0] < expected:",
        MASKING + "a_count_given_with_the_mask_is_checked",
    ),
    # The tokenizer
    (
        "models/modeling_fsq_magvit.py",
        "space_to_depth((pixel_values - self.pixel_mean) / self.pixel_std, self.stem)",
        "space_to_depth(pixel_values / self.pixel_std, self.stem)",
        VERSION_0_1 + "the_tokenizer_gives_the_same_codes_scores_and_pictures",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "self.stem) * self.pixel_std + self.pixel_mean",
        "self.stem) * self.pixel_std",
        VERSION_0_1 + "the_tokenizer_gives_the_same_codes_scores_and_pictures",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "config.temporal_downsample[::-1][level]",
        "config.temporal_downsample[level]",
        TOKENIZER + "the_decoder_doubles_what_the_encoder_halves_in_reverse_order",
    ),
    (
        "models/token_scores.py",
        "        features = features.float()\n",
        "",
        TOKENIZER + "distances_of_half_precision_are_computed_in_float32",
    ),
    (
        "models/token_scores.py",
        ".sum(dim=1) + 1e-6).sqrt()",
        ".sum(dim=1)).sqrt()",
        TOKENIZER + "distances_are_euclidean_and_the_first_slot_has_its_rule",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "self.quantizer(self.encoder(windows).movedim(1, -1) * mask.unsqueeze(-1))",
        "self.quantizer(self.encoder(windows).movedim(1, -1)) * mask.unsqueeze(-1)",
        TOKENIZER + "the_gradient_of_the_mask_passes_through_the_quantizer",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "scores = (scores - low) / (high - low + 1e-6)",
        "scores = scores - low",
        TOKENIZER + "the_noise_is_relative_to_the_range_of_the_scores",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "device=kept.device) < self.config.unmasked_clip_ratio",
        "device=kept.device) > self.config.unmasked_clip_ratio",
        TOKENIZER + "unmasked_training_clips_keep_everything_and_still_touch_the_scorer",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "previous = features[:, :, -1:]",
        "previous = features[:, :, :1]",
        TOKENIZER + "scores_of_windows_are_those_of_the_whole_clip_at_once",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "all_scores = torch.cat([all_scores[:, 1:2], all_scores[:, 1:]], dim=1)",
        "pass",
        TOKENIZER + "in_windows_of_one_slot_the_first_slot_takes_the_score_of_the_second",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "frames[:, :, : grid_size[0] * self.config.tubelet_size]",
        "frames",
        TOKENIZER + "any_length_is_the_clip_held_at_its_last_frame",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "std=module.weight[0].numel() ** -0.5",
        "std=module.weight[:, 0].numel() ** -0.5",
        TOKENIZER + "initialization_leaves_nothing_out_and_keeps_the_variance",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "if keep_ratio is None and self.training and self.config",
        "if keep_ratio is None and self.config",
        TOKENIZER + "budgets_of_training_windows_are_drawn_from_the_range",
    ),
    (
        "models/modeling_fsq_magvit.py",
        ".round().long().clamp(min=1)",
        ".long().clamp(min=1)",
        TOKENIZER + "each_window_keeps_its_highest_scores_and_in_training_its_first_slot",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "low + (high - low) * torch.rand(scores.shape[0], 1, device",
        "low + (high - low) * torch.rand(1, 1, device",
        TOKENIZER + "budgets_of_training_windows_are_drawn_from_the_range",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "last = tensor.narrow(dim, tensor.shape[dim] - 1, 1)",
        "last = tensor.narrow(dim, 0, 1)",
        TOKENIZER + "padding_repeats_the_last_entry",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "centered.select(dim, length // 2)",
        "centered.select(dim, 0)",
        TOKENIZER + "a_clip_that_stands_still_is_coded_as_the_picture_is",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "sigma = self.config.topk_sigma if sigma is None else sigma",
        "sigma = self.config.topk_sigma",
        TOKENIZER + "given_noise_takes_the_place_of_the_config_s",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "nn.functional.mse_loss(frames.float(), pixel_values_videos.float())",
        "nn.functional.mse_loss(frames, pixel_values_videos.to(frames.dtype))",
        TOKENIZER + "the_loss_of_half_precision_is_computed_in_float32",
    ),
    (
        "models/modeling_fsq_magvit.py",
        "return self.shortcut(hidden_states) + residual",
        "return residual",
        VERSION_0_1 + "the_tokenizer_gives_the_same_codes_scores_and_pictures",
    ),
    (
        "models/token_scores.py",
        "padding=(0, stride - 1, stride - 1),",
        'padding=(0, stride - 1, stride - 1),\n            padding_mode="replicate",',
        VERSION_0_1 + "the_tokenizer_gives_the_same_codes_scores_and_pictures",
    ),
    # The autoencoder
    (
        "models/positions.py",
        "dtype=torch.float64) / size",
        "dtype=torch.float32) / size",
        LVMAE + "positions_are_exact_at_the_end_of_a_long_clip",
    ),
    (
        "models/positions.py",
        "torch.stack([angles.sin(), angles.cos()], dim=-1)",
        "torch.stack([angles.cos(), angles.sin()], dim=-1)",
        LVMAE + "positions_are_videomaes_table",
    ),
    (
        "models/positions.py",
        "+ 0.5) * (length / tokens) - 0.5",
        "+ 0.0) * (length / tokens)",
        LVMAE + "at_another_size_a_token_keeps_its_place",
    ),
    (
        "models/positions.py",
        "slowest = math.pi / (2 * max(length, 2))",
        "slowest = 1e-4",
        LVMAE + "factorized_positions_are_sines_of_each_axis",
    ),
    (
        "models/positions.py",
        "axis.floor().clamp(0, max(length - 2, 0))",
        "axis.floor()",
        LVMAE + "flattened_positions_are_interpolated_between_trained_ones",
    ),
    (
        "models/modeling_lvmae.py",
        "logits = self.forward_decoder(encoded, visible, decoded, grid_size=grid_size, **kwargs)",
        "logits = self.forward_decoder(encoded, visible, decoded, **kwargs)",
        LVMAE + "other_clips_need_no_surgery",
    ),
    (
        "models/configuration_lvmae.py",
        '{"position_embedding": "flattened", **config_dict}',
        "{**config_dict}",
        LVMAE + "a_config_without_the_field_is_flattened",
    ),
    (
        "models/configuration_lvmae.py",
        "            config.position_grid_size = list(trained)",
        "            pass",
        LVMAE + "a_saved_model_s_positions_keep_their_grid",
    ),
    (
        "models/modeling_lvmae.py",
        "pixels.transpose(2, 3).flatten(2)",
        "pixels.flatten(2)",
        LVMAE + "encoder_is_videomaes",
    ),
    (
        "models/modeling_lvmae.py",
        "self.scaling = self.head_dim**-0.5",
        "self.scaling = hidden_size**-0.5",
        LVMAE + "encoder_is_videomaes",
    ),
    (
        "models/modeling_lvmae.py",
        "self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)",
        "self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qv_bias)",
        LVMAE + "sizes_are_videomaes " + LVMAE + "encoder_is_videomaes",
    ),
    (
        "models/modeling_lvmae.py",
        "self.dropout if self.training else 0.0",
        "self.dropout",
        LVMAE + "nothing_is_drawn_in_evaluation",
    ),
    (
        "models/modeling_lvmae.py",
        "return branch * kept.to(branch.dtype) / (1 - self.rate)",
        "return branch * kept.to(branch.dtype)",
        LVMAE + "drop_path_leaves_out_whole_samples_and_keeps_the_mean",
    ),
    (
        "models/modeling_lvmae.py",
        "torch.rand(branch.shape[0], 1, 1, device=branch.device)",
        "torch.rand(1, 1, 1, device=branch.device)",
        LVMAE + "drop_path_leaves_out_whole_samples_and_keeps_the_mean",
    ),
    (
        "models/modeling_lvmae.py",
        "config.drop_path_rate * number / max(depth - 1, 1)",
        "config.drop_path_rate * number / depth",
        LVMAE + "drop_path_leaves_out_whole_samples_and_keeps_the_mean",
    ),
    (
        "models/modeling_lvmae.py",
        "self.config, torch.cat([visible, decoded], dim=1)",
        "self.config, torch.cat([decoded, visible], dim=1)",
        LVMAE + "decoding_all_hidden_pixels_is_videomaes_pretraining",
    ),
    (
        "models/modeling_lvmae.py",
        "hidden_states, first_query=visible.shape[1], **kwargs",
        "hidden_states, first_query=decoded.shape[1], **kwargs",
        LVMAE + "the_last_decoder_layer_computes_only_what_is_predicted",
    ),
    (
        "models/modeling_lvmae.py",
        "deviation = pixels.var(dim=2, keepdim=True).sqrt()",
        "deviation = pixels.var(dim=2, keepdim=True, unbiased=False).sqrt()",
        LVMAE + "decoding_all_hidden_pixels_is_videomaes_pretraining",
    ),
    (
        "models/modeling_lvmae.py",
        "losses = (logits.float() - targets.float()).square()",
        "losses = (logits - targets.to(logits.dtype)).square()",
        LVMAE + "losses_of_half_precision_are_computed_in_float32",
    ),
    (
        "models/modeling_lvmae.py",
        "shares = masked / masked.sum(dim=1, keepdim=True).clamp(min=1)",
        "shares = masked * len(masked) / masked.sum().clamp(min=1)",
        LVMAE + "loss_is_the_papers_formula",
    ),
    (
        "models/modeling_lvmae.py",
        "masked.sum(dim=1, keepdim=True).clamp(min=1)",
        "masked.sum(dim=1, keepdim=True)",
        LVMAE + "a_clip_without_hidden_decoded_tokens_adds_no_loss",
    ),
    (
        "models/modeling_lvmae.py",
        "query_states=queries, **masked",
        "query_states=class_token, **masked",
        LVMAE + "class_attention_pools_with_one_query",
    ),
    (
        "models/modeling_lvmae.py",
        "logits[:, part].float().log_softmax(dim=-1)",
        "logits[:, part].log_softmax(dim=-1)",
        LVMAE + "losses_of_half_precision_are_computed_in_float32",
    ),
    (
        "models/modeling_lvmae.py",
        "if self.training and ratio > 0:",
        "if ratio > 0:",
        LVMAE + "tubes_are_dropped_in_training_only",
    ),
    (
        "models/modeling_lvmae.py",
        "init.normal_(module.mask_token, std=self.config.initializer_range)",
        "pass",
        LVMAE + "built_on_meta_and_initialized_equals_built_directly",
    ),
    (
        "models/modeling_lvmae.py",
        "(tokens * shares.to(tokens.dtype).unsqueeze(-1)).sum(dim=1)",
        "tokens.mean(dim=1)",
        "tests/models/test_token_selection.py::test_a_padded_batch_equals_each_clip_alone",
    ),
    (
        "models/modeling_lvmae.py",
        "attention_mask = padding_mask(self.config, token_mask, hidden_states)",
        "attention_mask = None",
        "tests/models/test_token_selection.py::test_a_padded_batch_equals_each_clip_alone",
    ),
    (
        "models/token_selection.py",
        'values = values.scatter(1, scores.argmax(dim=1, keepdim=True), float("inf"))',
        "pass",
        "tests/models/test_token_selection.py::test_a_threshold_keeps_at_least_one_token_a_clip_and_at_most_the_budget_of_a_batch",
    ),
    (
        "models/modeling_lvmae.py",
        "pooler_output=mean_of_tokens(hidden_states, token_mask),",
        "pooler_output=hidden_states[:, 0],",
        ECOSYSTEM + "the_pooled_output_is_the_mean_and_the_last_hidden_state_is_normed",
    ),
    (
        "models/modeling_lvmae.py",
        "(len(labels) * len(slices) if count is None else count)",
        "(len(labels) if count is None else count)",
        LABEL_SETS + "the_loss_is_the_mean_of_both_cross_entropies",
    ),
    (
        "models/modeling_lvmae.py",
        "layer.mlp_checkpointing = mlp_only and layer.gradient_checkpointing",
        "layer.mlp_checkpointing = mlp_only",
        RECOMPUTATION + "mlp_checkpointing_is_every_n_layers_and_can_be_taken_back",
    ),
    (
        "models/modeling_lvmae.py",
        'if device == "meta" or not torch.is_autocast_enabled(device):',
        "if True:",
        MIXED_PRECISION + "a_layer_casts_no_activations",
    ),
    (
        "models/modeling_lvmae.py",
        "return normed.to(torch.get_autocast_dtype(device))",
        "return normed.float()",
        MIXED_PRECISION + "a_layer_casts_no_activations",
    ),
    # Recomputation
    (
        "models/recomputation.py",
        "with torch.enable_grad(), torch.autocast(*node.autocast):",
        "with torch.enable_grad():",
        RECOMPUTATION + "outputs_are_recomputed_under_the_autocast_of_the_forward_pass",
    ),
    (
        "models/recomputation.py",
        " or _has_hooks(function):",
        ":",
        RECOMPUTATION + "a_function_with_hooks_is_called_plainly",
    ),
    (
        "models/recomputation.py",
        "ctx.save_for_backward(tensor, *parameters)",
        "ctx.save_for_backward(tensor)",
        RECOMPUTATION + "what_changes_in_place_before_backward_is_an_error_as_in_a_plain_step",
    ),
    ("models/recomputation.py", " or _is_small(tensor)", "", RECOMPUTATION + "small_outputs_are_kept"),
    (
        "models/recomputation.py",
        "create_graph=torch.is_grad_enabled()))",
        "create_graph=False))",
        RECOMPUTATION + "first_and_second_derivatives_match_finite_differences",
    ),
    (
        "models/recomputation.py",
        "return outer[0](kept)",
        "return kept.detach()",
        RECOMPUTATION + "hooks_around_see_all_else_that_is_kept",
    ),
]
