"""Kill the long commands at random moments, start them again, and compare what they end with, bit for bit, with an uninterrupted run.

    python tests/reliability/kills.py --kills 60

Half of the kills come at a random moment, the others while a checkpoint is written. Every command runs at tiny size on a CPU, on clips of the
tests' fixture. It prints a line for each kill, and ends with exit code 1 if a result differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import datasets
import torch
from builders import CLIPS, MODEL, TOKENIZER, assert_same, load_script
from safetensors.torch import load_file

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining
from transformers_lvmae.evaluation.features import load_features
from transformers_lvmae.training.checkpoints import CHECKSUMS


DATA = ["--dataset_name", str(CLIPS), "--eval_split", "test", "--max_train_samples", "8", "--max_eval_samples", "2"]
TRAINING = ["--per_device_train_batch_size", "2", "--max_steps", "8", "--save_steps", "2", "--logging_steps", "1"]
TRAINING += [
    "--report_to",
    "none",
    "--use_cpu",
    "--save_total_limit",
    "2",
    "--eval_strategy",
    "steps",
    "--eval_steps",
    "3",
]
STEPS = 8


@dataclass
class Command:
    """A long command: its script and options, the number of its processes, and how its results are read."""

    script: str
    options: list[str]
    read: Callable[[Path], object]
    processes: int = 1


def trained(folder: Path) -> object:
    """Everything that training leaves: weights, optimizer, and the parts of the last checkpoint beside them."""
    last = folder / f"checkpoint-{STEPS}"
    weights = [load_file(path) for path in sorted([*folder.glob("*.safetensors"), *last.glob("*.safetensors")])]
    states = [torch.load(path, weights_only=True) for path in sorted(last.glob("*.pt"))]
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return weights, states, [entry["loss"] for entry in log if "loss" in entry]


def cached(folder: Path) -> object:
    return {
        str(path.relative_to(folder)): datasets.Dataset.from_file(str(path)).to_dict()
        for path in sorted(folder.rglob("*.arrow"))
    }


def features(folder: Path) -> object:
    return load_features(folder, "train").to_dict()


def commands(inputs: Path) -> dict[str, Command]:
    """Return all commands; `inputs` gets a tokenizer and an autoencoder."""
    torch.manual_seed(0)
    FSQMagViTModel(TOKENIZER).save_pretrained(inputs / "tokenizer")
    LVMAEForPreTraining(MODEL).save_pretrained(inputs / "pretrain")
    load_script("train_tokenizer").processor_for(MODEL).save_pretrained(inputs / "pretrain")
    tokenizer, pretrained = (
        ["--tokenizer", str(inputs / "tokenizer")],
        ["--model_name_or_path", str(inputs / "pretrain")],
    )
    crops = ["--min_crop_scale", "0.5", "--horizontal_flip"]
    gan = ["--model_name_or_path", str(inputs / "tokenizer"), "--adversarial_weight", "0.1", "--ema_decay", "0.9"]
    gan += [
        "--discriminator_channels",
        "4",
        "--discriminator_multipliers",
        "2",
        "4",
        "--perceptual_weight",
        "0",
        *crops,
    ]
    gan += ["--selection", "learned", "random", "motion"]
    mixing = [*pretrained, "--mixup_alpha", "0.8", "--cutmix_alpha", "1", "--ema_decay", "0.9", *crops]
    mixing += ["--rand_augment_num_ops", "2", "--random_erasing_prob", "0.5", "--config_overrides"]
    mixing += ['{"tube_drop_ratio": 0.25, "drop_path_rate": 0.2}']
    cache = ["--target_cache", str(inputs / "targets"), *pretrained]
    return {
        "tokenizer": Command("train_tokenizer", [*DATA, *TRAINING, *gan], trained),
        "tokenizer, 2 workers": Command(
            "train_tokenizer", [*DATA, *TRAINING, *gan, "--dataloader_num_workers", "2"], trained
        ),
        "cache": Command("cache_targets", [*DATA, *tokenizer, *pretrained, "--clips_per_shard", "2"], cached),
        "pre-training": Command("pretrain", [*DATA, *TRAINING, *tokenizer, *pretrained, *crops], trained),
        "pre-training, cached": Command("pretrain", [*DATA, *TRAINING, *cache], trained),
        "pre-training, 2 processes": Command(
            "pretrain", [*DATA, *TRAINING, *tokenizer, *pretrained, *crops], trained, 2
        ),
        "fine-tuning, mixing": Command("finetune", [*DATA, *TRAINING, *mixing], trained),
        "fine-tuning, LoRA": Command("finetune", [*DATA, *TRAINING, *pretrained, "--lora", *crops], trained),
        "features": Command("extract_features", [str(inputs / "pretrain"), str(CLIPS), "--shard_size", "1"], features),
    }


def start(command: Command, output: Path, port: int) -> list[int]:
    """Start a command in forks of this process, which has imported everything; return their ids."""
    place = [str(output)] if command.script == "extract_features" else ["--output_dir", str(output)]
    started = []
    for rank in range(command.processes):
        pid = os.fork()
        if pid == 0:
            os.setpgrp()  # with its workers
            log = os.open(output.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1), os.dup2(log, 2)
            if command.processes > 1:
                numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": command.processes, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in numbers.items()}, MASTER_ADDR="127.0.0.1")
            sys.argv = [f"{command.script}.py", *command.options, *place]
            try:
                load_script(command.script).main()
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        started.append(pid)
    return started


def have_ended(started: list[int]) -> bool:
    return all(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None for pid in started)


def work_done(started: list[int]) -> float:
    """Return the seconds of processor time of the processes, which other programs on the machine do not change."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[11:13] for pid in started]
    return sum(int(number) for pair in ticks for number in pair) / os.sysconf("SC_CLK_TCK")


def finish(started: list[int], output: Path) -> float:
    """Wait for the end of a command; return its work."""
    while not have_ended(started):
        time.sleep(0.01)
    done = work_done(started)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in started]
    assert codes == [0] * len(codes), f"{codes}\n{output.with_suffix('.log').read_text()[-3000:]}"
    return done


def is_writing(output: Path) -> bool:
    """Whether a checkpoint, or a shard, is being written."""
    unsealed = any(not (path / CHECKSUMS).exists() for path in output.glob("checkpoint-*"))
    return unsealed or any(output.rglob("*.part"))


def kill(started: list[int], output: Path, seconds: float, while_writing: bool) -> str:
    """Kill a command after some seconds of work, or then at the next write if that is asked; return what it was doing."""
    while not have_ended(started) and (work_done(started) < seconds or (while_writing and not is_writing(output))):
        time.sleep(0.0005)
    state = "had ended" if have_ended(started) else "was writing" if is_writing(output) else "was at work"
    for pid in started:
        os.killpg(pid, signal.SIGKILL)
    for pid in started:
        os.waitpid(pid, 0)
    return state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=60, help="kills over all commands (default: 60)")
    parser.add_argument("--commands", nargs="+", help="names of the commands (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments (default: 0)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    datasets.disable_progress_bars()
    draw, wrong, port = random.Random(args.seed), 0, 29600
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        every = commands(work)
        chosen = args.commands or list(every)
        finish(start(every["cache"], work / "targets", port), work / "targets")
        expected, lengths = {}, {}
        for name in chosen:
            lengths[name] = finish(start(every[name], work / "whole", port := port + 1), work / "whole")
            expected[name] = every[name].read(work / "whole")
            shutil.rmtree(work / "whole")
        for number in range(args.kills):
            name = chosen[number % len(chosen)]
            command, output = every[name], work / "killed"
            while_writing = number // len(chosen) % 2 == 1
            # There must be a write after the moment. One that comes too late does not count.
            seconds, state = draw.uniform(0.1, 0.6 if while_writing else 0.95) * lengths[name], "had ended"
            while state == "had ended":
                shutil.rmtree(output, ignore_errors=True)
                started = start(command, output, port := port + 1)
                state = kill(started, output, seconds, while_writing)
                seconds *= 0.8 if state == "had ended" else 1
            finish(start(command, output, port := port + 1), output)
            try:
                assert_same(command.read(output), expected[name])
                verdict = "the same"
            except AssertionError:
                wrong, verdict = wrong + 1, "DIFFERENT"
            print(
                f"{number + 1}. {name}: killed after {seconds:.1f} s of work, {state}; ended with {verdict} result",
                flush=True,
            )
            shutil.rmtree(output)
    print(f"{args.kills - wrong} of {args.kills} killed runs ended as if they had not been killed.")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
