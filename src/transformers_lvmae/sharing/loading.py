"""Models from a folder or the Hub that are what the caller takes them for."""

import os
from typing import Any, TypeVar

from transformers import AutoVideoProcessor, PreTrainedConfig, PreTrainedModel

from ..models.modeling_lvmae import LVMAEForVideoClassification
from ..models.token_selection import check_processor, check_scorer


Model = TypeVar("Model", bound=PreTrainedModel)


def check_model_type(name_or_path: str | os.PathLike, *model_classes: type[PreTrainedModel]) -> None:
    """Raise ValueError if a folder or Hub id holds none of these models. transformers would take its config and draw new weights."""
    expected = ", ".join(model_class.__name__ for model_class in model_classes)
    try:
        found, _ = PreTrainedConfig.get_config_dict(name_or_path)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"Got {str(name_or_path)!r}, which has no readable config.json ({reason}), expected a folder or Hub id with {expected}: "
            "correct the path."
        ) from None
    kinds = {model_class.config_class.model_type for model_class in model_classes}  # type: ignore[union-attr]
    if found.get("model_type") not in kinds:
        raise ValueError(
            f"Got {str(name_or_path)!r} with model_type {found.get('model_type')!r}, expected {' or '.join(sorted(kinds))} "
            f"({expected}): give the folder of such a model."
        )


def check_head(name_or_path: str | os.PathLike, model_class: type[PreTrainedModel]) -> None:
    """Raise ValueError if a folder or Hub id holds another model than `model_class`, or this model with another head."""
    check_model_type(name_or_path, model_class)
    heads = PreTrainedConfig.get_config_dict(name_or_path)[0].get("architectures")
    if heads and model_class.__name__ not in heads:
        raise ValueError(
            f"Got {str(name_or_path)!r} with {', '.join(heads)}, expected {model_class.__name__}: its head would have new, random "
            "weights, so train it first."
        )


def load_model(model_class: type[Model], name_or_path: str | os.PathLike, **kwargs: Any) -> Model:
    """Return `model_class.from_pretrained(...)` of a folder or Hub id that holds a model of this type; ValueError on any other."""
    check_model_type(name_or_path, model_class)
    return model_class.from_pretrained(name_or_path, **kwargs)


def load_classifier(name_or_path: str | os.PathLike) -> LVMAEForVideoClassification:
    """Load a fine-tuned model. Raises ValueError if a folder or Hub id holds another model, or one without a trained classifier."""
    check_head(name_or_path, LVMAEForVideoClassification)
    loaded: Any = LVMAEForVideoClassification.from_pretrained(name_or_path, output_loading_info=True)
    model, missing = loaded[0], sorted(loaded[1]["missing_keys"])
    if missing:
        raise ValueError(
            f"Got {str(name_or_path)!r} without {', '.join(missing)}, expected a trained classifier: fine-tune it first "
            "(scripts/finetune.py), or name the folder of a fine-tuned model."
        )
    return model


def load_processor(name_or_path: str | os.PathLike, config: Any) -> Any:
    """Load the processor of a model's folder or Hub id. Raises ValueError if the model cannot choose tokens in its clips, or has no scorer."""
    processor = AutoVideoProcessor.from_pretrained(name_or_path)
    check_processor(config, processor)
    check_scorer(config)
    return processor
