"""Mistakes on the command line of every program: one sentence, before any work."""

import argparse
import errno
import re
import sys

import pytest
from builders import SCRIPTS, load_script

from transformers_lvmae.command_line import CommandLine, in_words, is_within, json_object, run, sentence_of


NAMES = sorted(path.stem for path in SCRIPTS.glob("*.py"))
# What each program needs to be parsed.
NEEDED = {
    "cache_targets": ["--dataset_name", "data", "--output_dir", "out"],
    "challenge": ["epic_metrics", "predictions.parquet", "lists"],
    "check_videos": ["data"],
    "classify": ["model", "video.mp4"],
    "convert_videomae": ["source", "out"],
    "estimate_cost": ["pretraining"],
    "evaluate_classifier": ["--model_name_or_path", "m", "--dataset_name", "data", "--output_dir", "out"],
    "export_model": ["model", "out"],
    "extract_features": ["model", "data", "out"],
    "finetune": ["--dataset_name", "data", "--output_dir", "out"],
    "prepare_dataset": ["csv", "--annotations", "a.csv", "--videos", "v", "--output", "out"],
    "pretrain": ["--dataset_name", "data", "--output_dir", "out"],
    "probe": ["linear", "features", "out"],
    "report": ["run", "data"],
    "train_tokenizer": ["--dataset_name", "data", "--output_dir", "out"],
    "visualize_tokens": ["tokenizer", "video.mp4", "out"],
}
# Options that are out of their range, or that do not fit each other.
WRONG = {
    "cache_targets": ["--num_epochs 0", "--batch_size 0", "--clips_per_shard 0", "--seed -1", "--config_overrides {"],
    "check_videos": ["--workers -1", "--num_frames 0"],
    "challenge": ["--sls_pt 6", "--sls_td -1"],
    "classify": ["--top_k 0", "--start -1", "--end 0"],
    "convert_videomae": ["--num_frames 0", "--image_size 0", "--num_attention_heads -1"],
    "estimate_cost": ["--budget 2", "--frames 0", "--memory 0", "--lora_rank -1", "--size tiny", "--clips 1.5"],
    "evaluate_classifier": ["--temporal_views 0", "--frame_stride 0", "--short_videos drop", "--on_error drop"],
    "extract_features": [
        "--stride_seconds 1e-9",
        "--clip_seconds 0",
        "--shard_size 0",
        "--frame_stride 0",
        "--stride_seconds 2",
        "--max_broken_share 2",
    ],
    "finetune": [
        *("--layer_decay 0", "--mixup_alpha -1", "--ema_decay 1", "--lora_rank 0", "--random_erasing_prob 2"),
        *("--rand_augment_magnitude 11", "--label_smoothing_factor 1", "--learning_rate -1", "--model_size giant"),
        *("--base_learning_rate 1e-3 --learning_rate 1e-3", "--lora --peft_config {}", "--min_crop_scale 0"),
        *("--min_crop_scale 0.5 --crop_scales 1 0.5", "--num_clips 0", "--max_train_samples 0", "--on_error ignore"),
        *("--short_videos drop", "--max_broken_share 2", "--per_device_train_batch_size 0", "--save_total_limit 0"),
        *("--gradient_accumulation_steps 0", "--num_train_epochs 0", "--max_grad_norm -1", "--warmup_steps -1"),
        *("--adam_beta1 1", "--adam_epsilon 0", "--weight_decay -0.1", "--seed -1", "--logging_steps 0"),
        *("--lr_scheduler_type cosin", "--report_to", "--learning_rat 1e-3", "--mixup 0.8", "--config_overrides [1]"),
    ],
    "pretrain": ["--base_learning_rate -1", "--encoder_mas tube", "--model_size tiny", "--frame_stride 0"],
    "probe": ["--seeds 0", "--num_train_epochs 0", "--batch_size -1", "--seed 3"],
    "train_tokenizer": [
        *("--adversarial_weight -1", "--ema_decay 1.5", "--perceptual_frames 0", "--topk_sigma_end 0"),
        *("--discriminator_multipliers 2 0", "--adversarial_weight 0.1 --fp16", "--discriminator_channels 0"),
    ],
    "visualize_tokens": ["--keep_ratio 1.1", "--moments 0", "--choices luck", "--num_frames 0"],
}


@pytest.fixture(scope="module")
def parsers():
    """The parser of every program."""
    found = {}

    def stop(self, args=None, namespace=None):
        found[name] = self
        raise InterruptedError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
        patch.setattr(sys, "argv", ["program"])
        for name in NAMES:
            with pytest.raises(InterruptedError):
                load_script(name).main()
    return found


def complaint(parser, arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parser.parse_dataclasses(arguments) if parser.dataclass_types else parser.parse_args(arguments)
    assert ended.value.code == 2, arguments
    return capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_option_ends_a_program_with_one_sentence(name, parsers, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    parser = parsers[name]
    assert isinstance(parser, CommandLine)
    numbers = {action.option_strings[0] for action in parser._actions if hasattr(action.type, "interval")}
    wrong = [option.split() for option in WRONG.get(name, [])]
    wrong += [[option, value] for option in numbers if option for value in ("nan", "many", "1e999")]
    wrong += [["--no_such_option"], ["--no_such_option=3"]]
    for options in wrong:
        if name == "extract_features" and options == ["--stride_seconds", "2"]:
            continue  # refused by the program itself
        said = complaint(parser, [*NEEDED[name], *options], capsys)
        assert said.startswith("error: Got "), (options, said)
        assert said.count("\n") == 1, (options, said)
        assert re.search(", expected .*: ", said), (options, said)
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_there_are_250_of_them(parsers):
    numbers = sum(hasattr(action.type, "interval") for parser in parsers.values() for action in parser._actions)
    assert sum(map(len, WRONG.values())) + 3 * numbers >= 250


def test_options_have_their_whole_names(parsers, capsys):
    said = complaint(parsers["pretrain"], [*NEEDED["pretrain"], "--learning_rat", "1e-3"], capsys)
    assert said == "error: Got --learning_rat, expected an option of this program: write --learning_rate.\n"
    said = complaint(parsers["extract_features"], [*NEEDED["extract_features"], "--stride_seconds", "1e-9"], capsys)
    assert said == "error: Got --stride_seconds 1e-9, expected a number of at least 0.001: change it.\n"


def test_intervals():
    cases = {
        "[0, 1)": ([0, 0.5], [1, -0.1]),
        "(0, 1]": ([1, 0.5], [0]),
        "[1, inf)": ([1, 9], [0]),
        "(-inf, inf)": ([-5], []),
    }
    for interval, (inside, outside) in cases.items():
        assert all(is_within(number, interval) for number in inside)
        assert not any(is_within(number, interval) for number in [*outside, float("nan"), float("inf"), float("-inf")])
    assert in_words(int, "[1, inf)") == "a whole number of at least 1"
    assert in_words(float, "(0, inf)") == "a number above 0"
    assert in_words(float, "[0, 1)") == "a number in [0, 1)"
    with pytest.raises(ValueError, match="Got overrides='3', expected a JSON object"):
        json_object("overrides", "3")


def test_a_program_says_one_sentence_where_its_user_erred():
    def err():
        raise ValueError("Validation failed:\n    ValueError: Got mask_ratio=2, expected less than 1: lower it.")

    with pytest.raises(SystemExit, match=r"^error: Got mask_ratio=2, expected less than 1: lower it\.$"):
        run(err)

    def fault():
        raise ValueError("shapes do not fit")

    with pytest.raises(ValueError, match="shapes do not fit"):
        run(fault)

    def fill():
        raise RuntimeError("writing failed") from OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(
        SystemExit, match=r"^error: Got a full disk .* free some space and start the same command again"
    ):
        run(fill)

    def fill_with_a_sentence():
        raise OSError(errno.ENOSPC, "Got a full disk at run, expected room for a checkpoint: free some space.")

    with pytest.raises(
        SystemExit, match=r"^error: Got a full disk at run, expected room for a checkpoint: free some space\.$"
    ):
        run(fill_with_a_sentence)
    with pytest.raises(SystemExit) as ended:
        run(lambda: 3)
    assert ended.value.code == 3
    assert sentence_of(KeyError("Got lost")) is None
