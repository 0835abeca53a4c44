"""The README.md of a model folder: what the model is, from which data and command, how well it does, under which licence.

A card ends with a digest of itself. Where that is missing or no longer fits, a person wrote or changed the card, and it is left alone.
"""

import hashlib
import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import logging


logger = logging.get_logger(__name__)

CARD_NAME = "README.md"
_MARK = re.compile(r"\n<!-- Written by transformers-lvmae, [0-9a-f]{64}: .* -->\n$")
# What a run's results hold besides its metrics.
_NO_METRIC = re.compile(r"runtime|per_second|epoch|samples|classes|total_flos|steps|preparation_time|memory|mem_")
_PIPELINE_TAGS = {
    "LVMAEModel": "feature-extraction",
    "LVMAEForPreTraining": "feature-extraction",
    "LVMAEForVideoClassification": "video-classification",
}
_AUTO_CLASSES = {
    "LVMAEForPreTraining": "AutoModelForPreTraining",
    "LVMAEForVideoClassification": "AutoModelForVideoClassification",
}


@dataclass
class ModelCardFacts:
    """What a card tells besides the config; whatever is None is left out.

    Args:
        model_name: title of the card.
        finetuned_from: folder or Hub id of the weights at the start.
        dataset: folder or Hub id of the data.
        command: as [`command_line`] gives it.
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


def command_line(arguments: Sequence[str] | None = None, num_processes: int = 1) -> str | None:
    """The command that runs now, as a shell takes it, without the Hub token; None where no script runs."""
    arguments = list(sys.argv if arguments is None else arguments)
    if not arguments[0].endswith(".py"):
        return None
    shown, secret = [], False
    for argument in arguments:
        name = argument.split("=")[0].replace("-", "_")
        is_token = name.startswith("__") and name.endswith("token")
        if not secret and not is_token:
            shown.append(argument)
        secret = is_token and "=" not in argument
    launcher = "python" if num_processes == 1 else f"accelerate launch --num_processes {num_processes}"
    return f"{launcher} {shlex.join(shown)}"


def may_write_card(folder: str | os.PathLike) -> bool:
    """Whether a folder has no card, or one of ours that nobody changed."""
    path = Path(folder) / CARD_NAME
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8")
    mark = _MARK.search(text)
    return mark is not None and _digest(text[: mark.start()]) in mark.group()


def write_model_card(folder: str | os.PathLike, config: Any, architecture: str, facts: ModelCardFacts) -> bool:
    """Write README.md, unless a person wrote or changed the one that is there.

    Args:
        config: `LVMAEConfig` or `FSQMagViTConfig`.
        architecture: name of the model's class.

    Returns:
        Whether it was written.
    """
    path = Path(folder) / CARD_NAME
    if not may_write_card(folder):
        logger.warning(f"{path} was written or changed by hand and stays as it is; delete it for a new card.")
        return False
    content = (
        f"---\n{card_metadata(config, architecture, facts).to_yaml()}\n---\n\n{_body(config, architecture, facts)}"
    )
    text = str(ModelCard(content)).rstrip("\n") + "\n"
    mark = (
        f"\n<!-- Written by transformers-lvmae, {_digest(text)}: a card that was changed is never written over. -->\n"
    )
    Path(folder).mkdir(parents=True, exist_ok=True)
    path.write_text(text + mark, encoding="utf-8")
    return True


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def card_metadata(config: Any, architecture: str, facts: ModelCardFacts) -> ModelCardData:
    """What the Hub reads: licence, tags, data, base model, and the metrics as model-index."""
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
    """`name` where it is no folder here and looks like an id on the Hub."""
    is_id = name is not None and not os.path.exists(name) and re.fullmatch(r"[\w.-]+/[\w.-]+", name)
    return name if is_id else None


def _metrics(facts: ModelCardFacts) -> list[tuple[str, str, float]]:
    """(split, metric, value), the metric without its split's prefix."""
    return [
        (split, name.removeprefix(f"{split}_"), round(value, 6))
        for split, values in facts.results.items()
        for name, value in values.items()
        if isinstance(value, (int, float)) and not _NO_METRIC.search(name)
    ]


def _body(config: Any, architecture: str, facts: ModelCardFacts) -> str:
    parts = [f"# {facts.model_name}", _description(config, architecture)]
    origin = {
        "Data": facts.dataset,
        "Started from": facts.finetuned_from,
        "Licence": facts.license,
        "Software": ", ".join(map(_with_version, ("transformers-lvmae", "transformers", "torch"))),
    }
    parts.append(_table(("", ""), [(name, value) for name, value in origin.items() if value]))
    if facts.command:
        parts += ["## Command", f"```\n{facts.command}\n```"]
    metrics = _metrics(facts)
    if metrics:
        parts += ["## Results", _table(("split", "metric", "value"), [(*row[:2], f"{row[2]:.4g}") for row in metrics])]
    if facts.hyperparameters:
        parts += ["## Training", _table(("setting", "value"), list(facts.hyperparameters.items()))]
    return "\n\n".join(
        [*parts, "## Use", _adapter_usage(facts) if facts.library_name == "peft" else _usage(architecture)]
    )


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # run from a clone: no reason to end a training at its first save
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


def _table(head: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _usage(architecture: str) -> str:
    loader = _AUTO_CLASSES.get(architecture, "AutoModel")
    lines = [f"from transformers import {loader}, AutoVideoProcessor", "", "import transformers_lvmae", ""]
    if architecture == "LVMAEForVideoClassification":
        lines = ["from transformers import pipeline", "", "import transformers_lvmae", ""]
        lines += [
            'classifier = pipeline("video-classification", model="PATH_OR_ID", top_k=5)',
            'classifier("clip.mp4")',
        ]
    else:
        lines += [f'model = {loader}.from_pretrained("PATH_OR_ID")']
        lines += ['processor = AutoVideoProcessor.from_pretrained("PATH_OR_ID")']
    note = (
        "Where the folder holds `.py` files, it also loads without the package `transformers-lvmae`: leave the second import out "
        "and pass `trust_remote_code=True`."
    )
    return "\n".join(["```python", *lines, "```", "", note])


def _adapter_usage(facts: ModelCardFacts) -> str:
    """An adapter's folder has the config with its classes; the weights are those it started from."""
    base = facts.finetuned_from or "PATH_OR_ID_OF_THE_BASE"
    lines = [
        "import transformers_lvmae",
        "from peft import PeftModel",
        "from transformers import AutoConfig, AutoModelForVideoClassification, AutoVideoProcessor, pipeline",
        "",
        'config = AutoConfig.from_pretrained("PATH_OR_ID")',
        f'base = AutoModelForVideoClassification.from_pretrained("{base}", config=config)',
        'model = PeftModel.from_pretrained(base, "PATH_OR_ID").merge_and_unload()',
        'processor = AutoVideoProcessor.from_pretrained("PATH_OR_ID")',
        'classifier = pipeline("video-classification", model=model, video_processor=processor, top_k=5)',
        'classifier("clip.mp4")',
    ]
    return "\n".join(["```python", *lines, "```"])


__all__ = ["ModelCardFacts", "command_line", "may_write_card", "write_model_card"]
