"""Changes of `targets/`."""

CACHE = "tests/targets/test_cache.py::test_"
EXPLAINED = "tests/targets/test_explained_variance.py::test_"
PIXELS = "tests/targets/test_pixels.py::test_"
PRETRAINING = "tests/training/test_pretraining.py::test_"
RUNS = "tests/training/test_runs.py::test_"
SCORES = "tests/targets/test_token_scores.py::test_"
TRAINERS = "tests/training/test_trainers.py::test_"
VERSION_0_1 = "tests/test_version_0_1.py::test_"

MUTATIONS = [
    # Explained variance
    (
        "targets/explained_variance.py",
        "(distance * len(order) + order).argmin(dim=-1)",
        "(distance * len(order) - order).argmin(dim=-1)",
        EXPLAINED + "shares_are_those_of_loops_over_tokens",
    ),
    (
        "targets/explained_variance.py",
        "error=widened(errors).sum()",
        "error=widened(errors).mean()",
        EXPLAINED + "an_evaluation_has_the_shares_of_its_own_predictions",
    ),
    (
        "targets/explained_variance.py",
        'sums["around_clip"] / clips + between.mean()',
        "between.mean()",
        EXPLAINED + "shares_are_those_of_loops_over_tokens",
    ),
    (
        "targets/explained_variance.py",
        "(widened(predicted) - widened(targets)).square()",
        "(widened(predicted) - widened(targets)).abs()",
        EXPLAINED + "shares_are_those_of_loops_over_tokens",
    ),
    # Targets and masks on the fly
    (
        "targets/builder.py",
        "scores = compact_scores(self._scores(given, clips, noise))",
        "scores = self._scores(given, clips, noise)",
        PRETRAINING + "scores_that_a_cache_cannot_tell_apart_are_ties_on_the_fly_too",
    ),
    (
        "targets/builder.py",
        "tokenizer.requires_grad_(False).eval().to(device)",
        "tokenizer.requires_grad_(False).to(device)",
        TRAINERS + "the_tokenizer_is_frozen_and_in_no_checkpoint",
    ),
    (
        "targets/builder.py",
        "tokenizer.requires_grad_(False).eval()",
        "tokenizer.eval()",
        TRAINERS + "the_tokenizer_is_frozen_and_in_no_checkpoint",
    ),
    (
        "targets/builder.py",
        "        with self.full_precision():\n            return self._build(dict(batch))",
        "        return self._build(dict(batch))",
        CACHE + "targets_are_the_same_under_autocast",
    ),
    (
        "targets/builder.py",
        "return self._build(dict(batch))",
        "return self._build(batch)",
        TRAINERS + "targets_are_the_tokenizer_s_codes_of_the_same_clip",
    ),
    (
        "targets/builder.py",
        "adaptive_decoder_mask(scores, chosen, drawn, noise)",
        "adaptive_decoder_mask(scores, chosen, drawn)",
        CACHE + "fixed_clips_are_served_as_on_the_fly_in_every_epoch",
    ),
    (
        "targets/builder.py",
        'batch["num_decoded"] = chosen + drawn',
        'batch["num_decoded"] = chosen',
        TRAINERS + "targets_are_the_tokenizer_s_codes_of_the_same_clip",
    ),
    (
        "targets/builder.py",
        'config.decoder_mask != "none" and "bool_decoded_pos" not in batch',
        'config.decoder_mask != "none"',
        PRETRAINING + "a_batch_s_own_decoder_mask_is_used",
    ),
    (
        "targets/builder.py",
        "self.tokenizer.quantizer.bounded_latents(latents).flatten(1, 3)",
        "latents.flatten(1, 3)",
        PRETRAINING + "targets_are_the_codes_or_what_is_rounded_to_them",
    ),
    (
        "targets/builder.py",
        "scale = tokenizer.config.patch_size / config.patch_size",
        "scale = config.patch_size / tokenizer.config.patch_size",
        TRAINERS + "targets_are_the_tokenizer_s_codes_of_the_same_clip",
    ),
    (
        "targets/builder.py",
        "function(builder.scale.normalize(self.whole), self.grid_size, builder.embed)",
        "function(self.pixels, self.grid_size, builder.embed)",
        PRETRAINING + "everest_follows_the_model_as_it_learns",
    ),
    (
        "targets/builder.py",
        '        if given["importance_scores"] is not None:\n            return given["importance_scores"]\n',
        "",
        PRETRAINING + "cached_scores_decide_and_the_tokenizer_runs_only_where_it_is_needed",
    ),
    (
        "targets/builder.py",
        "        if self._tokens is None:\n",
        "        if True:\n",
        PRETRAINING + "a_batch_is_tokenized_once",
    ),
    (
        "targets/builder.py",
        "return frames // config.tubelet_size, height // config.patch_size, width // config.patch_size",
        "return config.grid_size",
        PRETRAINING + "clips_of_another_size_than_the_config_s_get_masks_of_their_own_grid",
    ),
    (
        "targets/builder.py",
        " or config.num_frames % tokenizer_config.tubelet_size:",
        ":",
        TRAINERS + "a_tokenizer_whose_slots_are_longer_is_refused",
    ),
    (
        "targets/builder.py",
        'if config.target_type != "pixels" and tuple(config.levels)',
        'if config.target_type == "levels" and tuple(config.levels)',
        TRAINERS + "a_tokenizer_that_does_not_fit_is_refused",
    ),
    # The cache
    (
        "targets/cache.py",
        "edges = len(data), data[:EDGE_BYTES] + data[-EDGE_BYTES:]",
        "edges = len(data), data[:EDGE_BYTES]",
        CACHE + "the_key_of_a_content_is_of_bytes_and_files_alike",
    ),
    (
        "targets/cache.py",
        "file.seek(max(0, size - EDGE_BYTES))",
        "file.seek(size - EDGE_BYTES)",
        CACHE + "the_key_of_a_content_is_of_bytes_and_files_alike",
    ),
    (
        "targets/cache.py",
        "np.min_scalar_type(math.prod(levels) - 1)",
        "np.min_scalar_type(math.prod(levels))",
        CACHE + "codes_take_the_smallest_integers_that_hold_them",
    ),
    (
        "targets/cache.py",
        "found = zlib.crc32(values.tobytes(), found)",
        "found = zlib.crc32(values.tobytes())",
        CACHE + "a_changed_number_is_found_by_its_checksum",
    ),
    (
        "targets/cache.py",
        'if "checksum" in found and found["checksum"] != checksum(found["video"], found["content"], targets):',
        "if False:",
        CACHE + "a_changed_number_is_found_by_its_checksum",
    ),
    (
        "targets/cache.py",
        "0 <= codes.min() <= codes.max() < math.prod(levels or ())",
        "0 <= codes.min() <= codes.max() <= math.prod(levels or ())",
        CACHE + "a_cache_without_checksums_is_read_with_a_warning_and_its_numbers_are_checked",
    ),
    (
        "targets/cache.py",
        'if not np.isfinite(targets["importance_scores"]).all():',
        'if np.isnan(targets["importance_scores"]).any():',
        CACHE + "a_cache_without_checksums_is_read_with_a_warning_and_its_numbers_are_checked",
    ),
    (
        "targets/cache.py",
        "if not shards or not present.issuperset(shard.name for shard in shards):",
        "if not shards:",
        CACHE + "a_cache_is_gone_on_with_only_as_it_was_begun",
    ),
    (
        "targets/cache.py",
        "range(start, min(start + size, total))",
        "range(start, start + size)",
        CACHE + "the_files_of_a_cache_hold_every_row_of_every_epoch_once",
    ),
    (
        "targets/cache.py",
        "if len(rows) != len(shard.rows) or lengths",
        "if lengths",
        CACHE + "half_a_file_is_refused_before_it_is_read",
    ),
    (
        "targets/cache.py",
        "np.int64 if math.prod(self.levels) > 2**31 else np.int32",
        "np.int32",
        CACHE + "codes_beyond_int32_come_back",
    ),
    (
        "targets/cache.py",
        '            self._check(f"a file of {video} (bytes, hash)", found["content"], content)\n',
        "            pass\n",
        CACHE + "a_cache_of_other_videos_with_the_same_names_is_refused",
    ),
    (
        "targets/cache.py",
        'self._check(f"the video shown as number {row}", found["video"], video)',
        "pass",
        CACHE + "targets_of_another_video_are_refused",
    ),
    (
        "targets/cache.py",
        'self._check("at least as many videos", min(len(rows), len(keys)), len(keys))',
        "pass",
        CACHE + "other_sizes_frames_videos_models_and_tokenizers_are_refused",
    ),
    (
        "targets/cache.py",
        '"draws_of_seed": clips.seed if clips.draws_clips else None',
        '"draws_of_seed": None',
        CACHE + "another_seed_is_refused_where_clips_are_drawn",
    ),
    (
        "targets/cache.py",
        "return super().epoch % self.cache.num_epochs",
        "return min(super().epoch, self.cache.num_epochs - 1)",
        CACHE + "drawn_clips_are_served_in_the_cached_epochs_and_then_again_under_new_masks",
    ),
    (
        "targets/cache.py",
        "with seeded(self.seed, epoch, number):",
        "with seeded(self.seed, epoch):",
        CACHE + "drawn_clips_are_served_in_the_cached_epochs_and_then_again_under_new_masks",
    ),
    (
        "models/masking.py",
        "mask_to_indices(~bool_masked_pos.unsqueeze(0)",
        "mask_to_indices(bool_masked_pos.unsqueeze(0)",
        CACHE + "visible_tubelets_give_the_whole_clips_loss_and_gradients",
    ),
    (
        "targets/cache.py",
        'whole_clips or config.target_type == "pixels" or cache.levels is None',
        'whole_clips or config.target_type == "pixels"',
        CACHE + "scores_alone_leave_the_clips_whole_and_choose_as_on_the_fly",
    ),
    (
        "targets/cache.py",
        "weights.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())",
        "pass",
        VERSION_0_1 + "the_tokenizer_s_fingerprint_is_the_one_in_its_cache_after_saving_it_again_too",
    ),
    # Writing a cache
    (
        "targets/cache_writing.py",
        "if num_epochs > 1 and not clips.draws_clips:",
        "if num_epochs > 1 and clips.draws_clips:",
        CACHE + "what_cannot_be_cached_is_refused",
    ),
    (
        "targets/cache_writing.py",
        "list_shards(manifest)[process_index::num_processes]",
        "list_shards(manifest)[process_index :: num_processes + 1]",
        CACHE + "two_processes_write_the_cache_of_one",
    ),
    (
        "targets/cache_writing.py",
        "            clips.set_epoch(shard.epoch)\n",
        "",
        CACHE + "drawn_clips_are_served_in_the_cached_epochs_and_then_again_under_new_masks",
    ),
    (
        "targets/cache_writing.py",
        "        with self.builder.full_precision():\n            if self.tokenizer",
        "        if True:\n            if self.tokenizer",
        CACHE + "targets_are_the_same_under_autocast",
    ),
    (
        "targets/cache_writing.py",
        'check_targets(row, levels, f"targets of {item[\'video\']}", "check the tokenizer\'s weights")',
        "pass",
        CACHE + "a_tokenizer_whose_scores_are_not_finite_writes_nothing",
    ),
    (
        "targets/cache_writing.py",
        "json.loads(json.dumps(manifest[name])) != begun.get(name))",
        "name in begun and json.loads(json.dumps(manifest[name])) != begun[name])",
        CACHE + "a_cache_is_gone_on_with_only_as_it_was_begun",
    ),
    (
        "targets/cache_writing.py",
        "if not (folder / shard.name).exists()]",
        "]",
        CACHE + "a_cache_is_gone_on_with_only_as_it_was_begun",
    ),
    # Optical flow
    (
        "targets/flow.py",
        "torch.tensor([width, height], device",
        "torch.tensor([height, width], device",
        SCORES + "raft_scales_x_and_y_of_the_flow_by_their_own_sides",
    ),
    (
        "targets/flow.py",
        "return smaller * torch.tensor([width, height], device=flow.device).view(1, 2, 1, 1)",
        "return smaller",
        SCORES + "flow_is_the_motion_in_pixels_of_the_frames_own_size",
    ),
    (
        "targets/flow.py",
        "dis.calc(frame, other, None)",
        "dis.calc(other, frame, None)",
        SCORES + "flow_is_the_motion_in_pixels_of_the_frames_own_size",
    ),
    (
        "targets/flow.py",
        "MIN_FLOW_SIZE, multiple=8) - 1",
        "MIN_FLOW_SIZE, multiple=8)",
        SCORES + "raft_runs_from_a_weights_file",
    ),
    # Pixels
    (
        "targets/pixels.py",
        "self.mean.to(pixels.dtype)).clamp(0, 1)",
        "self.mean.to(pixels.dtype))",
        PIXELS + "restored_pixels_are_clamped",
    ),
    (
        "models/token_scores.py",
        'mode="bilinear", antialias=True)',
        'mode="bilinear")',
        PIXELS + "a_smaller_view_is_the_mean_of_what_it_covers",
    ),
    (
        "targets/pixels.py",
        "device=device).view(-1, 1, 1) * 256",
        "device=device).view(-1, 1, 1) * 255",
        PIXELS + "restored_pixels_are_the_frames",
    ),
    (
        "targets/pixels.py",
        "if processor.do_normalize else ([0.0], [1.0])",
        "",
        PIXELS + "restored_pixels_are_the_frames",
    ),
    (
        "targets/pixels.py",
        "sub_(self.byte_mean).div_(self.byte_deviation)",
        "sub_(self.byte_mean).div_(self.deviation)",
        PIXELS + "bytes_are_normalized_as_the_processor_does_bit_for_bit",
    ),
    # Scores
    (
        "models/token_scores.py",
        "tubes.permute(0, 1, 4, 6, 2, 3, 5, 7)",
        "tubes.permute(0, 1, 6, 4, 2, 3, 5, 7)",
        SCORES + "tubes_are_the_tokens_pixels",
    ),
    (
        "models/token_scores.py",
        "last = pixels[:, -1:].expand",
        "last = pixels[:, :1].expand",
        SCORES + "a_slot_that_the_clip_fills_in_part_is_held_at_the_last_frame",
    ),
    (
        "models/token_scores.py",
        "clips.float().diff(dim=1).abs()",
        "clips.float().diff(dim=1)",
        SCORES + "motion_is_the_mean_difference_from_the_frame_before",
    ),
    (
        "targets/token_scores.py",
        "(clips[:, 1:], clips[:, :-1])",
        "(clips[:, :-1], clips[:, 1:])",
        SCORES + "flow_scores_are_shares_of_the_mean_flow_over_both_axes_of_each_tube",
    ),
    (
        "targets/token_scores.py",
        "return scores / scores.sum(dim=1, keepdim=True).clamp(min=1e-12)",
        "return scores / scores.sum(dim=1, keepdim=True)",
        SCORES + "lone_frames_and_still_clips_have_finite_scores",
    ),
    (
        "models/token_scores.py",
        "return torch.cat([differences[:, :1], differences], dim=1)",
        "return torch.cat([torch.zeros_like(differences[:, :1]), differences], dim=1)",
        SCORES + "motion_is_the_mean_difference_from_the_frame_before",
    ),
    (
        "models/token_scores.py",
        "return (slots - places).repeat_interleave(cells) + noise",
        "return (slots - places).repeat(cells) + noise",
        SCORES + "uniform_frames_of_any_budget_lie_about_evenly",
    ),
    (
        "models/token_scores.py",
        "<< (bits - 1 - bit)",
        "<< bit",
        SCORES + "uniform_frames_of_any_budget_lie_about_evenly",
    ),
    (
        "models/token_scores.py",
        "scores = importance_scores.float()\n    low",
        "scores = importance_scores.half()\n    low",
        PIXELS + "compact_scores_keep_the_order_and_do_not_change_again",
    ),
    (
        "models/token_scores.py",
        "(high - low).clamp(min=torch.finfo(torch.float32).tiny)",
        "(high - low)",
        PIXELS + "still_clips_score_alike",
    ),
    (
        "targets/token_scores.py",
        "noise=noise[:, :-1])",
        "noise=noise[:, 1:])",
        SCORES + "a_selection_is_drawn_from_the_clips_noise",
    ),
    (
        "models/token_scores.py",
        "        tokens = split_tubes(clips, grid_size) if embed is None else embed(clips).unflatten(1, grid_size)\n"
        "        distance = torch.linalg.vector_norm(tokens.float().diff(dim=1), dim=-1)",
        "        tokens = split_tubes(clips, grid_size) if embed is None else embed(clips).unflatten(1, grid_size)\n"
        "        distance = torch.linalg.vector_norm(tokens.diff(dim=1), dim=-1)",
        SCORES + "everest_of_half_precision_is_computed_in_float32",
    ),
]
