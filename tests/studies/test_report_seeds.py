"""studies/report_seeds.py: the table that compares methods of fine-tuning over several seeds."""

import json
import sys

import numpy as np
import pytest
from builders import load_script
from PIL import Image


def write_run(folder, accuracy, share):
    folder.mkdir(parents=True)
    (folder / "test_results.json").write_text(json.dumps({"test_accuracy": accuracy}))
    (folder / "memory_results.json").write_text(json.dumps({"trainable_share": share}))
    logs = [{"epoch": epoch, "loss": 2.0 - epoch * accuracy} for epoch in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*logs, {"epoch": 2, "eval_loss": 1.0}]}))


def test_means_and_deviations_over_seeds(tmp_path, monkeypatch, capsys):
    for seed, accuracy in enumerate((0.5, 0.6, 0.7)):
        write_run(tmp_path / f"scratch_{seed}", accuracy, 1.0)
    write_run(tmp_path / "lora_2", 0.55, 0.046)
    write_run(tmp_path / "scratch_big_0", 0.9, 1.0)  # another name
    script = load_script("report_seeds")
    monkeypatch.setattr(sys, "argv", ["report_seeds.py", str(tmp_path), "scratch", "lora"])
    script.main()
    text = (tmp_path / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert "| scratch | 100.0% | 0.500 | 0.600 | 0.700 | 0.600 | 0.100 |" in text
    pixels = np.asarray(Image.open(tmp_path / "losses.png").convert("RGB")).reshape(-1, 3)
    for colour in ([31, 119, 180], [255, 127, 14]):  # a line of each way
        assert (pixels == colour).all(axis=1).sum() > 100
    assert "| lora | 4.6% |  |  | 0.550 | 0.550 |  |" in text


def test_a_name_without_runs_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected at least one: run finetune"):
        load_script("report_seeds").results_of(tmp_path, "scratch")
