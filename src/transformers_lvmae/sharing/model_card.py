"""The README.md of a model folder: what the model is, its data and command, its results and its license.

A card ends with a digest of its text. If the digest is missing or does not fit, a person wrote or changed the card. Such a card is not
overwritten.
"""

import hashlib
import html
import json
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging

from ..files import write_aside
from ..models.credentials import SECRET_NAME, mask_credentials


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
TEMPLATE = Path(__file__).with_name("model_card_template.md")
_MARK = re.compile(r"\n<!-- Written by transformers-lvmae, [0-9a-f]{64}: .* -->\n$")
# Entries of a run's results that are not metrics.
_NO_METRIC = re.compile(r"runtime|per_second|epoch|samples|classes|total_flos|steps|preparation_time|memory|mem_")
_PIPELINE_TAGS = {
    "LVMAEModel": "feature-extraction",
    "LVMAEForPreTraining": "feature-extraction",
    "LVMAEForVideoClassification": "video-classification",
}


@dataclass
class ModelCardFacts:
    """The facts of a card that are not in the config. Fields that are None or empty are left out.

    Args:
        model_name: title of the card.
        finetuned_from: folder or Hub id of the initial weights.
        dataset: folder or Hub id of the data.
        command: as [`command_line`] returns it.
        hyperparameters: settings of the training.
        results: for each split ("train", "eval", "test"), the numbers of its `*_results.json`.
        library_name: "peft" for an adapter.
    """

    model_name: str
    finetuned_from: str | None = None
    dataset: str | None = None
    command: str | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    results: dict[str, dict[str, float]] = field(default_factory=dict)
    license: str = "apache-2.0"
    language: str | None = None
    tags: Sequence[str] = ()
    library_name: str = "transformers"


def one_line(text: str) -> str:
    """Return a text without credentials, line breaks and control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in mask_credentials(text)).split())


def markdown_text(value: Any) -> str:
    """Return Markdown that shows a value as it is, in one line: no HTML, links, code or new cells of a table."""
    return re.sub(r"([\\`*\[\]|])", r"\\\1", html.escape(one_line(str(value)), quote=False))


def command_line(arguments: Sequence[str] | None = None, num_processes: int = 1) -> str | None:
    """Return the running command as a shell takes it, without passwords and tokens; None if no script runs."""
    arguments = list(sys.argv if arguments is None else arguments)
    if not arguments[0].endswith(".py"):
        return None
    shown, secret = [], False
    for argument in arguments:
        is_secret = re.fullmatch(rf"(?i)--({SECRET_NAME})", argument.split("=")[0]) is not None
        if not secret and not is_secret:
            shown.append(mask_credentials(argument))
        secret = is_secret and "=" not in argument
    launcher = "python" if num_processes == 1 else f"accelerate launch --num_processes {num_processes}"
    return f"{launcher} {shlex.join(shown)}"


def may_write_card(folder: str | os.PathLike) -> bool:
    """Return True if a folder has no card, or a card that this module wrote and nobody changed."""
    path = Path(folder) / CARD_NAME
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8", errors="replace")
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) in mark.group()


def write_model_card(folder: str | os.PathLike, config: Any, architecture: str, facts: ModelCardFacts) -> bool:
    """Write README.md and return True, unless a person wrote or changed the existing one.

    Args:
        config: `LVMAEConfig` or `FSQMagViTConfig`.
        architecture: name of the model's class.
    """
    path = Path(folder) / CARD_NAME
    if not may_write_card(folder):
        logger.warning(f"{path} was written or changed by hand and is not overwritten: delete it to get a new card.")
        return False
    facts = replace(
        facts,
        model_name=one_line(facts.model_name),
        finetuned_from=facts.finetuned_from and one_line(facts.finetuned_from),
        dataset=facts.dataset and one_line(facts.dataset),
        command=facts.command and mask_credentials(facts.command),
    )
    ticks = [len(run) for run in re.findall("`+", facts.command or "")]
    card = ModelCard.from_template(
        card_metadata(config, architecture, facts),
        template_path=str(TEMPLATE),
        facts=facts,
        fence="`" * max(3, 1 + max(ticks, default=0)),  # longer than what the command holds
        text=markdown_text,
        quoted=json.dumps,
        architecture=architecture,
        auto_class="AutoModelForPreTraining" if architecture == "LVMAEForPreTraining" else "AutoModel",
        description=_description(config, architecture),
        metrics=_metrics(facts),
        origin={
            "Data": facts.dataset,
            "Started from": facts.finetuned_from,
            "License": facts.license,
            "Software": ", ".join(map(_with_version, ("transformers-lvmae", "transformers", "torch"))),
        },
    )
    text = str(card).rstrip("\n") + "\n"
    mark = f"\n<!-- Written by transformers-lvmae, {_digest(text)}: a changed card is never overwritten. -->\n"
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_aside(path, text + mark)
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card_metadata(config: Any, architecture: str, facts: ModelCardFacts) -> ModelCardData:
    """Return the metadata that the Hub reads: license, tags, data, base model, and the metrics as model-index."""
    task = _PIPELINE_TAGS.get(architecture)
    tags = ["video", config.model_type, *([task] if task == "video-classification" else []), *facts.tags]
    metrics, dataset_id = _metrics(facts), _hub_id(facts.dataset)
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name=facts.library_name,
        pipeline_tag=task,
        tags=list(dict.fromkeys(tags)),
        base_model=_hub_id(facts.finetuned_from),
        datasets=[dataset_id] if dataset_id else None,
        metrics=["accuracy"] if any(name == "accuracy" for _, name, _ in metrics) else None,
        model_name=facts.model_name,
        eval_results=[
            EvalResult(
                task_type=task or "video-to-video",
                dataset_type=dataset_id or "video",
                dataset_name=os.path.basename(os.path.normpath(facts.dataset)) if facts.dataset else "unnamed",
                dataset_split=split,
                metric_type=name,
                metric_name=name,
                metric_value=value,
            )
            for split, name, value in metrics
            if split != "train"
        ]
        or None,
    )


def _hub_id(name: str | None) -> str | None:
    """Return `name` if it is no local folder and looks like an id on the Hub, else None."""
    is_id = name is not None and not os.path.exists(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return name if is_id else None


def _metrics(facts: ModelCardFacts) -> list[tuple[str, str, float]]:
    """Return (split, metric, value) of each metric; its name has no prefix of the split."""
    return [
        (split, one_line(name.removeprefix(f"{split}_")), round(value, 6))
        for split, values in facts.results.items()
        for name, value in values.items()
        if isinstance(value, (int, float)) and not _NO_METRIC.search(name)
    ]


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # training from a clone that is not installed must not fail at its first save
        return f"{package}, not installed"


def _description(config: Any, architecture: str) -> str:
    height, width = config.frame_size
    grid = " x ".join(map(str, config.grid_size))
    clips = f"clips of {config.num_frames} frames of {height} x {width} pixels ({grid} tokens)"
    if config.model_type == "fsq_magvit":
        levels = ", ".join(map(str, config.levels))
        return f"`{architecture}`, the adaptive tokenizer of LVMAE: FSQ levels {levels}; {clips}."
    classes = f", {config.num_labels} classes" if architecture == "LVMAEForVideoClassification" else ""
    return (
        f"`{architecture}`, a video masked autoencoder (LVMAE): {config.num_hidden_layers} layers, {config.hidden_size} wide; "
        f"{clips}{classes}."
    )
