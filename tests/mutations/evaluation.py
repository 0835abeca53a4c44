"""Mutations of `evaluation/`."""

VIEWS = "tests/evaluation/test_views.py"
ACCURACY = "tests/evaluation/test_accuracy.py"
CHALLENGES = "tests/evaluation/test_challenges.py"
FEATURES = "tests/evaluation/test_features.py"
PROBE = "tests/evaluation/test_probe.py"
MUTATIONS = [
    # accuracy.py
    (
        "evaluation/accuracy.py",
        "(scores < np.inf).all(axis=1)",
        "(scores <= np.inf).all(axis=1)",
        f"{ACCURACY}::test_scores_that_are_not_finite_are_wrong_and_counted",
    ),
    (
        "evaluation/accuracy.py",
        "& (scores > -np.inf).any(axis=1)",
        "",
        f"{ACCURACY}::test_scores_that_are_not_finite_are_wrong_and_counted",
    ),
    (
        "evaluation/accuracy.py",
        "((scores == right) & earlier)",
        "((scores == right) & ~earlier)",
        f"{ACCURACY}::test_equal_scores_count_in_the_order_of_their_numbers",
    ),
    (
        "evaluation/accuracy.py",
        "float((rank < k).mean())",
        "float((rank <= k).mean())",
        f"{ACCURACY}::test_one_label_equals_scikit_learn",
    ),
    (
        "evaluation/accuracy.py",
        "right = right * part.shape[1] + column[:, None]",
        "right = right + part.shape[1] * column[:, None]",
        f"{ACCURACY}::test_an_action_s_accuracy_equals_a_loop_over_all_pairs",
    ),
    (
        "evaluation/accuracy.py",
        'np.argsort(-part, axis=1, kind="stable")',
        'np.argsort(part, axis=1, kind="stable")',
        f"{ACCURACY}::test_an_action_s_accuracy_equals_a_loop_over_all_pairs",
    ),
    (
        "evaluation/accuracy.py",
        "key=lambda item: list(item[1])",
        "key=lambda item: item[0]",
        f"{ACCURACY}::test_label_sets_are_those_of_their_columns",
    ),
    (
        "evaluation/accuracy.py",
        'return {"non_finite": count} if count else {}',
        "return {}",
        f"{ACCURACY}::test_scores_that_are_not_finite_are_wrong_and_counted",
    ),
    (
        "evaluation/accuracy.py",
        "if labels.shape != expected or not len(logits):",
        "if labels.shape != expected:",
        f"{ACCURACY}::test_no_clips_have_no_accuracy",
    ),
    # challenges.py
    (
        "evaluation/challenges.py",
        "rare[0] | rare[1]",
        "rare[0] & rare[1]",
        f"{CHALLENGES}::test_epic_s_metrics_are_those_of_a_loop",
    ),
    (
        "evaluation/challenges.py",
        'rows["participant_id"][row] in lists',
        'rows["participant_id"][row] not in lists',
        f"{CHALLENGES}::test_epic_s_metrics_are_those_of_a_loop",
    ),
    (
        "evaluation/challenges.py",
        '"noun": [ends[0], ends[1]]',
        '"noun": [ends[0], ends[1] - 1]',
        f"{CHALLENGES}::test_epic_s_metrics_are_those_of_a_loop",
    ),
    (
        "evaluation/challenges.py",
        '"noun": _numbered(log_probabilities(noun)),',
        '"noun": _numbered(noun),',
        f"{CHALLENGES}::test_epic_s_submission_is_what_the_challenge_reads",
    ),
    (
        "evaluation/challenges.py",
        "{place // len(nouns)},{place % len(nouns)}",
        "{place // len(verbs)},{place % len(verbs)}",
        f"{CHALLENGES}::test_epic_s_submission_is_what_the_challenge_reads",
    ),
    (
        "evaluation/challenges.py",
        "ACTIONS_SUBMITTED = 100",
        "ACTIONS_SUBMITTED = 99",
        f"{CHALLENGES}::test_epic_s_submission_is_what_the_challenge_reads",
    ),
    (
        "evaluation/challenges.py",
        'np.argsort(-np.asarray(scores), kind="stable")',
        'np.argsort(np.asarray(scores), kind="stable")',
        f"{CHALLENGES}::test_something_something_s_lines_are_an_id_and_five_classes",
    ),
    (
        "evaluation/challenges.py",
        "or not np.isfinite(rows[name][row]).all() for",
        "for",
        f"{CHALLENGES}::test_rows_that_cannot_be_submitted_are_named",
    ),
    (
        "evaluation/challenges.py",
        "if count > 1]",
        "if count > 2]",
        f"{CHALLENGES}::test_rows_that_cannot_be_submitted_are_named",
    ),
    (
        "evaluation/challenges.py",
        "if not 0 <= supervision[name] <= 5]",
        "if not 0 <= supervision[name] <= 6]",
        f"{CHALLENGES}::test_rows_that_cannot_be_submitted_are_named",
    ),
    # evaluate_metric.py
    (
        "evaluation/evaluate_metric.py",
        "np.asarray(references), **kwargs",
        "np.asarray(references)",
        f"{ACCURACY}::test_the_metric_module_loads_from_its_path",
    ),
    # features.py
    (
        "evaluation/features.py",
        "if starts[-1] + clip_seconds < end - 1e-6:",
        "if starts[-1] + clip_seconds < end - 1:",
        f"{FEATURES}::test_sliding_segments",
    ),
    (
        "evaluation/features.py",
        "if end - start <= clip_seconds:",
        "if end - start < 0:",
        f"{FEATURES}::test_sliding_segments",
    ),
    (
        "evaluation/features.py",
        "end = min(start + metadata.duration, end or np.inf)",
        "end = metadata.duration",
        f"{FEATURES}::test_clips_slide_over_a_row_s_part_of_its_video",
    ),
    (
        "evaluation/features.py",
        "            broken.tried += 1\n",
        "",
        f"{FEATURES}::test_clips_slide_over_a_row_s_part_of_its_video",
    ),
    (
        "evaluation/features.py",
        "(shard + 1) * self.shard_size, self.num_rows",
        "(shard + 1) * self.shard_size, self.num_rows - 1",
        f"{FEATURES}::test_clip_features_are_the_mean_of_the_tokens_and_labels_come_along",
    ),
    (
        "evaluation/features.py",
        "if got[name] != settings[name])",
        "if False)",
        f"{FEATURES}::test_other_settings_are_not_mixed_into_a_folder",
    ),
    (
        "evaluation/features.py",
        "mean_of_tokens(tokens.float(), outputs.token_mask) if pool",
        "tokens.float()[:, 0] if pool",
        f"{FEATURES}::test_clip_features_are_the_mean_of_the_tokens_and_labels_come_along",
    ),
    (
        "evaluation/features.py",
        "[readable.to(tokens.device)]",
        "",
        f"{FEATURES}::test_videos_that_cannot_be_read_are_missing_by_number_and_named",
    ),
    (
        "evaluation/features.py",
        "        if not features.isfinite().all():",
        "        if False:",
        f"{FEATURES}::test_features_that_are_not_finite_are_refused",
    ),
    (
        "evaluation/features.py",
        "    model.eval()\n    for batch",
        "    for batch",
        f"{FEATURES}::test_features_are_those_of_evaluation",
    ),
    (
        "evaluation/features.py",
        'np.searchsorted(self._ends, index, side="right")',
        "np.searchsorted(self._ends, index)",
        f"{FEATURES}::test_tokens_of_several_shards_are_read_in_order_in_workers_too",
    ),
    (
        "evaluation/features.py",
        "if done < files.num_shards:",
        "if not done:",
        f"{FEATURES}::test_a_killed_run_goes_on_and_makes_no_finished_shard_again",
    ),
    # prediction_files.py
    (
        "evaluation/prediction_files.py",
        "np.setdiff1d(np.arange(total), predictions.skipped)",
        "np.arange(total)",
        f"{VIEWS}::test_a_split_without_labels_gets_predictions_alone",
    ),
    (
        "evaluation/prediction_files.py",
        "None if label < 0 else label for",
        "label for",
        f"{VIEWS}::test_a_split_without_labels_gets_predictions_alone",
    ),
    (
        "evaluation/prediction_files.py",
        "labels[:, min(number, labels.shape[1] - 1)]",
        "labels[:, 0]",
        f"{VIEWS}::test_two_processes_give_the_numbers_of_one",
    ),
    # probe.py
    (
        "evaluation/probe.py",
        "max_grad_norm=0,",
        "max_grad_norm=1.0,",
        f"{PROBE}::test_a_probe_of_a_sweep_ends_as_it_would_alone",
    ),
    (
        "evaluation/probe.py",
        ".cross_entropy(logits.transpose(1, 2), targets) * logits.shape[1]",
        ".cross_entropy(logits.transpose(1, 2), targets)",
        f"{PROBE}::test_probes_of_a_sweep_learn_as_each_would_alone",
    ),
    (
        "evaluation/probe.py",
        "AttentiveProbe(config) for _ in range(number))",
        "probe for probe in [AttentiveProbe(config)] * number)",
        f"{PROBE}::test_probes_of_a_sweep_learn_as_each_would_alone",
    ),
    (
        "evaluation/probe.py",
        "next(draw.split(data.labels, groups=data.videos))",
        "next(draw.split(data.labels, groups=np.arange(len(data.labels))))",
        f"{PROBE}::test_a_video_is_never_in_training_and_validation",
    ),
    (
        "evaluation/probe.py",
        "make_pipeline(StandardScaler(), LogisticRegression",
        "make_pipeline(LogisticRegression",
        f"{PROBE}::test_a_linear_probe_reaches_the_accuracy_that_the_features_allow",
    ),
    (
        "evaluation/probe.py",
        "probabilities[:, classifier.classes_]",
        "probabilities[:, : len(classifier.classes_)]",
        f"{PROBE}::test_classes_that_training_lacks_keep_their_place",
    ),
    (
        "evaluation/probe.py",
        'accuracy > best[0]["validation_accuracy"]',
        'accuracy >= best[0]["validation_accuracy"]',
        f"{PROBE}::test_of_equal_regularizations_the_strongest_is_kept",
    ),
    (
        "evaluation/probe.py",
        "int(np.argmax(accuracies))",
        "int(np.argmin(accuracies))",
        f"{PROBE}::test_an_attentive_probe_finds_the_token_that_a_mean_hides",
    ),
    (
        "evaluation/probe.py",
        "weight_decay if matrices else 0.0",
        "weight_decay",
        f"{PROBE}::test_each_probe_has_its_rate_and_only_matrices_decay",
    ),
    (
        "evaluation/probe.py",
        '"lr": lr,',
        '"lr": settings[0][0],',
        f"{PROBE}::test_each_probe_has_its_rate_and_only_matrices_decay",
    ),
    (
        "evaluation/probe.py",
        "all_scores(data)[:, best]",
        "all_scores(data)[:, 0]",
        f"{PROBE}::test_an_attentive_probe_finds_the_token_that_a_mean_hides",
    ),
    # reports.py
    (
        "evaluation/reports.py",
        "(right[clips > 0] / clips[clips > 0]).mean()",
        "(right / np.maximum(clips, 1)).mean()",
        f"{VIEWS}::test_classes_without_clips_are_no_part_of_the_mean",
    ),
    (
        "evaluation/reports.py",
        "np.digitize(predictions.durations, bins)",
        "np.digitize(predictions.durations, bins, right=True)",
        f"{VIEWS}::test_lengths_are_binned_as_the_paper_does",
    ),
    (
        "evaluation/reports.py",
        "known = np.isfinite(predictions.durations)",
        "known = predictions.durations != -1",
        f"{VIEWS}::test_lengths_are_binned_as_the_paper_does",
    ),
    (
        "evaluation/reports.py",
        "(labels[known], probabilities[known].argmax(axis=1))",
        "(probabilities[known].argmax(axis=1), labels[known])",
        f"{VIEWS}::test_confusions_and_classes_equal_scikit_learn",
    ),
    (
        "evaluation/reports.py",
        "known = predicts(probabilities)",
        "known = np.ones(len(labels), bool)",
        f"{VIEWS}::test_one_view_that_is_not_finite_makes_its_row_wrong",
    ),
    (
        "evaluation/reports.py",
        "        wrong[number] = 0\n",
        "",
        f"{VIEWS}::test_confusions_and_classes_equal_scikit_learn",
    ),
    (
        "evaluation/reports.py",
        "np.maximum(counts.sum(axis=1, keepdims=True), 1)",
        "np.maximum(counts.max(), 1)",
        f"{VIEWS}::test_a_cell_of_the_picture_is_a_share_of_its_class",
    ),
    (
        "evaluation/reports.py",
        "    predictions = predictions.labelled()\n",
        "",
        f"{VIEWS}::test_rows_without_a_label_are_predicted_and_not_counted",
    ),
    (
        "evaluation/reports.py",
        "mask_credentials(value) if isinstance(value, str) else value for",
        "value for",
        f"{VIEWS}::test_names_cannot_break_the_results",
    ),
    (
        "evaluation/reports.py",
        "np.finfo(np.float64).tiny",
        "0.0",
        f"{VIEWS}::test_the_logarithm_of_zero_is_a_number",
    ),
    (
        "evaluation/reports.py",
        "text.set_parse_math(False)",
        "text.set_parse_math(True)",
        f"{VIEWS}::test_names_cannot_break_the_results",
    ),
    # views.py
    (
        "evaluation/views.py",
        "model.to(accelerator.device).eval()",
        "model.to(accelerator.device)",
        f"{VIEWS}::test_a_model_in_training_is_set_to_evaluation",
    ),
    (
        "evaluation/views.py",
        "offsets + spare * temporal // (views - 1)",
        "offsets + spare * temporal // views",
        f"{VIEWS}::test_views_with_a_stride_reach_from_the_beginning_to_the_end",
    ),
    (
        "evaluation/views.py",
        "total * (temporal + 1) // views",
        "total * temporal // views + 1",
        f"{VIEWS}::test_views_without_a_stride_are_equal_parts",
    ),
    (
        "evaluation/views.py",
        "(side - part) * spatial // (self.spatial_views - 1)",
        "(side - part) * spatial // self.spatial_views",
        f"{VIEWS}::test_spatial_views_lie_along_the_longer_side",
    ),
    (
        "evaluation/views.py",
        "min(height, round(width / ratio)), min(width, round(height * ratio))",
        "min(height, width), min(width, height)",
        f"{VIEWS}::test_views_of_a_model_that_is_not_square_show_the_whole_region",
    ),
    (
        "evaluation/views.py",
        "sums[row] = sums.get(row, 0.0) + values",
        "sums[row] = values",
        f"{VIEWS}::test_probabilities_are_averaged_over_views",
    ),
    (
        "evaluation/views.py",
        "part.double().softmax(dim=-1)",
        "part.half().softmax(dim=-1)",
        f"{VIEWS}::test_probabilities_are_averaged_over_views",
    ),
    (
        "evaluation/views.py",
        "parts = [logits[:, part] for part in slices.values()] or [logits]",
        "parts = [logits]",
        f"{VIEWS}::test_probabilities_are_averaged_over_views",
    ),
    (
        "evaluation/views.py",
        "(self.labels.reshape(count, -1) >= 0).all(axis=1)",
        "(self.labels.reshape(count, -1) >= 0).any(axis=1)",
        f"{VIEWS}::test_rows_with_a_label_of_one_set_alone_are_not_evaluated",
    ),
    (
        "evaluation/views.py",
        "                self._unreadable.add(number)\n",
        "",
        f"{VIEWS}::test_a_view_that_cannot_be_read_leaves_out_its_whole_video",
    ),
    (
        "evaluation/views.py",
        "self.broken.tried += temporal == 0",
        "self.broken.tried += 1",
        f"{VIEWS}::test_a_view_that_cannot_be_read_leaves_out_its_whole_video",
    ),
    (
        "evaluation/views.py",
        "            start=start,\n            end=end,\n",
        "",
        f"{VIEWS}::test_probabilities_are_averaged_over_views",
    ),
    (
        "evaluation/views.py",
        "    if names != known:",
        "    if len(names) != len(known):",
        f"{VIEWS}::test_classes_of_another_dataset_are_refused",
    ),
    (
        "evaluation/views.py",
        "range(accelerator.process_index, len(views.rows), accelerator.num_processes)",
        "range(len(views.rows))",
        f"{VIEWS}::test_two_processes_give_the_numbers_of_one",
    ),
]
