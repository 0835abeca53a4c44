"""What a run promises: it stops when it diverges, draws from (seed, step), goes on only with its settings, and says what it trains."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from builders import CLIPS, MODEL, TESTS, TOKENIZER, assert_same, losses, make_trainer, weights
from safetensors.torch import load_file
from torch import nn

from transformers_lvmae import (
    FSQMagViTTrainingArguments,
    LVMAEClassificationArguments,
    LVMAEConfig,
    LVMAEForVideoClassification,
    LVMAEPreTrainingArguments,
)
from transformers_lvmae.data import SelectionCollator, load_video_dataset
from transformers_lvmae.training.base import RunningMeans, train_and_save
from transformers_lvmae.training.checkpoints import newest_checkpoint
from transformers_lvmae.training.divergence import MOST_PENDING, FiniteSteps, NonFiniteError
from transformers_lvmae.training.run_folder import keep_global_batch, run_settings, sole_run


STAGES = ("tokenizer", "pretraining", "classification")


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


def break_step(trainer, step, kind):
    """Make the loss, the gradient or a weight of a step NaN."""
    compute_loss = trainer.compute_loss
    parameter = next(trainer.model.parameters())

    def broken_loss(model, inputs, *args, **kwargs):
        loss = compute_loss(model, inputs, *args, **kwargs)
        return loss * math.nan if trainer.state.global_step == step and kind == "loss" else loss

    def broken_gradient(gradient):  # whether gradients are clipped, as for two of the three models, or not
        return gradient + math.inf if trainer.state.global_step == step and kind == "gradient" else gradient

    def break_weight():
        if trainer.state.global_step == step and kind == "weight":
            parameter.data.view(-1)[0] = math.nan

    trainer.compute_loss = broken_loss
    parameter.register_hook(broken_gradient)
    if kind == "weight":
        model_forward = trainer.model.forward

        def forward(*args, **kwargs):
            output = model_forward(*args, **kwargs)
            break_weight()
            return output

        trainer.model.forward = forward


@pytest.mark.parametrize(
    ("stage", "kind", "logging_steps"),
    [
        *((stage, kind, 100) for stage in STAGES for kind in ("loss", "gradient", "weight")),
        ("tokenizer", "loss", 1),
        ("classification", "gradient", 1),
    ],
)
def test_a_run_that_diverges_stops_before_it_saves(kind, stage, logging_steps, splits, tmp_path, monkeypatch):
    """In step 4 of 6, with a checkpoint at 2, 4 and 6. As on an accelerator, which is not asked in every step."""
    monkeypatch.setattr(FiniteSteps, "should_check", False)
    options = {
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": logging_steps,
        "per_device_train_batch_size": 2,
    }
    trainer = make_trainer(stage, splits, tmp_path, max_steps=6, **options)
    break_step(trainer, 3, kind)
    with pytest.raises(NonFiniteError, match=r"Got a loss, a gradient or weights .* expected finite") as raised:
        train_and_save(trainer)
    assert newest_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    assert not (tmp_path / "checkpoint-4").exists()
    assert not (tmp_path / "model.safetensors").exists()
    assert all(value.isfinite().all() for value in load_file(tmp_path / "checkpoint-2" / "model.safetensors").values())
    assert "in step 4 (" in str(raised.value)
    assert "checkpoint-2 is the last one" in str(raised.value)


def test_the_videos_of_the_step_are_named(splits, tmp_path):
    """On a CPU at once, in the second epoch, with accumulated batches; they are the rows that the data set was asked for."""
    options = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2, "num_train_epochs": 3}
    trainer = make_trainer("classification", splits, tmp_path, **options)
    asked, get = [], trainer.train_dataset.__getitems__

    class Watched(type(trainer.train_dataset)):
        def __getitems__(self, indices):
            asked.append(list(indices))
            return get(indices)

    trainer.train_dataset.__class__ = Watched
    break_step(trainer, 3, "loss")
    with pytest.raises(NonFiniteError) as raised:
        trainer.train()
    assert trainer.state.global_step == 3
    rows = [row for batch in asked[6:8] for row in batch]
    names = trainer.train_dataset.video_names(rows)
    assert f"in step 4 ({', '.join(names)})" in str(raised.value)


@pytest.mark.parametrize("part", ["adversary", "average"])
def test_the_adversary_and_the_averages_are_looked_at(part, splits, tmp_path):
    options = {"adversarial_weight": 0.1, "discriminator_channels": 4, "discriminator_multipliers": [2, 4]}
    trainer = make_trainer("tokenizer", splits, tmp_path, max_steps=2, ema_decay=0.9, **options)
    module = trainer.adversary.losses if part == "adversary" else trainer.averaged_model.module
    next(module.parameters()).data.fill_(math.inf)
    with pytest.raises(NonFiniteError):
        trainer.save_model()
    assert not (tmp_path / "model.safetensors").exists()


def test_a_step_does_not_ask_the_device():
    steps = FiniteSteps()
    for step in range(MOST_PENDING):
        steps.add(step, torch.ones((), device="meta"))
        assert steps.should_check == (step == MOST_PENDING - 1)  # a meta tensor cannot be read


def test_flags_of_steps_are_looked_at_once():
    steps, alone = FiniteSteps(), SimpleNamespace(gather=lambda values: values, device="cpu")
    for step, value in enumerate([1.0, math.nan, math.inf]):
        steps.add(step, torch.tensor(value), is_loss=step == 1)
    assert steps.first_bad_step(alone) == (1, True)
    steps.add(3, 1.0)
    assert steps.first_bad_step(alone) == (None, False)
    steps.add(4, 1.0)
    beside = SimpleNamespace(gather=lambda own: torch.stack([own, torch.tensor(4.0)]), device="cpu")
    assert steps.first_bad_step(beside) == (4, False)  # another process's loss was not finite


@pytest.mark.parametrize("stage", STAGES)
def test_a_smaller_last_batch_counts_by_its_clips(stage, splits, tmp_path):
    """Four clips and one, accumulated, are a batch of five."""
    ends = []
    for batch, steps in ((5, 1), (4, 2)):
        options = {"optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0, "max_steps": 1}
        options |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": steps}
        trainer = make_trainer(stage, splits, tmp_path, num_clips=5, **options)
        if stage == "tokenizer":
            trainer.model.config.unmasked_clip_ratio = 1.0  # no draws: they differ between one batch and two
        trainer.train()
        ends.append((losses(trainer), weights(trainer)))
    (one, single), (two, double) = ends
    assert two == pytest.approx(one, rel=1e-5)
    for name, value in single.items():
        torch.testing.assert_close(double[name], value, rtol=1e-5, atol=1e-6)


class Noise(nn.Module):
    """Collects draws of training, to compare them."""

    def __init__(self, model):
        super().__init__()
        self.drawn = []
        forward = model.forward

        def drawing(*args, **kwargs):
            if model.training:
                self.drawn.append(torch.rand(1).item())
            return forward(*args, **kwargs)

        model.forward = drawing


def drawn(splits, folder, **options):
    trainer = make_trainer("pretraining", splits, folder, max_steps=4, **options)
    noise = Noise(trainer.model)
    trainer.train()
    return noise.drawn


def test_draws_depend_on_seed_and_step_alone(splits, tmp_path):
    options = {"per_device_train_batch_size": 2}
    plain = drawn(splits, tmp_path, **options)
    assert len(set(plain)) == 4
    torch.manual_seed(5)
    assert drawn(splits, tmp_path, **options, eval_strategy="steps", eval_steps=1) == plain
    assert drawn(splits, tmp_path, **options, dataloader_num_workers=2) == plain
    assert drawn(splits, tmp_path, **options, seed=1) != plain
    accumulated = drawn(splits, tmp_path, **options, gradient_accumulation_steps=2)
    assert accumulated[::2] == plain
    assert len(set(accumulated)) == 8


def test_every_evaluation_draws_the_same(splits, tmp_path):
    trainer = make_trainer("classification", splits, tmp_path)
    forward, seen = trainer.model.forward, []

    def drawing(*args, **kwargs):
        seen.append(torch.rand(1).item())
        return forward(*args, **kwargs)

    trainer.model.forward = drawing
    for seed in (1, 2):
        torch.manual_seed(seed)
        trainer.evaluate()
    assert seen[: len(seen) // 2] == seen[len(seen) // 2 :]


def test_evaluation_leaves_the_parts_of_the_loss_alone(splits, tmp_path):
    logs = []
    for options in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make_trainer("pretraining", splits, tmp_path, max_steps=2, logging_steps=2, **options)
        trainer.train()
        (entry,) = (entry for entry in trainer.state.log_history if "loss" in entry)
        logs.append({name: value for name, value in entry.items() if name.startswith("loss")})
    assert len(logs[0]) > 1
    assert logs[0] == logs[1]


def test_parts_of_the_loss_are_means_since_the_last_log():
    parts, alone = RunningMeans(), SimpleNamespace(reduce=lambda values, kind: values)
    parts.add({"one": torch.tensor([1.0, 3.0]), "other": torch.tensor(5.0)})
    parts.add({"one": torch.tensor(4.0)})
    assert parts.pop(alone) == {"one": 3.0, "other": 5.0}
    parts.add({"one": torch.tensor(7.0)})
    assert parts.pop(alone) == {"one": 7.0}
    assert parts.pop(alone) == {}


RANDOM = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "ema_decay": 0.9, "per_device_train_batch_size": 2}
RANDOM |= {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}


def random_trainer(splits, folder, **options):
    """A trainer whose model drops tubes and paths and whose clips are mixed; and what it draws."""
    torch.manual_seed(0)
    config = LVMAEConfig(**{**MODEL.to_dict(), "tube_drop_ratio": 0.25, "drop_path_rate": 0.2})
    model = LVMAEForVideoClassification(config)
    trainer = make_trainer("classification", splits, folder, model=model, **{**RANDOM, **options})
    return trainer, Noise(trainer.model)


def on_every_process(folder):
    """Train on this process and the others, go on from the middle once more, and diverge on the second process."""
    splits, rank = load_video_dataset(CLIPS, label_column="label"), int(os.environ["RANK"])
    trainer, noise = random_trainer(splits, folder / "run")
    train_and_save(trainer)
    (folder / f"drawn_{rank}.json").write_text(json.dumps(noise.drawn))
    if rank == 0:
        shutil.copytree(folder / "run", folder / "again")
        shutil.rmtree(folder / "again" / "checkpoint-4")
    trainer.accelerator.wait_for_everyone()
    again, _ = random_trainer(splits, folder / "again")
    train_and_save(again)
    diverging, _ = random_trainer(splits, folder / "diverging")
    if rank == 1:
        break_step(diverging, 3, "loss")
    try:
        train_and_save(diverging)
    except NonFiniteError as error:
        (folder / f"said_{rank}.txt").write_text(str(error))
    trainer.end()


def launch(folder, processes, function):
    """Call a function of this file with the folder on several processes (gloo)."""
    (folder / "run.py").write_text(
        f"import sys\nfrom pathlib import Path\nsys.path[:0] = {[str(TESTS), str(TESTS / 'training')]!r}\nimport torch\n"
        "torch.set_num_threads(1)\ntorch.use_deterministic_algorithms(True, warn_only=True)\n"
        f"import test_runs\ntest_runs.{function.__name__}(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(folder / "run.py"), str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    launch(folder, 2, on_every_process)
    return folder


def train_once(folder):
    """Train on this process and the others."""
    trainer, _ = random_trainer(load_video_dataset(CLIPS, label_column="label"), folder / "run")
    train_and_save(trainer)
    trainer.end()


@pytest.mark.parametrize("stage", STAGES)
def test_only_the_process_that_saves_writes(stage, splits, tmp_path, monkeypatch):
    """`Trainer` calls `_save` on all processes."""
    trainer = make_trainer(stage, splits, tmp_path / "run")
    monkeypatch.setattr(type(trainer.args), "should_save", False)
    trainer.save_model(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


@pytest.mark.slow
def test_four_processes_are_one_for_the_same_global_batch(splits, tmp_path):
    launch(tmp_path, 4, train_once)
    alone, _ = random_trainer(splits, tmp_path / "alone", gradient_accumulation_steps=4)
    train_and_save(alone)
    four = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in load_file(tmp_path / "alone" / "model.safetensors").items():
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-5)


def test_processes_draw_differently_and_as_one_process_does(two_processes, splits, tmp_path):
    """The second small batch of one process draws what the second process draws."""
    first, second = (json.loads((two_processes / f"drawn_{rank}.json").read_text()) for rank in (0, 1))
    assert not set(first) & set(second)
    alone, noise = random_trainer(splits, tmp_path, gradient_accumulation_steps=2)
    train_and_save(alone)
    assert (noise.drawn[::2], noise.drawn[1::2]) == (first, second)
    double = load_file(two_processes / "run" / "model.safetensors")
    for name, value in load_file(tmp_path / "model.safetensors").items():
        torch.testing.assert_close(double[name], value, rtol=1e-4, atol=1e-5)


def test_two_processes_resume_exactly_and_one_goes_on_with_their_batch(two_processes, splits, tmp_path):
    whole = load_file(two_processes / "run" / "model.safetensors")
    assert_same(load_file(two_processes / "again" / "model.safetensors"), whole)
    shutil.copytree(two_processes / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    trainer, _ = random_trainer(splits, tmp_path / "run")
    train_and_save(trainer)
    assert trainer.args.gradient_accumulation_steps == 2
    for name, value in load_file(tmp_path / "run" / "model.safetensors").items():
        torch.testing.assert_close(whole[name], value, rtol=1e-4, atol=1e-5)


def test_all_processes_stop_when_one_diverges(two_processes):
    said = [(two_processes / f"said_{rank}.txt").read_text() for rank in (0, 1)]
    assert said[0] == said[1]
    rows = re.search(r"in step 4 \((.*)\), expected", said[0]).group(1)
    assert len(rows.split(", ")) == 2  # those of the process whose loss it was
    assert newest_checkpoint(two_processes / "diverging") == str(two_processes / "diverging" / "checkpoint-2")


def test_selections_of_the_tokenizer_do_not_depend_on_workers_and_resume_exactly(splits, tmp_path):
    """GAN, averages and three kinds of scores; also pictures of several clips a video."""

    def trainer_on(folder, **options):
        recipe = {
            "adversarial_weight": 0.1,
            "discriminator_channels": 4,
            "discriminator_multipliers": [2, 4],
            "ema_decay": 0.9,
        }
        recipe |= {
            "perceptual_weight": 0.0,
            "max_steps": 4,
            "save_strategy": "steps",
            "save_steps": 2,
            "topk_sigma_end": 0.01,
        }
        trainer = make_trainer("tokenizer", splits, folder, per_device_train_batch_size=2, **recipe, **options)
        trainer.data_collator = SelectionCollator(["learned", "random", "motion"], TOKENIZER.window_grid_size)
        for clips in (trainer.train_dataset, trainer.eval_dataset):
            clips.noise_size = trainer.data_collator.noise_size
        return trainer

    whole = trainer_on(tmp_path / "whole")
    train_and_save(whole)
    workers = trainer_on(tmp_path / "workers", dataloader_num_workers=2)
    train_and_save(workers)
    assert_same(weights(workers), weights(whole))
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    resumed = trainer_on(tmp_path / "resumed", dataloader_num_workers=2)
    train_and_save(resumed)
    assert_same(weights(resumed), weights(whole))
    assert_same(resumed.adversary.state_dict(), whole.adversary.state_dict())
    assert_same(resumed.averaged_model.state_dict(), whole.averaged_model.state_dict())


CHANGES = {
    "seed": {"seed": 1},
    "learning_rate": {"learning_rate": 0.5},
    "weight_decay": {"weight_decay": 0.5},
    "global_batch": {"per_device_train_batch_size": 4},
    "max_steps": {"max_steps": 6},
    "mixup_alpha": {"mixup_alpha": 0.4},
    "layer_decay": {"layer_decay": 0.5},
}
SAME = {
    "logging_steps": 2,
    "dataloader_num_workers": 1,
    "save_total_limit": 1,
    "report_to": "none",
    "eval_strategy": "steps",
}


def test_a_run_goes_on_only_with_its_settings_and_data(splits, tmp_path):
    options = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2}
    data = {"rows": 8, "encoder_mask": "tube"}
    train_and_save(make_trainer("classification", splits, tmp_path, **options), data)
    for name, change in CHANGES.items():
        trainer = make_trainer("classification", splits, tmp_path, **{**options, **change})
        with pytest.raises(
            ValueError,
            match=rf"Got .* other settings \((.*; )?{name} was .* and is .*\), expected the same: .*--allow_changes",
        ):
            train_and_save(trainer, data)
    trainer = make_trainer("classification", splits, tmp_path, **options)
    with pytest.raises(ValueError, match=r"\(rows was 8 and is 9; encoder_mask was 'tube' and is 'random'\)"):
        train_and_save(trainer, {"rows": 9, "encoder_mask": "random"})
    train_and_save(make_trainer("classification", splits, tmp_path, **options, **SAME), data)
    changed = make_trainer(
        "classification", splits, tmp_path, **{**options, "seed": 1, "max_steps": 3}, allow_changes=True
    )
    train_and_save(changed, data)
    assert changed.state.global_step == 3
    again = make_trainer("classification", splits, tmp_path, **{**options, "seed": 1, "max_steps": 3})
    train_and_save(again, data)  # the settings are those of the last run now


def test_the_global_batch_is_kept_or_refused(tmp_path):
    """A run of 8 videos a step on 4 processes that goes on with one."""
    args = LVMAEPreTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, base_learning_rate=1e-3)
    keep_global_batch(args, {"processes": 4, "settings": {"global_batch": 8}})
    assert args.gradient_accumulation_steps == 4
    assert run_settings(args)["global_batch"] == 8
    assert args.learning_rate == pytest.approx(1e-3 * 8 / 256)
    args = LVMAEPreTrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3)
    with pytest.raises(ValueError, match=r"Got 1 processes with batches of 3 videos .* or --num_processes 4\."):
        keep_global_batch(args, {"processes": 4, "settings": {"global_batch": 8}})
    keep_global_batch(
        args, {"processes": 1, "settings": {"global_batch": 8}}
    )  # a change of the batch is no such change
    assert run_settings(args)["global_batch"] == 3


def test_a_second_run_in_a_folder_is_refused(splits, tmp_path):
    (tmp_path / "run").mkdir()
    script = (
        "import fcntl, os, sys, time\nfile = open(sys.argv[1], 'a+')\nfcntl.lockf(file, fcntl.LOCK_EX)\n"
        "file.write(f'process {os.getpid()} on a host')\nfile.flush()\nprint('held', flush=True)\ntime.sleep(300)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "run" / ".lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        trainer = make_trainer("classification", splits, tmp_path / "run", max_steps=1)
        with pytest.raises(ValueError, match=rf"Got .*run, where process {holder.pid} on .* is training, expected"):
            train_and_save(trainer)
    finally:
        holder.kill()
        holder.wait()
    train_and_save(trainer)  # a killed process holds nothing


def test_a_run_holds_its_folder_alone(tmp_path):
    lock = "import fcntl, sys; fcntl.lockf(open(sys.argv[1]), fcntl.LOCK_SH | fcntl.LOCK_NB)"
    command = [sys.executable, "-c", lock, str(tmp_path / ".lock")]
    with sole_run(tmp_path, SimpleNamespace(is_main_process=True)):
        assert subprocess.run(command, capture_output=True, check=False).returncode == 1
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_the_explicit_learning_rate_wins(tmp_path):
    for kind in (LVMAEPreTrainingArguments, LVMAEClassificationArguments, FSQMagViTTrainingArguments):
        assert kind(output_dir=str(tmp_path), learning_rate=0.25).learning_rate == 0.25
        with pytest.raises(
            ValueError, match=r"Got learning_rate=0.25 and base_learning_rate=0.5, expected one of them"
        ):
            kind(output_dir=str(tmp_path), learning_rate=0.25, base_learning_rate=0.5)
    defaults = [
        kind(output_dir=str(tmp_path)).learning_rate
        for kind in (LVMAEPreTrainingArguments, LVMAEClassificationArguments)
    ]
    assert defaults == [1.5e-4 * 8 / 256, 5e-5]
    assert FSQMagViTTrainingArguments(output_dir=str(tmp_path)).learning_rate == 1e-4
    assert LVMAEPreTrainingArguments(output_dir=str(tmp_path)).logging_nan_inf_filter is False


def test_the_console_says_what_is_trained_and_at_which_rate(splits, tmp_path, capsys, recwarn):
    trainer = make_trainer("classification", splits, tmp_path, max_steps=3, learning_rate=0.125, layer_decay=0.5)
    trainer.train()
    size = sum(parameter.numel() for parameter in trainer.model.parameters()) / 1e6
    assert (
        f"Training on 8 videos of 8 classes, evaluating on 6: 8 frames of 32 x 32 pixels, {size:.2f} M of {size:.2f} M parameters, "
        "3 steps of 4 videos (4 x 1 accumulated x 1 processes), peak learning rate 0.125.\n"
    ) in capsys.readouterr().out
    logged = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert logged[0] == 0.125 * 0.5 * (1 + math.cos(math.pi / 3)) or logged[0] == 0.125
    assert not [warning for warning in recwarn if "pin_memory" in str(warning.message)]
    assert trainer.args.dataloader_pin_memory is torch.cuda.is_available()
