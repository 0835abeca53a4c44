"""Mutations of the part of `models/` that opens, decodes and processes videos."""

PROCESS = "tests/models/test_decoder_process.py"
PROCESSING = "tests/models/test_processing.py"
IO = "tests/models/test_video_io.py"
SEEKING = "tests/models/test_video_seeking.py"
ACCESS = "tests/models/test_video_sources.py"
CREDENTIALS = "tests/models/test_credentials.py"
SPECIAL = "tests/corpus/test_special_files.py"
MUTATIONS = [
    # credentials.py
    (
        "models/credentials.py",
        '_HUB_TOKEN.sub(HIDDEN, _PARAMETER.sub(rf"\\g<1>{HIDDEN}", text))',
        '_PARAMETER.sub(rf"\\g<1>{HIDDEN}", text)',
        f"{CREDENTIALS}::test_credentials_are_hidden",
    ),
    (
        "models/credentials.py",
        'rf"(?i)(?<![\\w.-])((?:{SECRET_NAME})',
        'rf"(?<![\\w.-])((?:{SECRET_NAME})',
        f"{CREDENTIALS}::test_credentials_are_hidden",
    ),
    ("models/credentials.py", "(?:@[^/\\s?#'\\\"@]*)*@", "@", f"{CREDENTIALS}::test_credentials_are_hidden"),
    (
        "models/credentials.py",
        "(?<![\\w.-])((?:{SECRET_NAME})",
        "((?:{SECRET_NAME})",
        f"{CREDENTIALS}::test_other_text_stays",
    ),
    # decoder_process.py
    (
        "models/decoder_process.py",
        "pixels, down, right = pixels.transpose(1, 0, 2), b, c",
        "pixels, down, right = pixels.transpose(1, 0, 2), c, b",
        f"{PROCESS}::test_frames_are_shown_as_players_show_them",
    ),
    (
        "models/decoder_process.py",
        "down, right = d, a",
        "down, right = a, d",
        f"{PROCESS}::test_frames_are_shown_as_players_show_them",
    ),
    (
        "models/decoder_process.py",
        "if abs(a) + abs(d) < abs(b) + abs(c):",
        "if abs(a) + abs(d) <= abs(b) + abs(c):",
        f"{PROCESS}::test_an_odd_display_matrix_leaves_the_frame_upright",
    ),
    (
        "models/decoder_process.py",
        "real = Path(os.path.realpath(path))",
        "real = Path(os.path.abspath(path))",
        f"{ACCESS}::test_rows_can_be_confined_to_folders",
    ),
    (
        "models/decoder_process.py",
        "if folders is not None and not any(real.is_relative_to(os.path.realpath(folder)) for folder in folders):",
        "if folders is not None and not any(str(real).startswith(os.path.realpath(folder)) for folder in folders):",
        f"{ACCESS}::test_rows_can_be_confined_to_folders",
    ),
    (
        "models/decoder_process.py",
        "        if not stat.S_ISREG(os.fstat(descriptor).st_mode):",
        "        if stat.S_ISDIR(os.fstat(descriptor).st_mode):",
        f"{ACCESS}::test_only_regular_files_are_opened",
    ),
    (
        "models/decoder_process.py",
        "        if file.seek(0, os.SEEK_END) == 0:",
        "        if False:",
        f"{IO}::test_broken_file_is_named_with_its_fault_and_a_remedy",
    ),
    (
        "models/decoder_process.py",
        "if len(held) == len(block) or pixels.shape != block.shape[1:]:",
        "if len(held) == len(block):",
        f"{SPECIAL}::test_frames_of_two_sizes_need_a_view",
    ),
    (
        "models/decoder_process.py",
        "        self.facts.fault = self.reader.fault\n",
        "",
        f"{SEEKING}::test_damage_that_shows_only_when_its_frame_is_decoded_is_said",
    ),
    (
        "models/decoder_process.py",
        " and self.process.poll() is None",
        "",
        f"{PROCESS}::test_a_process_that_died_while_idle_costs_nothing",
    ),
    (
        "models/decoder_process.py",
        "_of_thread = threading.local()",
        '_of_thread = type("", (), {})()',
        f"{PROCESS}::test_one_process_serves_a_thread_and_each_thread_has_its_own",
    ),
    # video_io.py
    (
        "models/video_io.py",
        "indices.max() >= metadata.total_num_frames",
        "indices.max() > metadata.total_num_frames",
        f"{IO}::test_frames_outside_the_video_are_refused",
    ),
    ("models/video_io.py", "or indices.min() < 0 ", "", f"{IO}::test_frames_outside_the_video_are_refused"),
    (
        "models/video_io.py",
        "np.searchsorted(numbers[used], wanted[places])",
        "np.arange(len(places))",
        f"{IO}::test_frames_come_in_the_order_asked_with_repeats",
    ),
    (
        "models/video_io.py",
        "np.searchsorted(numbers[used], wanted[places])",
        "np.searchsorted(numbers, wanted[places])",
        "tests/data/test_clips.py::test_each_of_several_clips_has_its_own_frames",
    ),
    (
        "models/video_io.py",
        "torch.from_numpy(frames).permute(0, 3, 1, 2)",
        "torch.from_numpy(frames).permute(0, 3, 2, 1)",
        f"{IO}::test_written_video_is_deterministic_and_close",
    ),
    (
        "models/video_io.py",
        "metadata.height, metadata.width = frames.shape[1:3]",
        "metadata.width, metadata.height = frames.shape[1:3]",
        f"{PROCESS}::test_frames_are_shown_as_players_show_them",
    ),
    (
        "models/video_io.py",
        "duration=facts.total / facts.fps if facts.fps else None",
        "duration=facts.total * facts.fps if facts.fps else None",
        "tests/evaluation/test_views.py::test_probabilities_are_averaged_over_views",
    ),
    # video_processing_lvmae.py
    (
        "models/video_processing_lvmae.py",
        "if total > MOST_FRAMES:",
        "if total > 100 * MOST_FRAMES:",
        f"{PROCESSING}::test_a_film_is_not_read_whole_without_a_word",
    ),
    (
        "models/video_processing_lvmae.py",
        "num_frames = max(1, int(total / metadata.fps * fps))",
        "num_frames = int(total / metadata.fps * fps)",
        f"{PROCESSING}::test_a_clip_shorter_than_a_frame_of_the_rate_has_one_frame",
    ),
    (
        "models/video_processing_lvmae.py",
        "int(total / metadata.fps * fps)",
        "int(total * metadata.fps / fps)",
        f"{PROCESSING}::test_sampling_settings_and_calls {PROCESSING}::test_more_frames_a_second_than_the_video_has",
    ),
    (
        "models/video_processing_lvmae.py",
        "return np.arange(num_frames) * total // num_frames",
        "return np.linspace(0, total - 1, num_frames).astype(int)",
        f"{PROCESSING}::test_short_clip_is_stretched",
    ),
    (
        "models/video_processing_lvmae.py",
        'if any(asked.values()) and kwargs.get("do_sample_frames") is not False:',
        "if any(asked.values()):",
        f"{PROCESSING}::test_the_settings_or_the_call_choose_the_frames_of_a_file",
    ),
    (
        "models/video_processing_lvmae.py",
        '            kwargs.setdefault("fps", None)\n',
        "            pass\n",
        f"{PROCESSING}::test_sampling_settings_and_calls {PROCESSING}::test_the_settings_or_the_call_choose_the_frames_of_a_file",
    ),
    (
        "models/video_processing_lvmae.py",
        "if video.shape[1] not in (1, 4):",
        "if video.shape[1] != 4:",
        f"{PROCESSING}::test_grey_and_transparent_video_becomes_rgb",
    ),
    # video_seeking.py
    (
        "models/video_seeking.py",
        "np.searchsorted(seconds, self.end - TOLERANCE))",
        "np.searchsorted(seconds, self.end + TOLERANCE))",
        f"{SEEKING}::test_segments_are_the_frames_of_those_seconds",
    ),
    (
        "models/video_seeking.py",
        "np.searchsorted(seconds, self.start - TOLERANCE))",
        "np.searchsorted(seconds, self.start + TOLERANCE))",
        f"{SEEKING}::test_segments_are_the_frames_of_those_seconds",
    ),
    (
        "models/video_seeking.py",
        "seconds = (stamps - first_stamp) * self.time_base",
        "seconds = stamps * self.time_base",
        f"{SEEKING}::test_segments_are_the_frames_of_those_seconds",
    ),
    (
        "models/video_seeking.py",
        "        if low >= high:",
        "        if low > high:",
        f"{IO}::test_a_segment_without_frames_is_refused",
    ),
    (
        "models/video_seeking.py",
        "            if behind > MAX_REORDER:",
        "            if behind > 0:",
        f"{SEEKING}::test_segments_are_the_frames_of_those_seconds",
    ),
    (
        "models/video_seeking.py",
        "        if not packet.is_discard:\n            self.stamps.append(packet.pts)",
        "        self.stamps.append(packet.pts)",
        f"{SEEKING}::test_segments_are_the_frames_of_those_seconds",
    ),
    (
        "models/video_seeking.py",
        'if "mp4" in container.format.name and packets < promised:',
        "if False:",
        f"{IO}::test_broken_file_is_named_with_its_fault_and_a_remedy",
    ),
    # video_sources.py
    (
        "models/video_sources.py",
        "if self.folders is not None or protocol not in self.protocols:",
        "if protocol not in self.protocols:",
        f"{ACCESS}::test_rows_can_be_confined_to_folders",
    ),
    (
        "models/video_sources.py",
        'if "://" in link else "file"',
        'if "://" in link else self.protocols[0]',
        f"{ACCESS}::test_other_protocols_need_a_word",
    ),
]
