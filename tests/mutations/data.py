"""Mutations of `data/`."""

CLIPS = "tests/data/test_clips.py"
SAMPLING = "tests/data/test_frame_sampling.py"
SOURCES = "tests/data/test_sources.py"
STREAMS = "tests/data/test_streams.py"
BROKEN = "tests/data/test_broken_videos.py"
ANNOTATIONS = "tests/data/test_annotations.py"
MUTATIONS = [
    # clips.py
    (
        "data/clips.py",
        "with seeded(self.seed, self.epoch if self.training else 0, number):",
        "with seeded(self.seed, self.epoch if self.training else 0):",
        f"{CLIPS}::test_two_rows_of_an_epoch_draw_differently",
    ),
    (
        "data/clips.py",
        "with seeded(self.seed, self.epoch if self.training else 0, number):",
        "with seeded(self.seed, self.epoch, number):",
        f"{CLIPS}::test_evaluation_does_not_change_with_the_epoch",
    ),
    (
        "data/clips.py",
        "with torch.random.fork_rng(devices=[]):\n        torch.manual_seed(state % 2**63)\n        yield",
        "torch.manual_seed(state % 2**63)\n    yield",
        f"{CLIPS}::test_drawing_an_item_leaves_the_global_generator_alone",
    ),
    (
        "data/clips.py",
        '{"shortest_edge": min(height, width)}',
        '{"shortest_edge": max(height, width)}',
        f"{CLIPS}::test_clips_cover_a_model_that_is_not_square_and_no_more",
    ),
    (
        "data/clips.py",
        "return self.training and (self.sampling.is_random or self.augmentation.is_random)",
        "return self.training and self.augmentation.is_random",
        f"{CLIPS}::test_a_dataset_knows_whether_its_clips_differ_from_epoch_to_epoch",
    ),
    (
        "data/clips.py",
        "self.num_clips = reading.num_clips if training else 1",
        "self.num_clips = reading.num_clips",
        f"{CLIPS}::test_several_clips_come_from_one_decoding",
    ),
    (
        "data/clips.py",
        "(augmentation if training else None) or",
        "augmentation or",
        "tests/data/test_transforms.py::test_a_training_clip_is_the_same_for_the_same_seed_epoch_and_row",
    ),
    (
        "data/clips.py",
        "torch.zeros((), dtype=torch.int64).share_memory_()",
        "torch.zeros((), dtype=torch.int64)",
        f"{CLIPS}::test_persistent_workers_see_the_epoch",
    ),
    (
        "data/clips.py",
        "with seeded(self.seed, self.epoch, index, attempt):",
        "with seeded(attempt):",
        f"{BROKEN}::test_a_replacement_is_drawn_from_seed_epoch_and_row",
    ),
    (
        "data/clips.py",
        "        self.broken.tried += 1\n",
        "",
        f"{BROKEN}::test_a_replacement_is_drawn_from_seed_epoch_and_row",
    ),
    (
        "data/clips.py",
        '        if self.on_error == "raise":\n            raise error\n',
        "",
        f"{BROKEN}::test_evaluation_raises_by_default",
    ),
    (
        "data/clips.py",
        '"is_readable": False}\n',
        '"is_readable": True}\n',
        "tests/training/test_broken_evaluation.py::test_predictions_are_those_of_the_readable_clips",
    ),
    (
        "data/clips.py",
        "video, samplers, views, start=start, end=end, access=self.access",
        "video, samplers, views, access=self.access",
        "tests/data/test_datasets.py::test_a_table_has_segments_and_labels",
    ),
    (
        "data/clips.py",
        'row[self.video_column].convert("RGB")',
        "row[self.video_column]",
        f"{CLIPS}::test_a_picture_is_a_clip_of_one_frame",
    ),
    (
        "data/clips.py",
        '"noise": torch.rand(masked.shape)',
        '"noise": torch.zeros(masked.shape)',
        f"{CLIPS}::test_several_clips_come_from_one_decoding",
    ),
    # frame_sampling.py
    (
        "data/frame_sampling.py",
        "spare = total - 1 - int(offsets[-1])",
        "spare = total - int(offsets[-1])",
        f"{SAMPLING}::test_even_frames {CLIPS}::test_a_stride_takes_frames_that_far_apart",
    ),
    (
        "data/frame_sampling.py",
        "if training else spare // 2",
        "if training else 0",
        f"{CLIPS}::test_a_stride_takes_frames_that_far_apart",
    ),
    (
        "data/frame_sampling.py",
        "np.minimum(offsets, total - 1)",
        "np.minimum(offsets, total - 2)",
        f"{SAMPLING}::test_short_videos",
    ),
    (
        "data/frame_sampling.py",
        "return edges[:-1] + inside",
        "return edges[1:] - 1 - inside",
        f"{SAMPLING}::test_jitter_takes_one_frame_of_each_part",
    ),
    # transforms.py
    ("data/transforms.py", "if abs(i - j) <= 1]", "]", f"{SAMPLING}::test_multi_scale_crops_are_videomaes"),
    (
        "data/transforms.py",
        "(width - crop_width) * x // 4",
        "(height - crop_height) * x // 4",
        f"{SAMPLING}::test_multi_scale_crops_are_videomaes",
    ),
    (
        "data/transforms.py",
        "largest = min(height, width / ratio), min(width, height * ratio)",
        "largest = min(height, width), min(width, height)",
        f"{SAMPLING}::test_random_crops_keep_the_shape_of_a_model_that_is_not_square",
    ),
    (
        "data/transforms.py",
        "params.update(params or crop.make_params([frames]))",
        "params.update(crop.make_params([frames]))",
        f"{SAMPLING}::test_a_view_is_one_draw_for_all_frames",
    ),
    # streams.py
    (
        "data/streams.py",
        "rows.shuffle(seed=self.clips.seed + epoch,",
        "rows.shuffle(seed=self.clips.seed,",
        f"{STREAMS}::test_training_goes_round_in_ever_other_orders",
    ),
    (
        "data/streams.py",
        'zlib.crc32(segment, zlib.crc32(data or b""))',
        'zlib.crc32(data or b"")',
        f"{STREAMS}::test_rows_of_a_stream_draw_differently",
    ),
    (
        "data/streams.py",
        'zlib.crc32(segment, zlib.crc32(data or b""))',
        "zlib.crc32(segment)",
        f"{STREAMS}::test_rows_of_a_stream_draw_differently",
    ),
    (
        "data/streams.py",
        "rank=index, world_size=num_shards",
        "rank=0, world_size=num_shards",
        f"{STREAMS}::test_processes_and_workers_share_the_rows",
    ),
    # broken_videos.py
    (
        "data/broken_videos.py",
        "max(self.tried, FEWEST_TRIED)",
        "FEWEST_TRIED",
        f"{BROKEN}::test_the_share_is_of_the_videos_tried",
    ),
    (
        "data/broken_videos.py",
        "if self.failed > self.max_share",
        "if self.failed >= self.max_share",
        f"{BROKEN}::test_ten_percent_of_the_tried_is_not_too_much",
    ),
    (
        "data/broken_videos.py",
        "        self.failed += 1\n        if video not in self._named:",
        "        if video not in self._named:\n            self.failed += 1",
        f"{BROKEN}::test_a_video_that_fails_again_counts_again_and_is_named_once",
    ),
    (
        "data/broken_videos.py",
        "if fault is not None and video not in self._noted:",
        "if fault is not None:",
        f"{BROKEN}::test_a_video_that_fails_again_counts_again_and_is_named_once",
    ),
    # tables.py
    (
        "data/tables.py",
        'data.decode("utf-8-sig")',
        'data.decode("utf-8")',
        f"{SOURCES}::test_sources[a_table_of_excel-whole]",
    ),
    (
        "data/tables.py",
        "int(minutes) * 60",
        "int(minutes) * 3600",
        f"{SOURCES}::test_a_time_may_have_hours_and_an_empty_cell_is_none",
    ),
    (
        "data/tables.py",
        "last <= (first or 0.0)",
        "last < (first or 0.0)",
        f"{SOURCES}::test_a_segment_has_an_end_after_its_start",
    ),
    (
        "data/tables.py",
        'data[: error.start].count(b"\\n") + 1',
        'data[: error.start].count(b"\\n")',
        f"{SOURCES}::test_text_that_is_not_utf_8_is_refused[list.txt]",
    ),
    # video_files.py
    (
        "data/video_files.py",
        "os.path.splitext(path)[1].lower() in VIDEO_ENDINGS",
        "os.path.splitext(path)[1] in VIDEO_ENDINGS",
        f"{SOURCES}::test_sources[endings_in_capitals-whole]",
    ),
    (
        "data/video_files.py",
        '("validation", "validate", "valid", "val", "dev"), "validation"',
        '("validation", "validate", "valid", "val", "dev"), "test"',
        f"{SOURCES}::test_sources[classes_named_almost_as_splits-whole]",
    ),
    (
        "data/video_files.py",
        '("test", "testing", "eval", "evaluation"), "test"',
        '("test", "testing", "eval", "evaluation"), "validation"',
        f"{SOURCES}::test_sources[other_names_of_splits-whole]",
    ),
    (
        "data/video_files.py",
        "parts[depth + 1 :]",
        "parts[depth:]",
        f"{SOURCES}::test_sources[splits_and_classes-whole]",
    ),
    # sources.py
    (
        "data/sources.py",
        'cells["label"] = [folders[0] for folders in files.values()]',
        'cells["label"] = [folders[-1] for folders in files.values()]',
        f"{SOURCES}::test_sources[nested-whole]",
    ),
    (
        "data/sources.py",
        "return path if path in matched else None",
        "return path",
        f"{SOURCES}::test_sources[metadata_beside_a_pattern-whole]",
    ),
    (
        "data/sources.py",
        "cells[name] = [time[number] for time in times]",
        "cells[name] = [time[0] for time in times]",
        f"{SOURCES}::test_a_time_may_have_hours_and_an_empty_cell_is_none",
    ),
    (
        "data/sources.py",
        "repeated = len(rows) - len({tuple(row.values()) for row in rows})",
        "repeated = 0",
        f"{SOURCES}::test_videos_without_metadata_and_repeated_rows_are_named",
    ),
    # datasets.py
    (
        "data/datasets.py",
        "names = sorted_names(value for values in labelled for value in values if value is not None)",
        "names = sorted_names(value for value in labels[needed] if value is not None)",
        f"{SOURCES}::test_classes_have_one_order_for_all_splits {SOURCES}::test_sources[numbers_as_labels-whole]",
    ),
    (
        "data/datasets.py",
        "if None in values and split not in unlabelled:",
        "if None in values and split in unlabelled:",
        f"{SOURCES}::test_what_is_wrong_is_refused",
    ),
    (
        "data/datasets.py",
        "and all(feature == known[0] for feature in known)",
        "",
        f"{SOURCES}::test_classes_have_one_order_for_all_splits",
    ),
    (
        "data/datasets.py",
        "folders.append(os.path.dirname(os.path.abspath(file)))",
        "folders.append(os.path.dirname(os.path.dirname(os.path.abspath(file))))",
        "tests/data/test_access_arguments.py::test_the_folders_of_a_dataset",
    ),
    (
        "data/datasets.py",
        "return [None if label is None or label < 0 else names[label] for",
        "return [names[label] for",
        "tests/data/test_datasets.py::test_a_label_of_minus_one_is_no_label",
    ),
    # annotation_files.py, annotation_formats.py, annotations.py
    (
        "data/annotation_files.py",
        "re.fullmatch(pattern, file.name, re.I)",
        "re.search(pattern, file.name, re.I)",
        f"{ANNOTATIONS}::test_a_name_must_fit_whole_and_a_class_must_exist",
    ),
    (
        "data/annotation_files.py",
        "int(value) >= len(classes)",
        "int(value) > len(classes)",
        f"{ANNOTATIONS}::test_a_name_must_fit_whole_and_a_class_must_exist",
    ),
    (
        "data/annotation_files.py",
        "if [number for number, _ in classes] != list(range(len(classes))):",
        "if False:",
        f"{ANNOTATIONS}::test_files_of_another_format_are_named",
    ),
    (
        "data/annotation_files.py",
        "if counts[name] > 1 else name",
        "if counts[name] > 2 else name",
        f"{ANNOTATIONS}::test_classes_of_one_name_get_their_numbers",
    ),
    (
        "data/annotation_formats.py",
        'segment(row.place, row["start_timestamp"], row["stop_timestamp"])',
        'segment(row.place, "", row["stop_timestamp"])',
        f"{ANNOTATIONS}::test_segments_are_the_annotated_frames",
    ),
    (
        "data/annotation_formats.py",
        "tuple(numbers[column][row[column]] for column in columns)",
        "tuple(numbers[column][row[column]] for column in sorted(columns))",
        f"{ANNOTATIONS}::test_verbs_and_nouns_of_a_csv_stay_in_their_columns",
    ),
    (
        "data/annotation_formats.py",
        "if got in published:",
        "if got <= max(published):",
        f"{ANNOTATIONS}::test_published_sizes_are_recognised",
    ),
    (
        "data/annotations.py",
        "return folder / video if (folder / video).is_file() else None",
        "video = Path(video).stem",
        f"{ANNOTATIONS}::test_a_path_is_this_path_and_no_other",
    ),
    (
        "data/annotations.py",
        "if not present and clips[0].labels is None:",
        "if not present:",
        f"{ANNOTATIONS}::test_a_split_with_labels_needs_a_video",
    ),
    # arguments.py
    (
        "data/arguments.py",
        "folders=data_folders(dataset_name) if self.confine else None",
        "folders=None",
        "tests/data/test_arguments.py::test_every_option_reaches_the_reader",
    ),
    (
        "data/arguments.py",
        "(*VideoAccess.protocols, *self.more_protocols)",
        "VideoAccess.protocols",
        "tests/data/test_arguments.py::test_every_option_reaches_the_reader",
    ),
    (
        "data/arguments.py",
        "max_seconds=self.max_video_seconds",
        "max_seconds=self.max_video_bytes",
        "tests/data/test_arguments.py::test_every_option_reaches_the_reader",
    ),
    (
        "data/arguments.py",
        "FrameSampling(self.frame_stride, self.frame_jitter, self.short_videos)",
        "FrameSampling(self.frame_stride, self.frame_jitter)",
        "tests/data/test_arguments.py::test_every_option_reaches_the_reader",
    ),
    (
        "data/arguments.py",
        "VideoReading(self.num_clips, self.on_error,",
        "VideoReading(1, self.on_error,",
        "tests/data/test_arguments.py::test_every_option_reaches_the_reader",
    ),
]
