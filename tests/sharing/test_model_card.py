"""Model cards: the metadata for the Hub, the cards of a run, and cards changed by hand, which are never overwritten."""

import ast
import html
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from builders import CLIPS, load_script, tiny_config, tiny_tokenizer_config
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig, get_peft_model

from transformers_lvmae import LVMAEClassificationArguments, LVMAEClassificationTrainer, LVMAEForVideoClassification
from transformers_lvmae.data import VideoClips, load_video_dataset, processor_for
from transformers_lvmae.sharing.model_card import (
    ModelCardFacts,
    command_line,
    may_write_card,
    one_line,
    write_model_card,
)
from transformers_lvmae.training.base import train_and_save


FACTS = ModelCardFacts(
    "dives",
    finetuned_from="user/base",
    dataset="user/diving48",
    command="python scripts/finetune.py --learning_rate 1e-3",
    hyperparameters={"learning_rate": 1e-3},
    results={
        "train": {"train_loss": 0.5, "train_runtime": 3.0},
        "eval": {"eval_accuracy": 0.75, "eval_runtime": 2.0, "epoch": 3.0},
        "test": {"test_accuracy": 0.5, "test_samples": 8},
    },
)


def write(folder, facts=FACTS, config=None, architecture="LVMAEForVideoClassification"):
    return write_model_card(folder, config or tiny_config(), architecture, facts)


def test_the_hub_reads_metrics_data_base_model_and_licence(tmp_path):
    assert write(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "video-classification"
    assert {"lvmae", "video-classification"} <= set(card.data.tags)
    assert card.data.base_model == "user/base"
    assert card.data.datasets == ["user/diving48"]
    found = {(item.dataset_split, item.metric_type): item.metric_value for item in card.data.eval_results}
    assert found == {("eval", "accuracy"): 0.75, ("test", "accuracy"): 0.5}
    assert {item.dataset_type for item in card.data.eval_results} == {"user/diving48"}
    for text in (
        FACTS.command,
        "| test | accuracy | 0.5 |",
        "| train | loss | 0.5 |",
        "| learning_rate | 0.001 |",
        "8 frames",
    ):
        assert text in card.content
    assert "runtime" not in card.content


def test_folders_here_are_no_ids_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    facts = ModelCardFacts("tokenizer", dataset=str(tmp_path / "data"), results={"eval": {"eval_psnr": 30.0}})
    assert write(tmp_path, facts, tiny_tokenizer_config(), "FSQMagViTModel")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets is None
    assert card.data.base_model is None
    assert card.data.pipeline_tag is None
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("data", "psnr", 30.0)
    monkeypatch.chdir(tmp_path.parent)
    assert write(tmp_path, replace(facts, dataset=f"{tmp_path.name}/data"), tiny_tokenizer_config(), "FSQMagViTModel")
    assert ModelCard.load(tmp_path / "README.md").data.datasets is None


def test_one_line_has_no_control_characters():
    assert one_line("a\x00b\x1b[31m \r\n\u2028c\u200b") == "a b [31m c"


def test_our_own_card_is_renewed_and_anybody_elses_is_not(tmp_path):
    path = tmp_path / "README.md"
    assert write(tmp_path)
    assert write(tmp_path, ModelCardFacts("renewed"))
    assert "# renewed" in path.read_text()
    for changed in (path.read_text().replace("# renewed", "# mine"), path.read_text() + "P.S.\n", "# By hand\n"):
        path.write_text(changed)
        assert not may_write_card(tmp_path)
        assert not write(tmp_path)
        assert path.read_text() == changed


def test_the_command_is_what_a_shell_takes_without_the_token():
    arguments = ["scripts/finetune.py", "--config_overrides", '{"num_frames": 8}', "--hub_token", "hf_x", "--seed", "1"]
    assert command_line(arguments) == """python scripts/finetune.py --config_overrides '{"num_frames": 8}' --seed 1"""
    arguments = ["a.py", "--hub-token=hf_x", "--push_to_hub", "--push_to_hub_token", "hf_x"]
    assert command_line(arguments, num_processes=4) == "accelerate launch --num_processes 4 a.py --push_to_hub"
    assert command_line(["-c"]) is None


def test_the_command_has_no_passwords():
    arguments = [
        "a.py",
        "--dataset_name",
        "https://user:secret@host/x?sig=secret",
        "--api-key",
        "secret",
        "--seed",
        "1",
    ]
    assert command_line(arguments) == "python a.py --dataset_name 'https://***@host/x?sig=***' --seed 1"
    arguments = ["a.py", "--password=secret", "--x", "hf_AbCdEfGhIjKlMnOpQrSt"]
    assert command_line(arguments) == "python a.py --x '***'"


NASTY = [
    "two\n---\nlicense: evil\n---\nlines",
    "a | b <script>alert(1)</script> & [link](http://evil) `code` *bold*",
    "key: [value, {x",
    "quote \" and ' and \\ and \x00 and \u2028 end",
    "{{ 7 * 7 }} {% raw %} #x",
    "https://user:secret@host/x",
]


@pytest.mark.parametrize("name", NASTY)
@pytest.mark.parametrize("library", ["transformers", "peft"])
def test_names_cannot_break_a_card(name, library, tmp_path):
    command = f"python a.py --name '{name}'\n```\n<b>"
    facts = replace(
        FACTS,
        model_name=name,
        finetuned_from=name,
        dataset=name,
        command=command,
        hyperparameters={name: name},
        results={"eval": {f"eval_{name}": 0.5}},
        library_name=library,
    )
    assert write(tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    assert "secret" not in text
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    shown = one_line(name)
    assert card.data.model_name == shown
    (result,) = card.data.eval_results
    assert result.metric_value == 0.5
    outside = re.sub(r"(?ms)^(````*)(\w*)\n.*?^\1$", "", card.text)  # without blocks of code
    assert outside.count("```") == 0
    assert "<script>" not in outside
    assert "<b>" not in outside
    assert re.search(r"(?<!\\)\]\(http", outside) is None
    # What a reader sees is the name.
    seen = html.unescape(re.sub(r"\\([\\`*\[\]|])", r"\1", outside))
    assert f"# {shown}\n" in seen
    assert f"| {shown} | {shown} |" in seen
    tables = [line for line in outside.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in tables} == {3, 4}
    if library == "peft":
        code = card.text.split("```python\n")[1].split("\n```")[0]
        calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
        assert shown in [node.value for node in calls]


def make_trainer(folder, model=None, **arguments):
    splits = load_video_dataset(CLIPS, label_column="label")
    model = model or LVMAEForVideoClassification(tiny_config(num_labels=8))
    processor = processor_for(model.config)
    arguments = LVMAEClassificationArguments(
        str(folder), max_steps=1, use_cpu=True, disable_tqdm=True, report_to="none", save_steps=1, **arguments
    )
    rows = splits["test"].select(range(2))
    clips = VideoClips(rows, processor, model.config.num_frames, label_column="label")
    return LVMAEClassificationTrainer(
        model, arguments, train_dataset=clips, eval_dataset=clips, processing_class=processor
    )


def test_a_trainer_writes_a_card_at_every_save(tmp_path):
    trainer = make_trainer(tmp_path)
    train_and_save(trainer, dataset="user/clips")
    card = ModelCard.load(tmp_path / "README.md")
    accuracy = json.loads((tmp_path / "eval_results.json").read_text())["eval_accuracy"]
    found = {item.metric_type: item.metric_value for item in card.data.eval_results}
    assert found["accuracy"] == pytest.approx(accuracy, abs=1e-6)
    assert card.data.datasets == ["user/clips"]
    assert "| train_batch_size | 8 |" in card.content
    assert (tmp_path / "checkpoint-1" / "README.md").exists()
    (tmp_path / "README.md").write_text("# Mine\n")
    trainer.save_model()
    trainer.create_model_card()
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_an_adapters_card_says_so(tmp_path):
    base = LVMAEForVideoClassification(tiny_config(num_labels=8))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], modules_to_save=["classifier"]))
    trainer = make_trainer(tmp_path, model)
    trainer.save_model()
    trainer.create_model_card()
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.library_name == "peft"
    assert "PeftModel.from_pretrained(base" in card.content
    assert 'pipeline("video-classification", model="PATH_OR_ID"' not in card.content  # which needs the base merged
    assert "`LVMAEForVideoClassification`" in card.content
    assert "More Information Needed" not in card.content


def test_the_trainer_uploads_model_processor_card_and_results(tmp_path, monkeypatch):
    uploads = []

    def create_repo(self, repo_id, **kwargs):
        return type("RepoUrl", (str,), {"repo_id": repo_id})(repo_id)

    def upload_folder(self, *, repo_id, folder_path, **kwargs):
        uploads.append({path.name: path.read_bytes() for path in Path(folder_path).iterdir() if path.is_file()})

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    trainer = make_trainer(tmp_path, push_to_hub=True, hub_model_id="user/name", hub_strategy="end")
    train_and_save(trainer, dataset="user/clips")
    files = {"README.md", "config.json", "model.safetensors", "video_preprocessor_config.json", "eval_results.json"}
    assert files <= set(uploads[-1])
    assert b"| eval | accuracy |" in uploads[-1]["README.md"]


def test_the_fine_tuning_script_puts_the_test_accuracy_on_the_card(tmp_path, monkeypatch):
    overrides = {
        name: getattr(tiny_config(), name)
        for name in (
            "image_size",
            "patch_size",
            "num_frames",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
        )
    }
    arguments = ["--dataset_name", str(CLIPS), "--eval_split", "test", "--test_split", "test", "--max_steps", "1"]
    arguments += ["--config_overrides", json.dumps(overrides), "--report_to", "none", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["scripts/finetune.py", *arguments, "--hub_token", "hf_secret"])
    load_script("finetune").main()
    card = ModelCard.load(tmp_path / "README.md")
    accuracy = json.loads((tmp_path / "test_results.json").read_text())["test_accuracy"]
    found = {item.dataset_split: item.metric_value for item in card.data.eval_results if item.metric_type == "accuracy"}
    assert found["test"] == pytest.approx(accuracy, abs=1e-6)
    assert command_line() in card.content
    assert "hf_secret" not in card.content
