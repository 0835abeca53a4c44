"""The walls between modules, and the names that users may rely on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from builders import PROGRAM_FOLDERS

import transformers_lvmae


SOURCE = Path(transformers_lvmae.__file__).parent
# What each folder (or module of the top level) may import from the others; a folder's own files are always allowed.
ALLOWED: dict[str, set[str]] = {
    "models": set(),
    "files": set(),
    "command_line": {"files", "models.credentials"},
    "data": {"models", "command_line", "files"},
    "cost": {"models"},
    "sharing": {"models", "files"},
    "targets": {"models", "data", "files"},
    "evaluation": {"models", "data", "files"},
    "visualization": {"models", "targets"},
    "training": {"models", "targets", "evaluation.accuracy", "sharing.model_card", "command_line", "files"},
}
# Libraries that a folder must not import: `models` travels to the Hub, trainers take any model and any data.
FORBIDDEN: dict[str, set[str]] = {
    "models": {"datasets", "accelerate", "peft", "matplotlib"},
    "training": {"datasets", "peft"},
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
    """The package's own modules that a file imports ("models.masking"), and the top-level names of all others."""
    inside, outside = set(), set()
    package = path.relative_to(SOURCE).parent.parts if path.is_relative_to(SOURCE) else ()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            assert node.module, (
                f"{path}: write `from .module import name`, because remote code does not follow `from . import`"
            )
            inside.add(".".join([*package[: len(package) + 1 - node.level], node.module]))
    return inside, outside


def files_of(room: str) -> list[Path]:
    return sorted((SOURCE / room).glob("*.py")) or [SOURCE / f"{room}.py"]


def test_every_module_is_in_a_room_with_walls():
    assert {path.relative_to(SOURCE).parts[0].removesuffix(".py") for path in SOURCE.rglob("*.py")} == {
        "__init__",
        *ALLOWED,
    }


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_its_walls_let_through(room):
    for path in files_of(room):
        inside, outside = imported_modules(path)
        through = {name for name in inside if name.split(".")[0] != room}
        strangers = {name for name in through if not {name, name.split(".")[0]} & ALLOWED[room]}
        assert not strangers, f"{path} imports {strangers}"
        assert not {"transformers_lvmae", *FORBIDDEN.get(room, ())} & outside, path


def test_configurations_need_no_torch():
    for path in (SOURCE / "models").glob("configuration_*.py"):
        inside, outside = imported_modules(path)
        assert not inside | {"torch", "torchvision", "numpy"} & outside


def test_the_two_models_never_meet():
    for own, other in (("lvmae", "fsq_magvit"), ("fsq_magvit", "lvmae")):
        for kind in ("configuration", "modeling"):
            inside, _ = imported_modules(SOURCE / "models" / f"{kind}_{own}.py")
            assert not inside & {f"models.configuration_{other}", f"models.modeling_{other}"}


def test_a_room_says_what_lives_there_and_what_does_not():
    for path in SOURCE.rglob("*/__init__.py"):
        assert len(ast.get_docstring(ast.parse(path.read_text())).replace(".\n", ". ").split(". ")) >= 2, path


@pytest.mark.parametrize("path", [path for folder in PROGRAM_FOLDERS for path in sorted(folder.glob("*.py"))], ids=str)
def test_programs_import_only_their_neighbours(path):
    _, outside = imported_modules(path)
    others = {other.stem for folder in PROGRAM_FOLDERS if folder != path.parent for other in folder.glob("*.py")}
    assert not outside & others
    if path.parent.name in ("scripts", "studies"):
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
    assert "transformers_lvmae.models.modeling_lvmae" in loaded
    assert heavy & set(loaded) == set()


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        transformers_lvmae.Nothing  # noqa: B018
