"""scripts/report.py of three tiny runs, with a test video that cannot be read before the others."""

import json
import shutil

import pytest
import torch
from builders import CLIPS, load_script, tiny_config, tiny_tokenizer_config

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining, LVMAEForVideoClassification
from transformers_lvmae.data import processor_for
from transformers_lvmae.training.run_folder import write_settings


@pytest.fixture
def run(tmp_path):
    """The folder of a run whose three stages have drawn weights and made-up results."""
    torch.manual_seed(0)
    models = {"tokenizer": FSQMagViTModel(tiny_tokenizer_config()), "pretrain": LVMAEForPreTraining(tiny_config())}
    models["finetune"] = LVMAEForVideoClassification(tiny_config())
    for name, model in models.items():
        model.save_pretrained(tmp_path / "run" / name)
        processor_for(model.config).save_pretrained(tmp_path / "run" / name)
    figures = {"eval_psnr": 20.0, "eval_psnr_kept_10": 15.0, "eval_psnr_first_frame": 18.0}
    (tmp_path / "run" / "tokenizer" / "eval_results.json").write_text(json.dumps(figures))
    history = {"log_history": [{"loss": 2.0}, {"loss": 1.0}]}
    (tmp_path / "run" / "pretrain" / "trainer_state.json").write_text(json.dumps(history))
    test = {"test_accuracy": 0.5, "test_classes": 3, "test_samples": 4, "test_samples_total": 5}
    (tmp_path / "run" / "finetune" / "test_results.json").write_text(json.dumps(test))
    quarter = tmp_path / "run" / "finetune-quarter"
    tiny_config(token_keep_ratio=0.25, token_selection="motion").save_pretrained(quarter)
    write_settings(quarter, {"model_name_or_path": "runs/pretrain"}, processes=1)
    (quarter / "test_results.json").write_text(json.dumps({**test, "test_accuracy": 0.75}))
    return tmp_path / "run"


def test_a_broken_first_video_is_passed_over(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "data" / "test").mkdir(parents=True)
    for number in range(3):
        shutil.copy(CLIPS / "test" / f"clip_{number:05d}.mp4", tmp_path / "data" / "test" / f"{number}.mp4")
    (tmp_path / "data" / "test" / "0.mp4").write_bytes(b"no video")
    (tmp_path / "data" / "test" / "metadata.csv").write_text("file_name,label\n0.mp4,$a$\n1.mp4,$\\b$\n2.mp4,c\n")
    monkeypatch.setattr("sys.argv", ["report.py", str(run), str(tmp_path / "data")])
    load_script("report").main()
    printed = capsys.readouterr().out
    assert "1.mp4 is $\\b$; the pipeline says" in printed
    assert "| test clips | 4 of 5 |" in printed
    assert "| finetune | all | random weights | 0.500 |" in printed
    assert "| finetune-quarter | 1/4, motion | pretrain | 0.750 |" in printed
    assert sorted(path.name for path in (run / "pictures").iterdir()) == ["clip_1.png", "clip_2.png"]
