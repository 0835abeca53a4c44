"""A folder of the wrong model is refused, by the function and by every script that takes a folder."""

import pytest
from builders import CLIPS, load_script, tiny_config, tiny_tokenizer_config

from transformers_lvmae import FSQMagViTModel, LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from transformers_lvmae.command_line import run
from transformers_lvmae.sharing.loading import check_head, check_model_type, load_classifier, load_model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tokenizer, an autoencoder and a classifier, and a folder with none of them."""
    root = tmp_path_factory.mktemp("models")
    FSQMagViTModel(tiny_tokenizer_config()).save_pretrained(root / "tokenizer")
    LVMAEForPreTraining(tiny_config()).save_pretrained(root / "pretrain")
    LVMAEForVideoClassification(tiny_config()).save_pretrained(root / "finetune")
    (root / "empty").mkdir()
    return root


def test_only_models_of_the_type_are_loaded(folders):
    assert isinstance(load_model(LVMAEForVideoClassification, folders / "pretrain"), LVMAEForVideoClassification)
    assert isinstance(load_model(FSQMagViTModel, folders / "tokenizer"), FSQMagViTModel)
    for model_class in (LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel):
        with pytest.raises(
            ValueError, match=r"Got '.*tokenizer' with model_type 'fsq_magvit', expected lvmae \(LVMAE.*: give"
        ):
            load_model(model_class, folders / "tokenizer")
    with pytest.raises(ValueError, match=r"Got '.*empty' with model_type None, expected lvmae"):
        check_model_type(folders / "empty", LVMAEModel)
    with pytest.raises(
        ValueError, match=r"Got '.*missing', which has no readable config.json .* expected a folder or Hub id"
    ):
        check_model_type(folders / "missing", LVMAEModel)
    check_head(folders / "finetune", LVMAEForVideoClassification)
    with pytest.raises(
        ValueError, match=r"Got '.*pretrain' with LVMAEForPreTraining, expected LVMAEForVideoClassification"
    ):
        check_head(folders / "pretrain", LVMAEForVideoClassification)


def test_a_classifier_without_its_weights_is_refused(tmp_path):
    model = LVMAEForVideoClassification(tiny_config())
    weights = {name: weight for name, weight in model.state_dict().items() if not name.startswith("classifier")}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match=r"without classifier.bias, classifier.weight, expected a trained classifier"):
        load_classifier(tmp_path)


DATA = ["--dataset_name", str(CLIPS), "--eval_split", "test", "--output_dir"]
COMMANDS = {
    "pretrain": [*DATA, "OUT", "--model_name_or_path", "tokenizer"],
    "pretrain ": [*DATA, "OUT", "--tokenizer", "pretrain"],
    "finetune": [*DATA, "OUT", "--model_name_or_path", "tokenizer"],
    "train_tokenizer": [*DATA, "OUT", "--model_name_or_path", "pretrain"],
    "train_tokenizer ": [*DATA, "OUT", "--image_tokenizer", "finetune"],
    "cache_targets": [*DATA, "OUT", "--tokenizer", "pretrain"],
    "cache_targets ": [*DATA, "OUT", "--model_name_or_path", "tokenizer"],
    "evaluate_classifier": ["--model_name_or_path", "pretrain", "--dataset_name", str(CLIPS), "--output_dir", "OUT"],
    "extract_features": ["tokenizer", str(CLIPS), "OUT"],
    "classify": ["pretrain", "video.mp4"],
    "visualize_tokens": ["pretrain", "video.mp4", "OUT"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_script_refuses_the_folder_of_another_model(name, folders, monkeypatch, tmp_path):
    named = {path.name: str(path) for path in folders.iterdir()} | {"OUT": str(tmp_path / "out")}
    monkeypatch.setattr("sys.argv", ["program", *(named.get(word, word) for word in COMMANDS[name])])
    with pytest.raises(SystemExit, match=r"^error: Got '.*, expected .*: "):
        run(load_script(name.strip()).main)
    assert not (tmp_path / "out" / "config.json").exists()
