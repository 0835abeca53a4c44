"""Mutations of `sharing/`, `visualization/` and the modules beside the rooms."""

COMMANDS = "tests/test_command_line.py"
COST = "tests/test_cost.py"
CONVERT = "tests/sharing/test_convert_videomae.py"
EXPORT = "tests/sharing/test_export.py"
LOADING = "tests/sharing/test_loading.py"
CARD = "tests/sharing/test_model_card.py"
DRAWING = "tests/visualization/test_drawing.py"
PICTURES = "tests/visualization/test_predictions.py"
MUTATIONS = [
    # command_line.py
    (
        "command_line.py",
        'above = value >= low if interval[0] == "[" else value > low',
        "above = value >= low",
        f"{COMMANDS}::test_intervals",
    ),
    (
        "command_line.py",
        'below = value <= high if interval[-1] == "]" else value < high',
        "below = value < high",
        f"{COMMANDS}::test_intervals",
    ),
    ("command_line.py", "allow_abbrev=False", "allow_abbrev=True", f"{COMMANDS}::test_options_have_their_whole_names"),
    (
        "command_line.py",
        "for number in value if isinstance(value, list) else [value]:",
        "for number in value[:1] if isinstance(value, list) else [value]:",
        "tests/data/test_arguments.py::test_every_number_of_a_list_is_checked",
    ),
    (
        "command_line.py",
        'interval = (inherited or {}).get(item.name) or item.metadata.get("within")',
        'interval = item.metadata.get("within")',
        f"{COMMANDS}::test_a_wrong_option_ends_a_program_with_one_sentence[finetune]",
    ),
    (
        "command_line.py",
        'self.exit(2, f"error: {message}\\n")',
        'self.exit(0, f"error: {message}\\n")',
        f"{COMMANDS}::test_options_have_their_whole_names",
    ),
    (
        "command_line.py",
        "    if not isinstance(value, dict):\n",
        "    if isinstance(value, Exception):\n",
        f"{COMMANDS}::test_intervals",
    ),
    (
        "command_line.py",
        'sys.exit(f"error: {mask_credentials(sentence)}")',
        'sys.exit(f"error: {sentence}")',
        "tests/models/test_credentials.py::test_a_program_s_last_sentence_has_no_password",
    ),
    (
        "command_line.py",
        "        if sentence is None:\n            raise\n",
        "        if sentence is None:\n            sys.exit(str(error))\n",
        f"{COMMANDS}::test_a_program_says_one_sentence_where_its_user_erred",
    ),
    (
        "command_line.py",
        "    sys.exit(code)\n",
        "    sys.exit(0)\n",
        f"{COMMANDS}::test_a_program_says_one_sentence_where_its_user_erred",
    ),
    # files.py
    (
        "files.py",
        'part = path.with_name(f".{path.name}.part")',
        "part = path",
        "tests/test_files.py::test_a_killed_write_leaves_the_former_file",
    ),
    (
        "files.py",
        "while block := file.read(1 << 20):",
        "if block := file.read(1 << 20):",
        "tests/test_files.py::test_a_digest_is_of_the_whole_file",
    ),
    ("files.py", "error.__cause__ or error.__context__", "None", "tests/test_files.py"),
    (
        "files.py",
        '("No space left on device", "PytorchStreamWriter failed writing",',
        '("No space left on device",',
        "tests/test_files.py",
    ),
    (
        "files.py",
        "error.errno in (errno.ENOSPC, errno.EDQUOT)",
        "error.errno in (errno.ENOSPC,)",
        "tests/test_files.py",
    ),
    # cost.py
    (
        "cost.py",
        "return 4 * self.parameters + 12 * self.trainable_parameters",
        "return 4 * self.parameters + 8 * self.trainable_parameters",
        f"{COST}::test_states_are_counted_in_float32",
    ),
    (
        "cost.py",
        "config.token_budget if decoded_tokens is None else decoded_tokens",
        "config.token_budget",
        "tests/test_estimate_cost.py",
    ),
    (
        "cost.py",
        '"input_bytes": 2 * cost.input_bytes',
        '"input_bytes": cost.input_bytes',
        f"{COST}::test_states_are_counted_in_float32",
    ),
    (
        "cost.py",
        "return 2 * _attention_flops(query, key, value)",
        "return 5 * _attention_flops(query, key, value) // 2",
        f"{COST}::test_fused_attention_counts_as_its_eager_form",
    ),
    (
        "cost.py",
        "queries * key[2] * (size + value[3])",
        "queries * queries * (size + value[3])",
        f"{COST}::test_fused_attention_counts_as_its_eager_form",
    ),
    (
        "cost.py",
        "if weight.requires_grad) if model.training else 0",
        ") if model.training else 0",
        f"{COST}::test_fine_tuning_step[LoRA-default]",
    ),
    (
        "cost.py",
        "for key, nbytes in kept.items() if key not in own)",
        "for key, nbytes in kept.items())",
        f"{COST}::test_a_storage_is_counted_once_and_weights_not_at_all",
    ),
    ("cost.py", "saved_bytes=saved + rounded", "saved_bytes=saved", f"{COST}::test_pretraining_step"),
    (
        "cost.py",
        "                weakref.finalize(storage, self._change, -storage.nbytes())\n",
        "",
        f"{COST}::test_the_peak_is_that_of_the_tensors_alive",
    ),
    (
        "cost.py",
        '{"mlp_only": checkpointing == "mlp"}',
        '{"mlp_only": checkpointing == "layer"}',
        f"{COST}::test_pretraining_step",
    ),
    (
        "cost.py",
        "LVMAEForPreTraining(copy.deepcopy(config))",
        "LVMAEForPreTraining(config)",
        f"{COST}::test_counting_leaves_the_callers_config_alone",
    ),
    (
        "cost.py",
        "config.window_size if training else config.num_frames",
        "config.num_frames",
        f"{COST}::test_tokenizer",
    ),
    # sharing/convert_videomae.py
    (
        "sharing/convert_videomae.py",
        "final_layer_norm=not source.use_mean_pooling",
        "final_layer_norm=source.use_mean_pooling",
        f"{CONVERT}::test_hidden_states_are_videomaes",
    ),
    (
        "sharing/convert_videomae.py",
        '    "attention.output.dense.": "attention.out_proj.",\n    "intermediate.dense.": "mlp.fc1.",\n    "output.dense.": "mlp.fc2.",\n',
        '    "output.dense.": "mlp.fc2.",\n    "attention.output.dense.": "attention.out_proj.",\n    "intermediate.dense.": "mlp.fc1.",\n',
        f"{CONVERT}::test_hidden_states_are_videomaes",
    ),
    (
        "sharing/convert_videomae.py",
        'zip("qkv", tensor.chunk(3))',
        'zip("kqv", tensor.chunk(3))',
        f"{CONVERT}::test_original_encoders_are_videomaes",
    ),
    (
        "sharing/convert_videomae.py",
        "1280: 16, 1408: 16",
        "1280: 20, 1408: 16",
        f"{CONVERT}::test_sizes_are_read_off_the_shapes",
    ),
    (
        "sharing/convert_videomae.py",
        'if architecture == "VideoMAEForPreTraining" and not source.norm_pix_loss:',
        "if False:",
        f"{CONVERT}::test_models_without_counterpart_are_refused",
    ),
    (
        "sharing/convert_videomae.py",
        'if architecture == "VideoMAEForVideoClassification" and not source.use_mean_pooling:',
        "if False:",
        f"{CONVERT}::test_models_without_counterpart_are_refused",
    ),
    ("sharing/convert_videomae.py", "target.to(source.dtype)", "target", f"{CONVERT}::test_the_dtype_stays"),
    (
        "sharing/convert_videomae.py",
        "    if faults := {name: sorted(keys) for name, keys in report.items() if keys}:",
        "    if faults := {name: sorted(keys) for name, keys in report.items() if keys and False}:",
        f"{CONVERT}::test_weights_that_do_not_fit_are_refused",
    ),
    (
        "sharing/convert_videomae.py",
        'map_location="cpu", weights_only=True)\n',
        'map_location="cpu", weights_only=False)\n',
        f"{CONVERT}::test_original_files_that_do_not_fit_are_refused",
    ),
    (
        "sharing/convert_videomae.py",
        '    "layer_norm_eps", "qv_bias",',
        '    "qv_bias",',
        f"{CONVERT}::test_pretraining_is_videomaes",
    ),
    (
        "sharing/convert_videomae.py",
        '"final_layer_norm": f"{encoder}norm.weight" in weights',
        '"final_layer_norm": True',
        f"{CONVERT}::test_original_classifiers_are_videomaes {CONVERT}::test_original_encoders_are_videomaes",
    ),
    (
        "sharing/convert_videomae.py",
        "if height != width:",
        "if False:",
        f"{CONVERT}::test_original_files_that_do_not_fit_are_refused",
    ),
    (
        "sharing/convert_videomae.py",
        "num_frames=num_frames,\n        tubelet_size",
        "num_frames=16,\n        tubelet_size",
        f"{CONVERT}::test_original_encoders_are_videomaes",
    ),
    # sharing/export.py
    (
        "sharing/export.py",
        'shapes = {"pixel_values_videos": {0: torch.export.Dim("batch")}}',
        "shapes = None",
        f"{EXPORT}::test_onnx_gives_the_same_logits_for_any_number_of_clips",
    ),
    (
        "sharing/export.py",
        "    finally:\n        model.set_attn_implementation(implementation)\n",
        "    finally:\n        pass\n",
        f"{EXPORT}::test_onnx_gives_the_same_logits_for_any_number_of_clips",
    ),
    (
        "sharing/export.py",
        "(part, key, value, scale=scaling)",
        "(part, key, value)",
        f"{EXPORT}::test_attention_by_parts_is_attention",
    ),
    (
        "sharing/export.py",
        "torch.cat(attended, dim=2).transpose(1, 2)",
        "torch.cat(attended[::-1], dim=2).transpose(1, 2)",
        f"{EXPORT}::test_attention_by_parts_is_attention",
    ),
    (
        "sharing/export.py",
        "        custom_object_save(processor, folder)\n",
        "",
        f"{EXPORT}::test_exported_folders_load_without_this_package_bit_for_bit",
    ),
    (
        "sharing/export.py",
        "    if saved_from not in MODEL_CLASSES:\n",
        "    if False:\n",
        f"{EXPORT}::test_other_models_are_refused",
    ),
    # sharing/loading.py
    (
        "sharing/loading.py",
        'if found.get("model_type") not in kinds:',
        'if found.get("model_type") not in (None, *kinds):',
        f"{LOADING}::test_only_models_of_the_type_are_loaded",
    ),
    (
        "sharing/loading.py",
        "if heads and model_class.__name__ not in heads:",
        "if heads and False:",
        f"{LOADING}::test_only_models_of_the_type_are_loaded",
    ),
    (
        "sharing/loading.py",
        "    if missing:\n",
        "    if False:\n",
        f"{LOADING}::test_a_classifier_without_its_weights_is_refused",
    ),
    # sharing/model_card.py
    (
        "sharing/model_card.py",
        "return mark is not None and _digest(text[: mark.start()]) in mark.group()",
        "return mark is not None",
        f"{CARD}::test_our_own_card_is_renewed_and_anybody_elses_is_not",
    ),
    (
        "sharing/model_card.py",
        "html.escape(one_line(str(value)), quote=False)",
        "one_line(str(value))",
        f"{CARD}::test_names_cannot_break_a_card",
    ),
    (
        "sharing/model_card.py",
        '"`" * max(3, 1 + max(ticks, default=0))',
        '"`" * 3',
        f"{CARD}::test_names_cannot_break_a_card",
    ),
    (
        "sharing/model_card.py",
        'secret = is_secret and "=" not in argument',
        "secret = is_secret",
        f"{CARD}::test_the_command_is_what_a_shell_takes_without_the_token",
    ),
    (
        "sharing/model_card.py",
        '            if split != "train"\n',
        "",
        f"{CARD}::test_the_hub_reads_metrics_data_base_model_and_licence",
    ),
    (
        "sharing/model_card.py",
        "is_id = name is not None and not os.path.exists(name) and",
        "is_id = name is not None and",
        f"{CARD}::test_folders_here_are_no_ids_on_the_hub",
    ),
    (
        "sharing/model_card.py",
        "for letter in mask_credentials(text)).split())",
        "for letter in text).split())",
        f"{CARD}::test_names_cannot_break_a_card",
    ),
    (
        "sharing/model_card.py",
        'letter if letter.isprintable() else " "',
        "letter",
        f"{CARD}::test_one_line_has_no_control_characters",
    ),
    (
        "sharing/model_card.py",
        "shlex.join(shown)",
        "' '.join(shown)",
        f"{CARD}::test_the_command_is_what_a_shell_takes_without_the_token",
    ),
    # visualization/drawing.py
    (
        "visualization/drawing.py",
        ".clamp(0, 1).permute(0, 2, 3, 1)",
        ".permute(0, 2, 3, 1)",
        f"{DRAWING}::test_frames_keep_their_axes_and_are_clamped",
    ),
    (
        "visualization/drawing.py",
        "permute(0, 2, 3, 1).numpy()",
        "permute(0, 3, 2, 1).numpy()",
        f"{DRAWING}::test_frames_keep_their_axes_and_are_clamped",
    ),
    (
        "visualization/drawing.py",
        "values.repeat(-(-shape[axis] // grid_size[axis]), axis=axis)",
        "values.repeat(shape[axis] // grid_size[axis], axis=axis)",
        f"{DRAWING}::test_a_token_covers_its_pixels_also_where_sizes_do_not_divide",
    ),
    (
        "visualization/drawing.py",
        "0.15 + 0.85 * spread_tokens(kept,",
        "1.0 - 0.85 * spread_tokens(kept,",
        f"{PICTURES}::test_panels_show_the_masks_and_the_prediction_decoded",
    ),
    (
        "visualization/drawing.py",
        "(scores - scores.min()) / (scores.max() - scores.min() + 1e-12)",
        "(scores.max() - scores) / (scores.max() - scores.min() + 1e-12)",
        f"{PICTURES}::test_panels_show_the_masks_and_the_prediction_decoded",
    ),
    (
        "visualization/drawing.py",
        "if counts[name] > 1]",
        "if counts[name] > 0]",
        f"{DRAWING}::test_curves_show_every_figure_that_was_logged_more_than_once",
    ),
    (
        "visualization/drawing.py",
        "axis.imshow(frames[moment]",
        "axis.imshow(frames[0]",
        f"{DRAWING}::test_rows_show_the_frames_that_were_asked_for",
    ),
    (
        "visualization/drawing.py",
        "tiles[start : start + columns], axis=2)",
        "tiles[start : start + columns], axis=1)",
        f"{DRAWING}::test_a_film_has_its_panels_side_by_side",
    ),
    (
        "visualization/drawing.py",
        "round(width * frames.shape[1] / frames.shape[2] / 2) * 2",
        "round(width * frames.shape[2] / frames.shape[1] / 2) * 2",
        f"{DRAWING}::test_a_film_has_its_panels_side_by_side",
    ),
    (
        "visualization/drawing.py",
        "figure.suptitle(title, fontsize=9).set_parse_math(False)",
        "figure.suptitle(title, fontsize=9)",
        f"{DRAWING}::test_rows_show_the_frames_that_were_asked_for",
    ),
    (
        "visualization/drawing.py",
        "fontsize=8).set_parse_math(False)",
        "fontsize=8)",
        f"{DRAWING}::test_rows_show_the_frames_that_were_asked_for",
    ),
    # visualization/predictions.py
    (
        "visualization/predictions.py",
        "~output.bool_masked_pos[0]",
        "output.bool_masked_pos[0]",
        f"{PICTURES}::test_panels_show_the_masks_and_the_prediction_decoded",
    ),
    (
        "visualization/predictions.py",
        "predicted = codes.new_zeros(*decoded.shape, codes.shape[-1])",
        "predicted = codes.new_ones(*decoded.shape, codes.shape[-1])",
        f"{PICTURES}::test_panels_show_the_masks_and_the_prediction_decoded",
    ),
    (
        "visualization/predictions.py",
        "places // width % height, places % width]",
        "places % width, places // width % height]",
        f"{PICTURES}::test_a_perfect_prediction_paints_the_clip_itself",
    ),
    (
        "visualization/predictions.py",
        "predicted * (deviation + 1e-6) + mean",
        "predicted * deviation",
        f"{PICTURES}::test_a_perfect_prediction_paints_the_clip_itself",
    ),
    (
        "visualization/predictions.py",
        "painted = clips.clone()",
        "painted = clips",
        f"{PICTURES}::test_a_perfect_prediction_paints_the_clip_itself",
    ),
    (
        "visualization/predictions.py",
        'builder.scale.restore(paint_pixels(made["pixel_values_videos"], output.logits, decoded, config))',
        'paint_pixels(made["pixel_values_videos"], output.logits, decoded, config)',
        f"{PICTURES}::test_panels_of_pixels_show_them_in_the_clip_s_own_range",
    ),
]
