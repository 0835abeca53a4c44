"""The walls between modules, and the names that users may rely on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transformers_lvmae


SOURCE = Path(transformers_lvmae.__file__).parent
ALLOWED = {
    "accuracy": set(),
    "accuracy_metric": {"accuracy"},
    "augmentation": set(),
    "benchmarks": set(),
    "broken_videos": set(),
    "configuration_fsq_magvit": set(),
    "configuration_lvmae": set(),
    "cost": {"configuration_fsq_magvit", "configuration_lvmae"},
    "data": {
        "augmentation",
        "broken_videos",
        "importance",
        "masking",
        "sampling",
        "video_datasets",
        "video_io",
        "video_processing_lvmae",
        "video_seeking",
    },
    "demo_data": {"video_io"},
    "evaluation": {"accuracy", "configuration_lvmae", "data", "video_io"},
    "export": {
        "configuration_fsq_magvit",
        "configuration_lvmae",
        "modeling_fsq_magvit",
        "modeling_lvmae",
        "video_processing_lvmae",
    },
    "features": {"data", "video_io"},
    "image_processing_lvmae": {"image_processing_pil_lvmae"},
    "image_processing_pil_lvmae": set(),
    "importance": set(),
    "masking": set(),
    "measure": set(),
    "modelcard": set(),
    "modeling_fsq_magvit": {"configuration_fsq_magvit", "masking"},
    "modeling_lvmae": {"configuration_lvmae", "masking", "recompute", "targets"},
    "pictures": {"masking", "visualization"},
    "probe": {"configuration_lvmae", "modeling_lvmae"},
    "recompute": set(),
    "sampling": {"video_io"},
    "targets": set(),
    "tokenizer_losses": set(),
    "tokenizer_training": {"masking", "tokenizer_losses", "trainer", "training_args"},
    "target_cache": {"data", "importance", "masking", "tokens", "video_io"},
    "tokens": set(),
    "trainer": {
        "accuracy",
        "augmentation",
        "importance",
        "masking",
        "modelcard",
        "tokens",
        "training_args",
    },
    "training_args": set(),
    "video_datasets": set(),
    "video_io": {"video_seeking"},
    "video_processing_lvmae": {"image_processing_pil_lvmae", "video_io"},
    "video_seeking": set(),
    "video_streams": {"data", "video_io"},
    "visualization": {"video_io"},
}
PUBLIC = {
    "FSQMagViTConfig",
    "FSQMagViTModel",
    "FSQMagViTTrainer",
    "FSQMagViTTrainingArguments",
    "LVMAEClassificationArguments",
    "LVMAEClassificationTrainer",
    "LVMAEConfig",
    "LVMAEForPreTraining",
    "LVMAEForVideoClassification",
    "LVMAEImageProcessor",
    "LVMAEImageProcessorPil",
    "LVMAEModel",
    "LVMAEPreTrainer",
    "LVMAEPreTrainingArguments",
    "LVMAEVideoProcessor",
}


def imported_modules(path: Path) -> tuple[set[str], set[str]]:
    """The package's own modules that a file imports, and the top-level names of all others."""
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            # `from .module import name` is the one form that transformers copies for remote code.
            assert node.level == 1, f"{path.name}: relative imports must be of the form `from .module import name`"
            assert node.module, f"{path.name}: `from . import name` is not followed by remote code"
            inside.add(node.module.split(".")[0])
    return inside, outside


@pytest.mark.parametrize("path", sorted(SOURCE.glob("*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_what_its_wall_lets_through(path):
    inside, outside = imported_modules(path)
    assert "transformers_lvmae" not in outside
    if path.stem != "__init__":
        assert inside <= ALLOWED[path.stem]
    if path.stem.startswith("configuration_"):
        assert not {"torch", "torchvision", "numpy"} & outside
    if path.stem == "trainer":
        assert "peft" not in outside
    if path.stem == "benchmarks":
        assert "torch" not in outside
    if path.stem != "accuracy_metric":  # for a script, scripts/evaluate.py stands in the library's place
        assert "evaluate" not in outside


@pytest.mark.parametrize("path", sorted((SOURCE.parents[1] / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_scripts_do_not_import_each_other(path):
    _, outside = imported_modules(path)
    assert not outside & {other.stem for other in path.parent.glob("*.py")}


def test_public_names_are_these_and_all_can_be_imported():
    assert set(transformers_lvmae.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(transformers_lvmae, name).__name__ == name


def test_importing_brings_nothing_that_only_training_or_pictures_need():
    """What takes seconds to import is imported where it is used."""
    heavy = {
        "datasets",
        "evaluate",
        "matplotlib",
        "mujoco",
        "pandas",
        "peft",
        "pyarrow",
        "sklearn",
        "transformers.trainer",
    }
    program = "import sys, transformers_lvmae; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    assert "transformers_lvmae.modeling_lvmae" in loaded
    assert heavy & set(loaded) == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        transformers_lvmae.Nothing  # noqa: B018
