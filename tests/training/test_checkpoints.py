"""Whole checkpoints: checksums, the newest whole one, deleting old ones, a full disk; and results that are never half."""

import errno
import json
import shutil
from pathlib import Path

import pytest
import torch
from builders import CLIPS, FIXTURES, assert_same, make_trainer, weights

from transformers_lvmae.data import load_video_dataset
from transformers_lvmae.training import checkpoints
from transformers_lvmae.training.base import train_and_save
from transformers_lvmae.training.checkpoints import (
    CHECKSUMS,
    delete_old_checkpoints,
    fault_of,
    newest_checkpoint,
    numbered_checkpoints,
    seal,
)


OPTIONS = {
    "max_steps": 4,
    "save_strategy": "steps",
    "save_steps": 1,
    "ema_decay": 0.9,
    "per_device_train_batch_size": 2,
}


@pytest.fixture(scope="module")
def splits():
    return load_video_dataset(CLIPS, label_column="label")


@pytest.fixture(scope="module")
def whole(splits, tmp_path_factory):
    """A run of four steps with a checkpoint of each, and its weights."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = make_trainer("classification", splits, folder, **OPTIONS)
    train_and_save(trainer)
    return folder, weights(trainer)


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr(checkpoints.logger, "warning", lines.append)
    return lines


def flip(path, place=0.5):
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 16
    path.write_bytes(data)


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FILES = [
    "model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "averaged_weights.pt",
    "trainer_state.json",
]
FILES += ["training_args.bin", "config.json", "video_preprocessor_config.json"]
DAMAGES = {f"{how.__name__} {name}": (how, name) for name in FILES for how in (Path.unlink, halve, flip)}
DAMAGES |= {f"empty {name}": (lambda path: path.write_bytes(b""), name) for name in FILES}
DAMAGES |= {"half checksums": (halve, CHECKSUMS), "no dict": (lambda path: path.write_text("[]"), CHECKSUMS)}
DAMAGES |= {"null": (lambda path: path.write_text("null"), "trainer_state.json")}
DAMAGES |= {"late flip": (lambda path: flip(path, 0.97), "model.safetensors")}


def test_every_damage_is_found_and_the_next_checkpoint_taken(whole, tmp_path, said):
    """Each of 40 damages of the newest checkpoint."""
    assert len(DAMAGES) >= 40
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder)
    assert newest_checkpoint(folder) == str(folder / "checkpoint-4")
    for kind, (damage, name) in DAMAGES.items():
        shutil.rmtree(folder / "checkpoint-4")
        shutil.copytree(whole[0] / "checkpoint-4", folder / "checkpoint-4")
        damage(folder / "checkpoint-4" / name)
        assert newest_checkpoint(folder) == str(folder / "checkpoint-3"), kind
        assert said.pop().startswith(f"Skipped {folder / 'checkpoint-4'}: "), kind


def test_a_run_goes_on_from_the_newest_whole_checkpoint_and_ends_as_if_nothing_had_been(whole, splits, tmp_path, said):
    shutil.copytree(whole[0], tmp_path / "run")
    flip(tmp_path / "run" / "checkpoint-4" / "optimizer.pt")
    (tmp_path / "run" / "checkpoint-3" / "scheduler.pt").unlink()
    for name in ("checkpoint-best", "checkpoint-12-backup"):
        shutil.copytree(whole[0] / "checkpoint-1", tmp_path / "run" / name)
    (tmp_path / "run" / "checkpoint-4" / "rng_state_1.pth").write_bytes(b"of another time")
    trainer = make_trainer("classification", splits, tmp_path / "run", **OPTIONS, save_total_limit=2)
    train_and_save(trainer)
    assert [line.split(": ", 1)[1] for line in said] == ["optimizer.pt is damaged.", "scheduler.pt is missing."]
    assert_same(weights(trainer), whole[1])
    assert fault_of(tmp_path / "run" / "checkpoint-4") is None
    assert not (tmp_path / "run" / "checkpoint-4" / "rng_state_1.pth").exists()
    names = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert names == {"checkpoint-best", "checkpoint-12-backup", "checkpoint-3", "checkpoint-4"}


def test_checkpoints_without_checksums_need_all_parts(tmp_path, said):
    """Version 0.1 wrote no checksums."""
    old = FIXTURES / "version_0_1" / "finetune" / "checkpoint-2"
    assert not (old / CHECKSUMS).exists()
    assert fault_of(old) is None
    parts = {"model.safetensors": "weights", "optimizer.pt": "optimizer", "scheduler.pt": "schedule"}
    for name, part in {**parts, "rng_state.pth": "random numbers"}.items():
        shutil.copytree(old, tmp_path / part / "checkpoint-2")
        (tmp_path / part / "checkpoint-2" / name).unlink()
        assert newest_checkpoint(tmp_path / part) is None
        assert said.pop().endswith(f"it has no {part}.")
    assert newest_checkpoint(tmp_path / "nothing") is None
    (tmp_path / "empty" / "checkpoint-3").mkdir(parents=True)
    assert (
        fault_of(tmp_path / "empty" / "checkpoint-3")
        == "trainer_state.json is missing, so it was not written to its end"
    )


def test_the_newest_checkpoint_has_the_largest_number(tmp_path):
    for step in (9, 10, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert [step for step, _ in numbered_checkpoints(tmp_path)] == [9, 10, 100]


def test_a_changed_card_is_no_damage(whole, tmp_path):
    shutil.copytree(whole[0] / "checkpoint-4", tmp_path / "checkpoint-4")
    (tmp_path / "checkpoint-4" / "README.md").write_bytes(b"\xff\xfe mine")
    assert fault_of(tmp_path / "checkpoint-4") is None


def test_a_given_checkpoint_must_be_whole(whole, splits, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    halve(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    given = str(tmp_path / "run" / "checkpoint-2")
    trainer = make_trainer("classification", splits, tmp_path / "run", **OPTIONS, resume_from_checkpoint=given)
    with pytest.raises(
        ValueError, match=r"Got .*checkpoint-2, from which no run can go on \(model.safetensors is damaged\)"
    ):
        train_and_save(trainer)


def test_old_checkpoints_stay_until_the_new_one_is_whole(splits, tmp_path, monkeypatch):
    """Killed right before the checksums of the second checkpoint: the first is still there."""

    def killed(folder):
        if Path(folder).name == "checkpoint-2":
            raise KeyboardInterrupt
        seal(folder)

    monkeypatch.setattr("transformers_lvmae.training.guarding.seal", killed)
    trainer = make_trainer("classification", splits, tmp_path, **OPTIONS, save_total_limit=1)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert newest_checkpoint(tmp_path) is not None
    assert fault_of(tmp_path / "checkpoint-1") is None


def test_the_best_and_the_last_checkpoint_and_a_person_s_are_never_deleted(splits, tmp_path):
    (tmp_path / "checkpoint-12-backup").mkdir()
    options = {**OPTIONS, "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    trainer = make_trainer("classification", splits, tmp_path, **options, greater_is_better=False, save_total_limit=1)
    trainer.train()
    best = Path(trainer.state.best_model_checkpoint)
    assert best.name != "checkpoint-4"  # else nothing would be tested
    assert {path.name for path in tmp_path.glob("checkpoint-*")} == {best.name, "checkpoint-4", "checkpoint-12-backup"}


def test_the_oldest_checkpoints_are_deleted_beside_those_to_keep(tmp_path):
    def left(limit, *keep):
        for step in range(1, 6):
            (tmp_path / f"checkpoint-{step}").mkdir(exist_ok=True)
        delete_old_checkpoints(tmp_path / "checkpoint-5", limit, keep)
        return [step for step, _ in numbered_checkpoints(tmp_path)]

    assert left(None) == [1, 2, 3, 4, 5]
    assert left(2) == [4, 5]
    assert left(3, None, tmp_path / "checkpoint-2") == [2, 4, 5]
    assert left(1, tmp_path / "checkpoint-2") == [2, 5]


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 9856 vs 9748"),
    ],
)
def test_a_full_disk_leaves_a_run_that_can_go_on(fault, whole, splits, tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, path, *args, **kwargs):
        calls.append(path)
        if "checkpoint-3" in str(path) and "optimizer" in str(path):
            raise fault
        save(state, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        trainer = make_trainer("classification", splits, tmp_path, **OPTIONS)
        with pytest.raises(
            OSError, match=r"Got a full disk at .*checkpoint-3, expected .*: free .* goes on from .*checkpoint-2\."
        ) as raised:
            train_and_save(trainer)
        assert raised.value.errno == errno.ENOSPC
    assert not (tmp_path / "checkpoint-3").exists()
    trainer = make_trainer("classification", splits, tmp_path, **OPTIONS)
    train_and_save(trainer)
    assert_same(weights(trainer), whole[1])


def test_damaged_results_and_cards_are_no_reason_not_to_go_on(whole, splits, tmp_path):
    shutil.copytree(whole[0], tmp_path / "run")
    for name in ("train_results.json", "eval_results.json", "all_results.json", "run.json"):
        halve(tmp_path / "run" / name)
    (tmp_path / "run" / "README.md").write_bytes(b"\xff\xfe")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    trainer = make_trainer("classification", splits, tmp_path / "run", **OPTIONS)
    train_and_save(trainer)
    assert_same(weights(trainer), whole[1])
    found = json.loads((tmp_path / "run" / "all_results.json").read_text())
    assert {"eval_accuracy", "train_loss"} <= found.keys()
    assert (tmp_path / "run" / "README.md").read_bytes() == b"\xff\xfe"
    assert not list((tmp_path / "run").glob(".*.part"))
