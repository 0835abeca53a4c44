"""Changes of `training/`."""

BROKEN = "tests/training/test_broken_evaluation.py::test_"
CHECKPOINTS = "tests/training/test_checkpoints.py::test_"
FINETUNING = "tests/training/test_finetuning.py::test_"
HOST_WAITS = "tests/training/test_host_waits.py::test_"
LABEL_SETS = "tests/models/test_label_sets.py::test_"
LOSSES = "tests/training/test_tokenizer_losses.py::test_"
MIXING = "tests/data/test_transforms.py::test_"
PRETRAINING = "tests/training/test_pretraining.py::test_"
RUNS = "tests/training/test_runs.py::test_"
EXPLAINED = "tests/targets/test_explained_variance.py::test_"
TRAINERS = "tests/training/test_trainers.py::test_"
VERSION_0_1 = "tests/test_version_0_1.py::test_"

MUTATIONS = [
    # Waiting for the device
    (
        "training/pretraining.py",
        'batch["num_visible"] = int((~batch["bool_masked_pos"][0]).sum())',
        "pass",
        HOST_WAITS + "pretraining",
    ),
    ("targets/builder.py", 'batch["num_decoded"] = chosen + drawn', "pass", HOST_WAITS + "pretraining"),
    (
        "training/divergence.py",
        "self.flags.append(_is_finite(value if torch.is_tensor(value) else torch.full((), value)))",
        "self.flags.append(torch.tensor(bool(_is_finite(value))))",
        HOST_WAITS + "the_tokenizer",
    ),
    # Arguments and rates
    (
        "training/learning_rates.py",
        "args.gradient_accumulation_steps * args.world_size",
        "args.gradient_accumulation_steps",
        TRAINERS + "the_learning_rate_follows_the_real_batch",
    ),
    (
        "training/learning_rates.py",
        "global_batch(args) / 256",
        "args.train_batch_size * args.world_size / 256",
        TRAINERS + "the_learning_rate_follows_the_real_batch",
    ),
    (
        "training/learning_rates.py",
        "layer = int(match.group(1)) + 1 if match",
        "layer = int(match.group(1)) if match",
        TRAINERS + "layers_near_the_input_learn_more_slowly",
    ),
    (
        "training/learning_rates.py",
        "return layer_decay ** (depth + 1 - layer)",
        "return layer_decay ** (depth - layer)",
        TRAINERS + "layers_near_the_input_learn_more_slowly",
    ),
    (
        "training/arguments.py",
        '{"min_lr_rate": 1 / 15}',
        '{"min_lr_rate": 1 / 150}',
        PRETRAINING + "the_rate_is_videomaes_and_a_plain_cosine_is_to_be_had",
    ),
    (
        "training/arguments.py",
        'default=0.05, metadata={"help": "Steps of linear',
        'default=0.0, metadata={"help": "Steps of linear',
        PRETRAINING + "the_rate_is_videomaes_and_a_plain_cosine_is_to_be_had",
    ),
    (
        "training/arguments.py",
        "if self.learning_rate not in (None, scaled):",
        "if False:",
        RUNS + "the_explicit_learning_rate_wins",
    ),
    (
        "training/arguments.py",
        "adam_beta2: float = field(default=0.95,",
        "adam_beta2: float = field(default=0.999,",
        PRETRAINING + "the_defaults_are_those_of_the_recipes",
    ),
    (
        "training/arguments.py",
        'adam_beta1: float = field(default=0.0, metadata={"help": "Adam\'s first decay."})',
        'adam_beta1: float = field(default=0.9, metadata={"help": "Adam\'s first decay."})',
        PRETRAINING + "the_defaults_are_those_of_the_recipes",
    ),
    (
        "training/arguments.py",
        "            self.data_seed = self.seed  #",
        "            self.data_seed = 42  #",
        PRETRAINING + "the_defaults_are_those_of_the_recipes",
    ),
    (
        "training/arguments.py",
        "if self.adversarial_weight > 0 and self.fp16:",
        "if self.adversarial_weight > 1 and self.fp16:",
        TRAINERS + "arguments_that_cannot_be_are_refused",
    ),
    # Averaged weights
    (
        "training/averaging.py",
        "        averaged.update_parameters(self.model)  # the first update copies the model's weights\n",
        "",
        TRAINERS + "the_classifier_s_averaged_weights_follow_the_steps",
    ),
    (
        "training/averaging.py",
        "get_ema_multi_avg_fn(self.args.ema_decay)",
        "get_ema_multi_avg_fn(1 - self.args.ema_decay)",
        TRAINERS + "the_classifier_s_averaged_weights_follow_the_steps",
    ),
    (
        "training/averaging.py",
        "        with self.averaged_weights():\n            return super().evaluation_loop(*args, **kwargs)",
        "        return super().evaluation_loop(*args, **kwargs)",
        TRAINERS + "averaged_weights_are_evaluated_and_saved_and_the_plain_ones_go_on",
    ),
    (
        "training/averaging.py",
        "        finally:\n            self._exchange_weights()",
        "        finally:\n            pass",
        TRAINERS + "averaged_weights_are_evaluated_and_saved_and_the_plain_ones_go_on",
    ),
    (
        "training/averaging.py",
        'self.model.load_state_dict(state["model"])',
        "pass",
        TRAINERS + "the_whole_recipe_resumed_equals_uninterrupted",
    ),
    (
        "training/averaging.py",
        "            parts[name].load_state_dict(state[name])\n",
        "            pass\n",
        TRAINERS + "the_whole_recipe_resumed_equals_uninterrupted",
    ),
    (
        "training/averaging.py",
        "        if got != expected:\n",
        "        if set(got) - set(expected):\n",
        TRAINERS + "a_checkpoint_of_another_recipe_is_refused",
    ),
    # The base
    (
        "training/base.py",
        "self._small_batch[1] * self.args.world_size + self.args.process_index)",
        "self._small_batch[1])",
        RUNS + "processes_draw_differently_and_as_one_process_does",
    ),
    (
        "training/base.py",
        "seed_draws(self.args.seed, step, self._small_batch[1]",
        "seed_draws(self.args.seed, 0, self._small_batch[1]",
        RUNS + "draws_depend_on_seed_and_step_alone",
    ),
    (
        "training/base.py",
        "number if step == self._small_batch[0] else 0)",
        "0)",
        RUNS + "draws_depend_on_seed_and_step_alone",
    ),
    (
        "training/base.py",
        "seed_draws(self.args.seed, self.args.process_index)  #",
        "pass  #",
        RUNS + "every_evaluation_draws_the_same",
    ),
    (
        "training/base.py",
        "self._clips_of_step / count_clips(inputs)",
        "self.args.gradient_accumulation_steps",
        RUNS + "a_smaller_last_batch_counts_by_its_clips",
    ),
    (
        "training/base.py",
        "        self.add_callback(_TellEpoch())\n",
        "",
        TRAINERS + "a_resumed_run_equals_the_uninterrupted_one",
    ),
    (
        "training/base.py",
        "        if self.state.global_step < self.state.max_steps:\n",
        "        if True:\n",
        TRAINERS + "a_finished_run_started_again_keeps_its_results",
    ),
    (
        "training/base.py",
        "return float(max(scheduler.get_last_lr()))",
        "return float(scheduler.get_last_lr()[0])",
        RUNS + "the_console_says_what_is_trained_and_at_which_rate",
    ),
    (
        "training/base.py",
        "weight_decay = self.args.weight_decay if name in decayed else 0.0",
        "weight_decay = self.args.weight_decay",
        TRAINERS + "weight_decay_spares_biases_and_norms",
    ),
    (
        "training/base.py",
        'metrics[f"{prefix}_loss"] = float(losses[readable].mean())',
        "pass",
        BROKEN + "the_numbers_are_those_of_the_readable_clips",
    ),
    (
        "training/base.py",
        "used = readable if readable.any() else torch.ones_like(readable)",
        "used = readable",
        BROKEN + "the_numbers_are_those_of_the_readable_clips",
    ),
    (
        "training/base.py",
        "num_items_in_batch if model.training else None)",
        "num_items_in_batch)",
        BROKEN + "a_loss_in_evaluation_is_the_mean_over_the_clips_of_its_process",
    ),
    (
        "training/base.py",
        "value.detach().float().mean()",
        "value.detach().float().sum()",
        RUNS + "parts_of_the_loss_are_means_since_the_last_log",
    ),
    (
        "training/base.py",
        "        self.sums, self.counts = {}, {}\n        return values",
        "        return values",
        RUNS + "parts_of_the_loss_are_means_since_the_last_log",
    ),
    (
        "training/base.py",
        "fault_of(given) if given else None]",
        "None]",
        CHECKPOINTS + "a_given_checkpoint_must_be_whole",
    ),
    # Checkpoints
    (
        "training/checkpoints.py",
        "            if digest(folder / name) != expected:\n",
        "            if False:\n",
        CHECKPOINTS + "every_damage_is_found_and_the_next_checkpoint_taken",
    ),
    (
        "training/checkpoints.py",
        "    missing = [part for part, names in PARTS.items() if not any(any(folder.glob(name)) for name in names)]",
        '    missing = [part for part, names in PARTS.items() if part == "weights" and not any(any(folder.glob(name)) for name in names)]',
        CHECKPOINTS + "checkpoints_without_checksums_need_all_parts",
    ),
    (
        "training/checkpoints.py",
        '    "random numbers": ("rng_state*.pth",),\n',
        "",
        CHECKPOINTS + "checkpoints_without_checksums_need_all_parts",
    ),
    (
        "training/checkpoints.py",
        "sorted((int(match.group(1)), path) for",
        "sorted((match.group(1), path) for",
        CHECKPOINTS + "the_newest_checkpoint_has_the_largest_number",
    ),
    (
        "training/checkpoints.py",
        're.fullmatch(r"checkpoint-',
        're.match(r"checkpoint-',
        CHECKPOINTS + "a_run_goes_on_from_the_newest_whole_checkpoint_and_ends_as_if_nothing_had_been",
    ),
    (
        "training/checkpoints.py",
        "if spare > 0 and folder.resolve() not in kept:",
        "if spare > 0:",
        CHECKPOINTS + "the_oldest_checkpoints_are_deleted_beside_those_to_keep",
    ),
    (
        "training/checkpoints.py",
        'UNCHECKED = {CHECKSUMS, "README.md"}',
        "UNCHECKED = {CHECKSUMS}",
        CHECKPOINTS + "a_changed_card_is_no_damage",
    ),
    # The classifier
    (
        "training/classification.py",
        "if model.training and (self.mixing is not None",
        "if (self.mixing is not None",
        TRAINERS + "evaluation_is_of_plain_labels_and_clips",
    ),
    (
        "training/classification.py",
        '"labels": shares @ labels}',
        '"labels": shares.T @ labels}',
        TRAINERS + "mixed_clips_cost_what_a_naive_loop_says",
    ),
    (
        "training/classification.py",
        "(1 - smoothing) + smoothing / size for",
        "(1 - smoothing) + smoothing / (size - 1) for",
        TRAINERS + "smoothed_labels_cost_what_torch_s_do",
    ),
    (
        "training/classification.py",
        "        self.label_smoother = None  #",
        "        pass  #",
        TRAINERS + "evaluation_is_of_plain_labels_and_clips",
    ),
    (
        "training/classification.py",
        "pixels = torch.where(noise.isnan(), pixels, noise)",
        "pixels = torch.where(noise.isnan(), noise, pixels)",
        FINETUNING + "clips_travel_as_bytes_and_give_the_same_pixels",
    ),
    (
        "training/classification.py",
        "positions % patches[0, 0, :, :, 0, 0, 0, 0].numel()",
        "positions % 1",
        "tests/data/test_chosen_clips.py::test_the_worker_chooses_what_the_model_would",
    ),
    (
        "training/classification.py",
        "module.requires_grad_(False)",
        "pass",
        FINETUNING + "one_base_is_adapted_to_several_datasets",
    ),
    (
        "training/classification.py",
        "topk_accuracies(logits_of(prediction), np.asarray(prediction.label_ids), label_sets)",
        "topk_accuracies(logits_of(prediction), np.asarray(prediction.label_ids), None)",
        LABEL_SETS + "the_trainer_reports_every_set_and_the_action",
    ),
    # Divergence
    (
        "training/divergence.py",
        "        self.steps, self.flags = [], []\n        own",
        "        own",
        RUNS + "flags_of_steps_are_looked_at_once",
    ),
    (
        "training/divergence.py",
        "len(self.flags) >= MOST_PENDING)",
        "len(self.flags) > MOST_PENDING)",
        RUNS + "a_step_does_not_ask_the_device",
    ),
    (
        "training/divergence.py",
        "first = accelerator.gather(own).min().item()",
        "first = own.min().item()",
        RUNS + "flags_of_steps_are_looked_at_once",
    ),
    (
        "training/divergence.py",
        "islice(sampler, update * accumulation_steps, (update + 1) * accumulation_steps)",
        "islice(sampler, update, update + accumulation_steps)",
        RUNS + "the_videos_of_the_step_are_named",
    ),
    ("training/divergence.py", "    loader.set_epoch(epoch)\n", "", RUNS + "the_videos_of_the_step_are_named"),
    (
        "training/divergence.py",
        ".isfinite().all()\n",
        ".isnan().logical_not().all()\n",
        RUNS + "a_run_that_diverges_stops_before_it_saves",
    ),
    # Guarding
    (
        "training/guarding.py",
        "            self._finite.add(self.state.global_step, norm)\n",
        "            pass\n",
        RUNS + "a_run_that_diverges_stops_before_it_saves",
    ),
    (
        "training/guarding.py",
        "        self.stop_if_not_finite(with_weights=True)\n",
        "        self.stop_if_not_finite()\n",
        RUNS + "a_run_that_diverges_stops_before_it_saves",
    ),
    (
        "training/guarding.py",
        "limit, self.args.save_total_limit = self.args.save_total_limit, None",
        "limit = self.args.save_total_limit",
        CHECKPOINTS + "old_checkpoints_stay_until_the_new_one_is_whole",
    ),
    (
        "training/guarding.py",
        "        with self._deleting_nothing():\n            return super()._finalize_training(*args, **kwargs)",
        "        return super()._finalize_training(*args, **kwargs)",
        CHECKPOINTS + "the_best_and_the_last_checkpoint_and_a_person_s_are_never_deleted",
    ),
    (
        "training/guarding.py",
        "                seal(folder)\n",
        "                pass\n",
        CHECKPOINTS + "every_damage_is_found_and_the_next_checkpoint_taken",
    ),
    (
        "training/guarding.py",
        "        if self.args.should_save and folder.exists():  # a damaged one that the run did not go on from\n            shutil.rmtree(folder)\n",
        "",
        CHECKPOINTS + "a_run_goes_on_from_the_newest_whole_checkpoint_and_ends_as_if_nothing_had_been",
    ),
    (
        "training/guarding.py",
        "    except (OSError, ValueError):\n        found = None",
        "    except OSError:\n        found = None",
        CHECKPOINTS + "damaged_results_and_cards_are_no_reason_not_to_go_on",
    ),
    # Mixing
    (
        "training/mixing.py",
        "self.mix = v2.RandomChoice(mixers)",
        "self.mix = mixers[0]",
        MIXING + "each_batch_draws_one_of_the_two",
    ),
    (
        "training/mixing.py",
        "torch.arange(first, len(clips), self.repeats, device",
        "torch.arange(first, len(clips), 1, device",
        MIXING + "clips_of_one_video_do_not_meet",
    ),
    (
        "training/mixing.py",
        "clips, shares = clips[order], shares[order]",
        "clips = clips[order]",
        MIXING + "clips_of_one_video_do_not_meet",
    ),
    # The perceptual loss
    (
        "training/perceptual_loss.py",
        "return super().train(False)",
        "return super().train(mode)",
        LOSSES + "the_perceptual_network_is_frozen_and_gradients_pass_through_it",
    ),
    (
        "training/perceptual_loss.py",
        "torch.rand(batch_size, num_frames).topk",
        "torch.rand(1, num_frames).expand(batch_size, -1).topk",
        LOSSES + "frames_are_drawn_anew_without_repeats_and_evenly",
    ),
    (
        "training/perceptual_loss.py",
        "-torch.tensor(mean).view(-1, 1, 1) / torch",
        "torch.tensor(mean).view(-1, 1, 1) / torch",
        LOSSES + "at_the_model_s_own_size_nothing_is_rounded",
    ),
    (
        "training/perceptual_loss.py",
        "mode=self.resample, antialias=True)",
        "mode=self.resample)",
        LOSSES + "the_perceptual_loss_is_that_of_the_processor_s_own_pictures",
    ),
    (
        "training/perceptual_loss.py",
        "(processor.crop_size if crops else processor.size)",
        "(processor.size)",
        LOSSES + "the_input_size_is_the_crop_s_where_there_is_one",
    ),
    # Pre-training
    (
        "training/pretraining.py",
        'int((~batch["bool_masked_pos"][0]).sum())',
        'int(batch["bool_masked_pos"][0].sum())',
        TRAINERS + "targets_are_the_tokenizer_s_codes_of_the_same_clip",
    ),
    (
        "training/pretraining.py",
        "        if model.training:\n            # DataParallel",
        "        if True:\n            # DataParallel",
        RUNS + "evaluation_leaves_the_parts_of_the_loss_alone",
    ),
    (
        "training/pretraining.py",
        "return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter",
        "return parameter",
        PRETRAINING + "everest_sees_whole_weights_where_fsdp_shares_them_out",
    ),
    (
        "training/base.py",
        "            keep_positions(trainer, checkpoint)\n",
        "",
        VERSION_0_1 + "a_pretraining_run_goes_on_with_its_cache",
    ),
    (
        "training/pretraining.py",
        "kept[readable] if readable.any() else readable",
        "None",
        EXPLAINED + "clips_that_cannot_be_read_explain_nothing",
    ),
    # The run's folder
    (
        "training/learning_rates.py",
        "return args.train_batch_size * args.gradient_accumulation_steps * args.world_size",
        "return args.train_batch_size * args.world_size",
        RUNS + "the_global_batch_is_kept_or_refused",
    ),
    (
        "training/run_folder.py",
        "    if rest or not steps:\n",
        "    if not steps:\n",
        RUNS + "the_global_batch_is_kept_or_refused",
    ),
    (
        "training/run_folder.py",
        "    if args.base_learning_rate is not None:\n        args.learning_rate = None\n",
        "",
        RUNS + "the_global_batch_is_kept_or_refused",
    ),
    (
        "training/run_folder.py",
        '"seed", "data_seed"',
        '"data_seed"',
        RUNS + "a_run_goes_on_only_with_its_settings_and_data",
    ),
    (
        "training/run_folder.py",
        "name in before and before[name] != settings[name]]",
        "before.get(name) and not settings[name]]",
        RUNS + "a_run_goes_on_only_with_its_settings_and_data",
    ),
    (
        "training/run_folder.py",
        "fcntl.LOCK_EX | fcntl.LOCK_NB",
        "fcntl.LOCK_SH | fcntl.LOCK_NB",
        RUNS + "a_run_holds_its_folder_alone",
    ),
    # The tokenizer
    (
        "training/tokenizer.py",
        "error = (prediction.clamp(0, 1).float()",
        "error = (prediction.float()",
        TRAINERS + "figures_are_of_clamped_pixels",
    ),
    (
        "training/tokenizer.py",
        "return -10 * error.clamp(min=1e-10).log10()",
        "return -20 * error.clamp(min=1e-10).log10()",
        TRAINERS + "figures_of_the_tokenizer_are_what_they_say",
    ),
    (
        "training/tokenizer.py",
        "frames = (prediction.clamp(0, 1).float()",
        "frames = (prediction.float()",
        TRAINERS + "figures_are_of_clamped_pixels",
    ),
    (
        "training/tokenizer.py",
        '(r"(^|\\.)scorer\\.", name)',
        '(r"^score\\.", name)',
        TRAINERS + "the_scorer_has_its_own_learning_rate",
    ),
    (
        "training/tokenizer.py",
        "self.state.global_step >= self.args.adversarial_start_step",
        "self.state.global_step > self.args.adversarial_start_step",
        TRAINERS + "the_adversarial_term_sets_in_at_its_step",
    ),
    (
        "training/tokenizer.py",
        "start * (self.args.topk_sigma_end / start) ** done",
        "start * (start / self.args.topk_sigma_end) ** done",
        TRAINERS + "the_noise_of_the_top_k_falls_to_its_end",
    ),
    (
        "training/tokenizer.py",
        '            inputs = {**inputs, "topk_sigma": self.topk_sigma()}\n',
        "            pass\n",
        TRAINERS + "the_noise_of_the_top_k_falls_to_its_end",
    ),
    (
        "training/tokenizer.py",
        "self._pair = clips, reconstruction.detach()",
        "self._pair = reconstruction.detach(), clips",
        TRAINERS + "adversarial_steps_are_those_of_a_loop_written_out",
    ),
    (
        "training/tokenizer.py",
        "return torch.stack([weights[name] * part.mean() for",
        "return torch.stack([part.mean() for",
        TRAINERS + "adversarial_steps_are_those_of_a_loop_written_out",
    ),
    (
        "training/tokenizer.py",
        "everything = model(pixel_values_videos=clips, keep_ratio=1.0)",
        "everything = model(pixel_values_videos=clips)",
        TRAINERS + "figures_of_the_tokenizer_are_what_they_say",
    ),
    (
        "training/tokenizer.py",
        "scores.shape[1] * config.tubelet_size // clips.shape[1]",
        "scores.shape[1] // clips.shape[1]",
        TRAINERS + "figures_of_the_tokenizer_are_what_they_say",
    ),
    # The adversary
    (
        "training/tokenizer_adversary.py",
        "ceil_mode=True, count_include_pad=False)",
        "ceil_mode=False, count_include_pad=False)",
        LOSSES + "the_real_size_has_one_halving_a_level " + LOSSES + "halving_takes_means_and_leaves_axes_of_one",
    ),
    (
        "training/tokenizer_adversary.py",
        " + residual) / math.sqrt(2)",
        " + residual)",
        LOSSES + "the_discriminator_is_magvit_s",
    ),
    (
        "training/tokenizer_adversary.py",
        "softplus(-real_logits).mean() + nn.functional.softplus(fake_logits).mean()",
        "softplus(real_logits).mean() + nn.functional.softplus(-fake_logits).mean()",
        LOSSES + "the_losses_are_the_cross_entropies",
    ),
    (
        "training/tokenizer_adversary.py",
        "gradient.square().flatten(1).sum(dim=1).mean()",
        "gradient.square().flatten(1).mean(dim=1).mean()",
        LOSSES + "r1_of_a_linear_discriminator_is_the_square_of_its_weights",
    ),
    (
        "training/tokenizer_adversary.py",
        "real, create_graph=True)",
        "real, retain_graph=True)",
        LOSSES + "r1_and_its_gradient_are_finite_differences",
    ),
    (
        "training/tokenizer_adversary.py",
        "self.discriminator(fake.detach()).float()",
        "self.discriminator(fake).float()",
        LOSSES + "the_discriminator_s_loss_is_the_sum_of_its_weighted_parts",
    ),
    (
        "training/tokenizer_adversary.py",
        "{name: parameter.detach() for name, parameter",
        "{name: parameter for name, parameter",
        LOSSES + "the_generator_s_loss_has_the_right_gradient_and_leaves_the_discriminator_alone",
    ),
    (
        "training/tokenizer_adversary.py",
        "steps = max(1, num_training_steps - args.adversarial_start_step)",
        "steps = num_training_steps",
        TRAINERS + "the_adversarial_term_sets_in_at_its_step",
    ),
    (
        "training/tokenizer_adversary.py",
        'self.accelerator.backward(parts.pop("loss") / accumulation_steps)',
        'self.accelerator.backward(parts.pop("loss"))',
        TRAINERS + "accumulation_serves_both_sides",
    ),
    (
        "training/tokenizer_adversary.py",
        "        self.optimizer.zero_grad()\n",
        "",
        TRAINERS + "neither_side_s_gradients_leak_into_the_other",
    ),
    (
        "training/tokenizer_adversary.py",
        '        self.scheduler.load_state_dict(state["scheduler"])',
        "        pass",
        TRAINERS + "the_adversary_s_schedule_goes_on",
    ),
]
