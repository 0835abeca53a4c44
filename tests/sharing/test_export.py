"""Folders with their own code, loaded where this package cannot be imported; ONNX and torch.export with the same logits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from builders import CLIPS, load_script, tiny_config, tiny_tokenizer_config
from huggingface_hub import HfApi
from transformers import AttentionInterface, pipeline
from transformers.dynamic_module_utils import get_imports
from transformers.exporters import DynamoExporter
from transformers.exporters.configs import DynamoConfig

from transformers_lvmae import (
    FSQMagViTModel,
    LVMAEForPreTraining,
    LVMAEForVideoClassification,
    LVMAEModel,
)
from transformers_lvmae.data import processor_for
from transformers_lvmae.sharing.export import attention_by_parts, export_onnx, load_any_model, save_with_code
from transformers_lvmae.sharing.model_card import ModelCardFacts, write_model_card


CHOSEN = {"token_keep_ratio": 0.25, "scorer_patch_size": 4}
SELECTIONS = [{}, CHOSEN, {**CHOSEN, "token_selection": "motion", "token_random_ratio": 0.1}]
CLIP = CLIPS / "test" / "clip_00000.mp4"
NAMES = {0: "down", 1: "left", 2: "right"}
export_model = load_script("export_model").main


def make_model(model_class, **overrides):
    torch.manual_seed(0)
    if model_class is FSQMagViTModel:
        return FSQMagViTModel(tiny_tokenizer_config(**overrides)).eval()
    labels = {"id2label": NAMES, "label2id": {name: number for number, name in NAMES.items()}}
    return model_class(tiny_config(**labels, **overrides)).eval()


def save_checkpoint(model, folder):
    model.save_pretrained(folder)
    processor_for(model.config, do_normalize=not isinstance(model, FSQMagViTModel)).save_pretrained(folder)


# Runs where `transformers_lvmae` cannot be found, as if it was not installed.
ELSEWHERE = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers_lvmae":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
from pathlib import Path
import torch
from transformers import AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification, AutoVideoProcessor, pipeline

folder, clip = Path(sys.argv[1]), sys.argv[2]
found = {}
trust = {"trust_remote_code": True}

def inputs_of(name, **settings):
    processor = AutoVideoProcessor.from_pretrained(folder / name, **trust)
    return processor(clip, num_frames=8, do_sample_frames=True, return_tensors="pt", **settings)

with torch.no_grad():
    for pooling in ("mean", "class_attention"):
        classifier = AutoModelForVideoClassification.from_pretrained(folder / pooling, **trust)
        found[pooling] = classifier(**inputs_of(pooling)).logits
    found["encoder"] = AutoModel.from_pretrained(folder / "pretraining", **trust)(**inputs_of("pretraining")).last_hidden_state
    masks = torch.load(folder / "masks.pt")
    model = AutoModelForPreTraining.from_pretrained(folder / "pretraining", **trust)
    found["pretraining"] = model(**inputs_of("pretraining"), **masks).logits
    tokens = AutoModel.from_pretrained(folder / "tokenizer", **trust).encode(inputs_of("tokenizer")["pixel_values_videos"])
    found["codes"], found["scores"] = tokens.codes, tokens.importance_scores
    classifier.save_pretrained(folder / "again")
    again = AutoModelForVideoClassification.from_pretrained(folder / "again", **trust)
    found["again"] = again(**inputs_of("class_attention")).logits
classify = pipeline("video-classification", model=str(folder / "mean"), top_k=5, **trust)
found["pipeline"] = classify(clip)
assert len(classify([clip, clip, clip], batch_size=2)) == 3
assert "transformers_lvmae" not in sys.modules
torch.save(found, folder / "found.pt")
"""


def test_exported_folders_load_without_this_package_bit_for_bit(tmp_path):
    models = {
        "mean": make_model(LVMAEForVideoClassification),
        "class_attention": make_model(LVMAEForVideoClassification, pooling="class_attention", **CHOSEN),
        "pretraining": make_model(LVMAEForPreTraining),
        "tokenizer": make_model(FSQMagViTModel, image_size=32),
    }
    for name, model in models.items():
        checkpoint = tmp_path / "checkpoints" / name
        save_checkpoint(model, checkpoint)
        export_model([str(checkpoint), str(tmp_path / name)])
        # Loaded weights lie otherwise in memory than new ones, which moves the last bit of a product with a single row.
        models[name] = load_any_model(checkpoint).eval()
    processor = processor_for(models["mean"].config)
    inputs = processor(str(CLIP), num_frames=8, do_sample_frames=True, return_tensors="pt")
    pixels = processor(str(CLIP), num_frames=8, do_sample_frames=True, do_normalize=False, return_tensors="pt")
    masks = {
        name: torch.rand(1, 64).argsort() < count for name, count in (("bool_masked_pos", 32), ("bool_decoded_pos", 16))
    }
    torch.save(masks, tmp_path / "masks.pt")
    with torch.no_grad():
        tokens = models["tokenizer"].encode(pixels["pixel_values_videos"])
        logits = {name: models[name](**inputs).logits for name in ("mean", "class_attention")}
        expected = {
            **logits,
            "encoder": models["pretraining"].lvmae(**inputs).last_hidden_state,
            "pretraining": models["pretraining"](**inputs, **masks).logits,
            "codes": tokens.codes,
            "scores": tokens.importance_scores,
            "again": logits["class_attention"],
        }

    # As many threads as here: how a product is shared out moves its last bit.
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path), str(CLIP)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "is not supported" not in run.stderr
    found = torch.load(tmp_path / "found.pt")
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    scores = {answer["label"]: answer["score"] for answer in found["pipeline"]}
    assert list(scores.values()) == sorted(scores.values(), reverse=True)
    assert list(scores) == [NAMES[number] for number in expected["mean"][0].argsort(descending=True).tolist()]
    torch.testing.assert_close(
        torch.tensor(list(scores.values())), expected["mean"][0].softmax(0).sort(descending=True)[0]
    )


def test_the_folder_holds_what_the_code_imports_and_nothing_more(tmp_path):
    model = make_model(LVMAEForVideoClassification)
    save_with_code(model, tmp_path, processor_for(model.config))
    assert {path.stem for path in tmp_path.glob("*.py")} == {
        "configuration_lvmae",
        "image_processing_lvmae",
        "image_processing_pil_lvmae",
        "masking",
        "modeling_lvmae",
        "recomputation",
        "fsq",
        "positions",
        "token_scores",
        "token_selection",
        "video_io",
        "video_processing_lvmae",
        "video_seeking",
        "video_sources",
        "decoder_process",
        "credentials",
    }
    # transformers depends on these three itself; its video processors import torchvision.
    packages = {name for path in tmp_path.glob("*.py") for name in get_imports(path)} - {
        "fsspec",
        "huggingface_hub",
        "numpy",
    }
    assert packages - sys.stdlib_module_names == {"transformers", "torch", "einops", "av"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["auto_map"]["AutoModelForVideoClassification"] == "modeling_lvmae.LVMAEForVideoClassification"
    # Nothing is left behind that would make later saves carry code too.
    model.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))


def test_with_this_package_an_exported_folder_is_its_own_class(tmp_path):
    model = make_model(LVMAEForVideoClassification)
    save_with_code(model, tmp_path, processor_for(model.config))
    classifier = pipeline("video-classification", model=str(tmp_path), top_k=2)
    assert type(classifier.model) is LVMAEForVideoClassification
    assert len(classifier(str(CLIP))) == 2


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="Got a Linear, expected one of"):
        save_with_code(torch.nn.Linear(1, 1), tmp_path)
    save_checkpoint(make_model(LVMAEModel), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"LVMAEModel"', '"Other"'))
    with pytest.raises(ValueError, match="Got a checkpoint of Other, expected one of"):
        load_any_model(tmp_path)


@pytest.fixture
def hub(monkeypatch):
    """What the Hub would get: {repository: {path: bytes}}; reading is answered from the same."""
    repositories = {}

    def create_repo(self, repo_id, exist_ok=False, **kwargs):
        repositories.setdefault(repo_id, {})
        return type("RepoUrl", (str,), {"repo_id": repo_id})(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, ignore_patterns=None, **kwargs):
        for path in sorted(Path(folder_path).rglob("*")):
            name = path.relative_to(folder_path)
            if path.is_file() and not any(name.match(pattern) for pattern in ignore_patterns or []):
                repositories[repo_id][str(name)] = path.read_bytes()
        return f"https://huggingface.co/{repo_id}"

    def hf_hub_download(self, repo_id, filename, local_dir=None, **kwargs):
        path = Path(local_dir, filename)
        path.write_bytes(repositories[repo_id][filename])
        return str(path)

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    monkeypatch.setattr(HfApi, "file_exists", lambda self, repo_id, name, **kwargs: name in repositories[repo_id])
    monkeypatch.setattr(HfApi, "hf_hub_download", hf_hub_download)
    return repositories


def test_push_to_hub_uploads_weights_config_processor_card_and_code(hub, tmp_path):
    checkpoint = tmp_path / "finetune"
    model = make_model(LVMAEForVideoClassification)
    save_checkpoint(model, checkpoint)
    write_model_card(checkpoint, model.config, type(model).__name__, ModelCardFacts("finetune", dataset="demo"))
    export_model([str(checkpoint), str(tmp_path / "out"), "--push_to_hub", "user/name"])
    files = hub["user/name"]
    assert {
        "README.md",
        "config.json",
        "model.safetensors",
        "video_preprocessor_config.json",
        "modeling_lvmae.py",
    } <= set(files)
    assert files["model.safetensors"] == (checkpoint / "model.safetensors").read_bytes()
    assert files["README.md"] == (checkpoint / "README.md").read_bytes()


def test_the_script_writes_onnx_where_it_is_asked_to(tmp_path, monkeypatch):
    script, exported = load_script("export_model"), []
    monkeypatch.setattr(script, "export_onnx", lambda model, folder: exported.append((type(model), folder)))
    save_checkpoint(make_model(LVMAEModel), tmp_path / "checkpoint")
    for options in ([], ["--onnx"]):
        script.main([str(tmp_path / "checkpoint"), str(tmp_path / "out"), *options])
    assert exported == [(LVMAEModel, tmp_path / "out" / "onnx")]


def test_a_card_that_somebody_wrote_on_the_hub_stays(hub, tmp_path):
    hub["user/name"] = {"README.md": b"# Mine\n"}
    save_checkpoint(make_model(FSQMagViTModel), tmp_path / "checkpoint")
    export_model([str(tmp_path / "checkpoint"), str(tmp_path / "out"), "--push_to_hub", "user/name"])
    assert hub["user/name"]["README.md"] == b"# Mine\n"
    assert "modeling_fsq_magvit.py" in hub["user/name"]


@pytest.mark.parametrize("fields", SELECTIONS)
def test_torch_export_gives_the_same_logits_for_any_number_of_clips(fields):
    model = make_model(LVMAEForVideoClassification, pooling="class_attention", **fields)
    shapes = {"pixel_values_videos": {0: torch.export.Dim("batch")}}
    exported = DynamoExporter().export(
        model, {"pixel_values_videos": torch.randn(2, 8, 3, 32, 32)}, config=DynamoConfig(dynamic_shapes=shapes)
    )
    for batch_size in (1, 5):
        clips = torch.randn(batch_size, 8, 3, 32, 32)
        with torch.no_grad():
            assert torch.equal(exported.program.module()(pixel_values_videos=clips).logits, model(clips).logits)


def onnx_logits(path, clips):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(["logits"], {"pixel_values_videos": clips.numpy()})[0])


@pytest.mark.parametrize("fields", [{}, {"pooling": "class_attention"}, *SELECTIONS[1:]])
def test_onnx_gives_the_same_logits_for_any_number_of_clips(fields, tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # Positions matter to these logits: a graph that lost them would differ.
    model = make_model(LVMAEForVideoClassification, **fields)
    implementation = model.config._attn_implementation
    path = export_onnx(model, tmp_path)
    assert model.config._attn_implementation == implementation
    for batch_size in (1, 3):
        clips = torch.randn(batch_size, 8, 3, 32, 32)
        with torch.no_grad():
            expected = model(clips).logits
            assert (model(clips.flip(1)).logits - expected).abs().max() > 1e-3
        torch.testing.assert_close(onnx_logits(path, clips), expected, rtol=1e-5, atol=1e-6)


def test_attention_by_parts_is_attention(monkeypatch):
    monkeypatch.setattr("transformers_lvmae.sharing.export.QUERIES_AT_ONCE", 10)  # 64 tokens: six parts and a rest
    model = make_model(LVMAEForVideoClassification, pooling="class_attention")
    clips = torch.randn(2, 8, 3, 32, 32)
    query, key, value = torch.randn(3, 2, 4, 64, 8)
    attended, _ = attention_by_parts(model, query, key, value, scaling=0.3)
    expected = (0.3 * query @ key.mT).softmax(dim=-1) @ value
    torch.testing.assert_close(attended, expected.transpose(1, 2), rtol=1e-5, atol=1e-6)
    AttentionInterface.register("by_parts", attention_by_parts)
    with torch.no_grad():
        expected = model(clips).logits
        model.set_attn_implementation("by_parts")
        torch.testing.assert_close(model(clips).logits, expected, rtol=1e-5, atol=1e-6)


PEAK = """
import json, sys, time, torch
def report(**values):
    peak = next(int(line.split()[1]) / 2**20 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(json.dumps({"peak_gib": peak, "cpu_seconds": time.process_time(), **values}))
clips = torch.randn(1, 128, 3, 224, 224, generator=torch.Generator().manual_seed(0))
"""
EXPORT_REAL = f"""{PEAK}
from transformers_lvmae import LVMAEConfig, LVMAEForVideoClassification
from transformers_lvmae.sharing.export import export_onnx
torch.manual_seed(0)
model = LVMAEForVideoClassification(LVMAEConfig(num_labels=48)).eval()
with torch.no_grad():
    logits = model(clips).logits.tolist()
export_onnx(model, sys.argv[1])
report(logits=logits)
"""
RUN_REAL = f"""{PEAK}
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", options, providers=["CPUExecutionProvider"])
report(logits=session.run(["logits"], {{"pixel_values_videos": clips.numpy()}})[0].tolist())
"""


@pytest.mark.slow
def test_onnx_of_128_frames_in_real_size(tmp_path):
    """ViT-B, 12,544 tokens: exported and run in a process of its own, memory measured."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    found = {}
    for step, program in {"export": EXPORT_REAL, "run": RUN_REAL}.items():
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        run = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        found[step] = json.loads(run.stdout.splitlines()[-1])
        print(step, found[step])
    assert found["export"]["peak_gib"] < 4
    assert found["run"]["peak_gib"] < 6
    torch.testing.assert_close(
        torch.tensor(found["run"]["logits"]), torch.tensor(found["export"]["logits"]), rtol=1e-3, atol=1e-4
    )
