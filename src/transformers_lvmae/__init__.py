"""LVMAE, video masked autoencoders for 128 frames, as a transformers model family. Importing it registers the Auto classes."""

from typing import TYPE_CHECKING, Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)
from transformers.utils import is_torchvision_available

from .models.configuration_fsq_magvit import FSQMagViTConfig
from .models.configuration_lvmae import LVMAEConfig
from .models.image_processing_lvmae import LVMAEImageProcessor
from .models.image_processing_pil_lvmae import LVMAEImageProcessorPil
from .models.modeling_fsq_magvit import FSQMagViTModel
from .models.modeling_lvmae import LVMAEForPreTraining, LVMAEForVideoClassification, LVMAEModel
from .models.video_processing_lvmae import LVMAEVideoProcessor


if TYPE_CHECKING:
    from .training.arguments import FSQMagViTTrainingArguments, LVMAEClassificationArguments, LVMAEPreTrainingArguments
    from .training.classification import LVMAEClassificationTrainer
    from .training.pretraining import LVMAEPreTrainer
    from .training.tokenizer import FSQMagViTTrainer

for _config, _model in ((LVMAEConfig, LVMAEModel), (FSQMagViTConfig, FSQMagViTModel)):
    AutoConfig.register(_config.model_type, _config)
    AutoModel.register(_config, _model)
    if is_torchvision_available():  # no video processor works without it
        AutoVideoProcessor.register(_config, LVMAEVideoProcessor)
    AutoImageProcessor.register(
        _config, image_processor_classes={"torchvision": LVMAEImageProcessor, "pil": LVMAEImageProcessorPil}
    )
AutoModelForPreTraining.register(LVMAEConfig, LVMAEForPreTraining)
AutoModelForVideoClassification.register(LVMAEConfig, LVMAEForVideoClassification)

# Imported on first use: Trainers import transformers.trainer and datasets, which takes seconds.
_TRAINING_NAMES = {
    "FSQMagViTTrainer": "training.tokenizer",
    "LVMAEClassificationTrainer": "training.classification",
    "LVMAEPreTrainer": "training.pretraining",
    "FSQMagViTTrainingArguments": "training.arguments",
    "LVMAEClassificationArguments": "training.arguments",
    "LVMAEPreTrainingArguments": "training.arguments",
}


def __getattr__(name: str) -> Any:
    if name not in _TRAINING_NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".{_TRAINING_NAMES[name]}", __name__), name)


__all__ = [
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
]
