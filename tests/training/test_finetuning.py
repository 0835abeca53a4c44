"""scripts/finetune.py: adapters of one base model, saved alone, resumed and merged, and the script's other options."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from builders import CLIPS, SCRIPTS, assert_same, load_script, tiny_config, tiny_tokenizer_config
from peft import LoHaConfig, LoraConfig, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
    default_data_collator,
    pipeline,
)

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEClassificationArguments,
    LVMAEClassificationTrainer,
    LVMAEConfig,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
)
from transformers_lvmae.command_line import CommandLine
from transformers_lvmae.data import (
    ByteVideoClips,
    ClipAugmentation,
    VideoClips,
    VideoReading,
    load_video_dataset,
    processor_for,
)


@pytest.fixture(scope="module")
def script():
    return load_script("finetune")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A pre-trained model: encoder, decoder and no classifier."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    LVMAEForPreTraining(tiny_config(num_labels=2)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """Options that choose tokens by the scorer of a tokenizer."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("tokenizer")
    FSQMagViTModel(tiny_tokenizer_config()).save_pretrained(folder)
    return ["--tokenizer", str(folder), "--token_keep_ratio", "0.5"]


@pytest.fixture(scope="module")
def halves(tmp_path_factory):
    """A second dataset: the same videos with two classes of their own."""
    folder = tmp_path_factory.mktemp("halves")
    splits = load_video_dataset(CLIPS, label_column="label")
    named = splits.map(lambda row: {"label": "high" if row["label"] > 3 else "low"}, features=datasets.Features(
        {**splits["train"].features, "label": datasets.Value("string")}
    ))  # fmt: skip
    named.save_to_disk(folder)
    return folder


def run(script, monkeypatch, output, dataset, base, *options):
    """Four steps with LoRA, all the recipe on; the test split's metrics."""
    command = ["--model_name_or_path", str(base), "--dataset_name", str(dataset), "--output_dir", str(output)]
    command += ["--eval_split", "test", "--test_split", "test", "--max_steps", "4", "--save_steps", "2"]
    command += ["--per_device_train_batch_size", "4", "--learning_rate", "0.05", "--use_cpu", "true"]
    command += ["--report_to", "none", "--disable_tqdm", "true", "--lora", "--lora_rank", "2", *options]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *command])
    script.main()
    return json.loads((output / "test_results.json").read_text())


TINY = {
    "image_size": 32,
    "patch_size": 8,
    "num_frames": 8,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
RECIPE = "--mixup_alpha 0.8 --cutmix_alpha 1.0 --label_smoothing_factor 0.1 --rand_augment_num_ops 2 --random_erasing_prob 0.25"
RECIPE += " --min_crop_scale 0.5 --num_clips 2 --activation_checkpointing"


def load_adapted(base, folder):
    """As the README has it: the base with the class names of the adapter's config, and the adapter on top."""
    model = AutoModelForVideoClassification.from_pretrained(base, config=AutoConfig.from_pretrained(folder))
    return PeftModel.from_pretrained(model, folder).eval()


def accuracy(model, dataset):
    rows = load_video_dataset(dataset, label_column="label")["test"]
    clips = VideoClips(rows, processor_for(model.config), 8, label_column="label")
    with torch.no_grad():
        hits = [
            model(clip["pixel_values_videos"][None]).logits.argmax().item() == clip["labels"] for clip in map(clips.__getitem__, range(len(clips)))
        ]  # fmt: skip
    return sum(hits) / len(hits)


def test_one_base_is_adapted_to_several_datasets(script, base, halves, chosen, tmp_path, monkeypatch, capsys):
    """Each adapter is saved alone, loads on top of the untouched base, judges as the script said, and can be merged.

    One brings the scorer that the base does not have.
    """
    before = (base / "model.safetensors").read_bytes()
    adapters = (("clips", CLIPS, 8, RECIPE.split()), ("halves", halves, 2, []), ("chosen", halves, 2, chosen))
    for name, dataset, classes, options in adapters:
        output = tmp_path / name
        metrics = run(script, monkeypatch, output, dataset, base, *options)
        printed = capsys.readouterr().out
        adapter = load_file(output / "adapter_model.safetensors")
        scorer = {key.split("scorer.")[1]: adapter.pop(key) for key in list(adapter) if "token_selector.scorer." in key}
        assert_same(
            scorer, dict(FSQMagViTModel.from_pretrained(chosen[1]).scorer.state_dict()) if name == "chosen" else {}
        )
        assert all("lora_" in key or "classifier" in key for key in adapter)
        assert not (output / "model.safetensors").exists()
        model = load_adapted(base, output)
        assert model.config.num_labels == metrics["test_classes"] == classes
        assert accuracy(model, dataset) == pytest.approx(metrics["test_accuracy"])

        trained = sum(value.numel() for value in adapter.values())
        size = json.loads((output / "memory_results.json").read_text())
        assert size["trainable_parameters"] == trained
        assert size["trainable_share"] == pytest.approx(trained / size["parameters"])
        assert size["trainable_share"] < 0.05
        assert f"({trained / size['parameters']:.2%})" in printed
        assert size["peak_memory_mib"] > 100

        clips = torch.randn(2, 8, 3, 32, 32)
        logits = model(clips).logits
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(clips).logits, logits, rtol=1e-4, atol=1e-6)
        merged.save_pretrained(output / "merged")
        AutoVideoProcessor.from_pretrained(output).save_pretrained(output / "merged")
        classifier = pipeline("video-classification", model=str(output / "merged"), device="cpu")
        video = str(next((CLIPS / "test").glob("*.mp4")))
        answers = classifier(video, top_k=classes)
        assert {answer["label"] for answer in answers} == set(model.config.id2label.values())
        snippet = (output / "README.md").read_text().split("```python\n")[1].split("```")[0]
        names: dict[str, Any] = {}
        exec(snippet.replace("PATH_OR_ID", str(output)).replace("clip.mp4", video), names)
        (best,) = names["classifier"](video, top_k=1)
        assert best["label"] == answers[0]["label"]
        assert best["score"] == pytest.approx(answers[0]["score"], rel=1e-4)
        alone = LVMAEForVideoClassification.from_pretrained(output / "merged").eval()
        assert torch.equal(alone(clips).logits, merged(clips).logits)
        untouched = AutoModelForVideoClassification.from_pretrained(base, config=model.config).eval()
        key = "lvmae.encoder.layers.0.attention.q_proj.weight"
        assert not torch.equal(alone.state_dict()[key], untouched.state_dict()[key])
    assert (base / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("chooses", [False, True])
def test_a_resumed_adapter_equals_the_uninterrupted_one(script, base, chosen, chooses, tmp_path, monkeypatch):
    options = [*RECIPE.split(), "--ema_decay", "0.5", "--max_train_samples", "8", *(chosen if chooses else [])]
    run(script, monkeypatch, tmp_path / "whole", CLIPS, base, *options)
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "resumed" / "checkpoint-2")
    run(script, monkeypatch, tmp_path / "resumed", CLIPS, base, *options)
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "resumed"))
    halfway = load_file(tmp_path / "whole" / "checkpoint-2" / "adapter_model.safetensors")
    for key, value in whole.items():
        assert torch.equal(resumed[key], value)
        assert torch.equal(halfway[key], value) == ("scorer" in key)


def test_class_attention_is_trained_whole(script, tmp_path):
    """It has no weights to start from; no adapter is put inside."""
    model = LVMAEForVideoClassification(tiny_config(pooling="class_attention"))
    adapted = script.add_adapter(model, script.AdapterArguments(lora=True, lora_rank=2).config())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    whole = {name for name in trained if ".modules_to_save." in name}
    assert {name.split(".modules_to_save.")[0].split(".")[-1] for name in whole} == {"classifier", "pooler"}
    assert {name.split(".lora_")[0].split(".")[-1] for name in trained - whole} == {"q_proj", "v_proj"}
    assert all(".encoder.layers." in name for name in trained - whole)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if name in trained:
                parameter.add_(0.1 * torch.randn_like(parameter))
    clips = torch.randn(2, 8, 3, 32, 32)
    logits = adapted.eval()(clips).logits
    adapted.save_pretrained(tmp_path)
    plain = {name: value for name, value in model.state_dict().items() if "lora_" not in name}
    fresh = LVMAEForVideoClassification(tiny_config(pooling="class_attention"))
    fresh.load_state_dict({name.replace("base_layer.", "").replace("original_module.", ""): value for name, value in plain.items()
                           if "modules_to_save" not in name})  # fmt: skip
    loaded = PeftModel.from_pretrained(fresh, tmp_path).eval()
    assert torch.equal(loaded(clips).logits, logits)
    torch.testing.assert_close(loaded.merge_and_unload()(clips).logits, logits, rtol=1e-4, atol=1e-6)


def test_any_config_of_peft_will_do(script, tmp_path):
    LoraConfig(
        r=3, target_modules=["fc1"], modules_to_save=["classifier", "fc_norm"], inference_mode=True
    ).save_pretrained(tmp_path)
    loha = '{"peft_type": "LOHA", "r": 2, "target_modules": ["fc2"]}'
    for given, kind, layer in ((str(tmp_path), LoraConfig, "fc1"), (loha, LoHaConfig, "fc2")):
        config = script.AdapterArguments(peft_config=given).config()
        assert isinstance(config, kind)
        adapted = script.add_adapter(LVMAEForVideoClassification(tiny_config()), config)
        trained = [name for name, parameter in adapted.named_parameters() if parameter.requires_grad]
        assert sum(f".{layer}." in name for name in trained) >= 4
        assert all(f".{layer}." in name or ".modules_to_save." in name for name in trained)
        assert any(".classifier.modules_to_save." in name for name in trained)
    assert script.AdapterArguments().config() is None
    with pytest.raises(ValueError, match="Got lora and peft_config, expected one of them"):
        script.AdapterArguments(lora=True, peft_config=loha).config()


def test_adapters_learn_by_their_layer(script, tmp_path):
    model = script.add_adapter(
        LVMAEForVideoClassification(tiny_config()),
        script.AdapterArguments(lora=True, lora_target_modules=["q_proj", "projection"]).config(),
    )
    arguments = LVMAEClassificationArguments(
        output_dir=str(tmp_path), report_to="none", use_cpu=True, learning_rate=1.0, layer_decay=0.5
    )
    trainer = LVMAEClassificationTrainer(model, arguments)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    prefix = "base_model.model."
    assert rates[prefix + "classifier.modules_to_save.default.weight"] == 1.0
    assert rates[prefix + "lvmae.encoder.layers.1.attention.q_proj.lora_A.default.weight"] == 0.5
    assert rates[prefix + "lvmae.encoder.layers.0.attention.q_proj.lora_B.default.weight"] == 0.25
    assert rates[prefix + "lvmae.embeddings.patch_embeddings.projection.lora_A.default.weight"] == 0.125
    assert set(rates) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


BENCHMARK_RUNS = ("diving48", "epic_kitchens_100", "something_something_v2", "finegym288", "kinetics400")
STUB = '#!/bin/sh\nprintf "%s\\0" "$@" >> "$RECORD"\nprintf "\\n\\0" >> "$RECORD"\n'


def commands_of(name, tmp_path):
    """The commands of scripts/runs/NAME.sh, with python and accelerate replaced by something that writes them down."""
    for program in ("python", "accelerate"):
        (tmp_path / program).write_text(STUB)
        (tmp_path / program).chmod(0o755)
    folders = {key: str(tmp_path / key.lower()) for key in ("ANNOTATIONS", "VIDEOS", "PRETRAINED")}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RECORD": str(tmp_path / "record"), **folders}
    copy = tmp_path / "scripts" / "runs" / f"{name}.sh"  # so that it looks for its data, and finds none, in tmp_path
    copy.parent.mkdir(parents=True)
    shutil.copy(SCRIPTS / "runs" / f"{name}.sh", copy)
    subprocess.run(["bash", str(copy)], env=environment, check=True)
    lines = (tmp_path / "record").read_text().split("\n\0")[:-1]
    commands = {}
    for line in lines:
        words = line.split("\0")[:-1]
        script = next(
            number for number, word in enumerate(words) if word.startswith("scripts/") and word.endswith(".py")
        )
        commands[Path(words[script]).stem] = words[script + 1 :]
    return commands


@pytest.mark.parametrize("name", BENCHMARK_RUNS)
def test_benchmark_runs_are_commands_that_the_scripts_take(name, script, tmp_path, monkeypatch):
    commands = commands_of(name, tmp_path)
    assert list(commands) == ["prepare_dataset", "finetune", "evaluate_classifier"]
    prepared = load_script("prepare_dataset").parse_args(commands["prepare_dataset"])
    assert prepared.name == name

    evaluation = load_script("evaluate_classifier")
    (evaluated,) = CommandLine(evaluation.EvaluationArguments).parse_args_into_dataclasses(
        commands["evaluate_classifier"]
    )
    types = (script.FineTuningModelArguments, script.LabelledVideoDataArguments, script.AdapterArguments)
    parser = CommandLine((*types, LVMAEClassificationArguments))
    on_cpu = ["--use_cpu", "true", "--output_dir", str(tmp_path)]
    model, data, _, training = parser.parse_args_into_dataclasses([*commands["finetune"], *on_cpu])
    assert evaluated.dataset_name == data.dataset_name == str(prepared.output)
    assert (evaluated.label_column, evaluated.frame_stride) == (data.label_column, data.frame_stride)
    config = LVMAEConfig(**model.overrides(LVMAEConfig))
    paper = {128: 0.25, 64: 0.0}  # tubes dropped by ViT-L at 128 frames, by any model at 64
    assert config.tube_drop_ratio == paper[config.num_frames]
    recipe = (data.rand_augment_num_ops, data.random_erasing_prob, data.num_clips, training.mixup_alpha)
    assert recipe == (4, 0.25, 2, 0.8)
    assert (training.cutmix_alpha, training.label_smoothing_factor, config.drop_path_rate > 0) == (1.0, 0.1, True)
    videos = 4 * training.gradient_accumulation_steps  # clips of one video count once
    assert training.learning_rate == pytest.approx(training.base_learning_rate * videos / 256)


def test_augmentation_options_reach_the_clips(script):
    options = ["--dataset_name", str(CLIPS), "--rand_augment_num_ops", "2", "--rand_augment_magnitude", "3"]
    options += ["--random_erasing_prob", "0.25", "--min_crop_scale", "0.5", "--horizontal_flip"]
    (arguments,) = CommandLine(script.LabelledVideoDataArguments).parse_args_into_dataclasses(options)
    rows = load_video_dataset(CLIPS)["train"]
    clips = VideoClips(rows, processor_for(tiny_config()), 8, training=True, augmentation=arguments.augmentation())
    assert [step.transforms[0].magnitude for step in clips.recolor.transforms] == [3, 3]
    assert clips.erase.p == 0.25
    assert clips.crop.scale == (0.5, 1.0)
    assert clips.augmentation.horizontal_flip


def test_clips_travel_as_bytes_and_give_the_same_pixels(tmp_path):
    """With RandAugment, random erasing and two clips a video; a batch has about a quarter of the bytes."""
    rows = load_video_dataset(CLIPS, label_column="label")["train"].select(range(6))
    config = tiny_config()
    augmentation = ClipAugmentation(0.5, (), True, 2, 7, 0.5)
    options = {
        "training": True,
        "augmentation": augmentation,
        "reading": VideoReading(num_clips=2),
        "label_column": "label",
    }
    args = LVMAEClassificationArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    sent, batches = [], []
    for kind in (VideoClips, ByteVideoClips):
        clips = kind(rows, processor_for(config), config.num_frames, **options)
        trainer = LVMAEClassificationTrainer(
            LVMAEForVideoClassification(config), args, train_dataset=clips, processing_class=clips.processor
        )
        batch = default_data_collator(clips.__getitems__(list(range(6))))
        sent.append(sum(value.nbytes for value in batch.values()))
        batches.append(trainer._prepare_inputs(batch))
    floats, restored = batches
    assert restored.keys() == floats.keys()
    assert torch.equal(restored["labels"], floats["labels"])
    assert torch.equal(restored["pixel_values_videos"], floats["pixel_values_videos"])
    assert len({float(clip[0, 0, 0, 0]) for clip in floats["pixel_values_videos"]}) > 3
    assert sent[1] < 0.4 * sent[0]  # 0.25 and the noise of 8 frames


def finetune(script, monkeypatch, output, *options):
    """Two steps of all weights on the fixture's clips; options may be given again."""
    command = ["--dataset_name", str(CLIPS), "--output_dir", str(output), "--eval_split", "test", "--max_steps", "2"]
    command += ["--test_split", "test", "--max_eval_samples", "2", "--max_train_samples", "8", "--save_steps", "1"]
    command += ["--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none", "--learning_rate"]
    command += ["0.01", "--layer_decay", "1", "--weight_decay", "0.5", "--disable_tqdm", "true", *map(str, options)]
    monkeypatch.setattr(sys, "argv", ["finetune.py", *command])
    script.main()
    return json.loads((output / "test_results.json").read_text())


def test_fine_tuning_on_chosen_tokens(script, base, chosen, tmp_path, monkeypatch, capsys):
    """The scorer comes from the tokenizer, stays as it is, and travels with the classifier, which needs nothing else."""
    metrics = finetune(script, monkeypatch, tmp_path / "first", "--model_name_or_path", base, *chosen)
    assert "Workers choose the tokens" in capsys.readouterr().out
    model = LVMAEForVideoClassification.from_pretrained(tmp_path / "first").eval()
    scorer = FSQMagViTModel.from_pretrained(chosen[1]).scorer
    assert_same(dict(model.token_scorer.state_dict()), dict(scorer.state_dict()))
    assert (model.config.token_keep_ratio, model.config.scorer_patch_size) == (0.5, 4)
    assert accuracy(model, CLIPS) == pytest.approx(metrics["test_accuracy"])
    trained = json.loads((tmp_path / "first" / "memory_results.json").read_text())
    frozen = sum(weight.numel() for weight in scorer.parameters())
    assert trained["parameters"] - trained["trainable_parameters"] == frozen

    # A run that goes on from a checkpoint draws the same tokens, with mixing too.
    options = ["--model_name_or_path", tmp_path / "first", "--token_selection", "learned", "--token_keep_ratio", "0.25"]
    options += ["--mixup_alpha", "0.8", "--config_overrides", '{"token_random_ratio": 0.1}']
    for mixing in (options, [*options, "--mixup_alpha", "0"]):
        name = f"again{len(mixing)}"
        finetune(script, monkeypatch, tmp_path / name, *mixing)
        assert ("Workers send whole clips" in capsys.readouterr().out) == (mixing is options)
        shutil.copytree(tmp_path / name / "checkpoint-1", tmp_path / f"{name}_resumed" / "checkpoint-1")
        finetune(script, monkeypatch, tmp_path / f"{name}_resumed", *mixing)
        whole, resumed = (load_file(tmp_path / folder / "model.safetensors") for folder in (name, f"{name}_resumed"))
        assert_same(whole, resumed)
        assert_same(
            {key: value for key, value in whole.items() if "scorer" in key},
            {f"lvmae.token_selector.scorer.{key}": value for key, value in scorer.state_dict().items()},
        )
        capsys.readouterr()


def test_scorers_that_are_missing_or_not_used(script, base, chosen):
    def load(**fields):
        arguments = script.FineTuningModelArguments(**fields)
        return arguments.load(**arguments.overrides(LVMAEConfig))

    for start in ({"model_name_or_path": str(base)}, {"config_overrides": json.dumps(TINY)}):
        with pytest.raises(ValueError, match=r"token_selection='learned', expected a trained scorer: give a tokenizer"):
            load(token_keep_ratio=0.25, **start)
        with pytest.raises(ValueError, match=r"Got a tokenizer for token_keep_ratio=1.0"):
            load(tokenizer=chosen[1], **start)
        with pytest.raises(ValueError, match=r"Got a tokenizer for token_keep_ratio=0.25 and token_selection='motion'"):
            load(tokenizer=chosen[1], token_keep_ratio=0.25, token_selection="motion", **start)
        with pytest.raises(ValueError, match=r"Got token_selection and token_keep_ratio=1, expected a ratio"):
            load(token_selection="motion", **start)
        assert load(token_selection="motion", token_keep_ratio=0.25, **start).token_scorer is None
    with pytest.raises(ValueError, match=r"Got token_keep_ratio=1.5, expected a number in \(0, 1\]"):
        load(token_keep_ratio=1.5)
