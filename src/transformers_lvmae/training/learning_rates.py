"""The rules of the learning rate: it grows with the batch, and in fine-tuning it falls from layer to layer towards the input."""

import re

from transformers import TrainingArguments


def global_batch(args: TrainingArguments) -> int:
    """Return the number of videos in a step, over all processes and accumulated batches."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def scaled_learning_rate(base_learning_rate: float, args: TrainingArguments) -> float:
    """Scale a rate for 256 videos a step to the videos of a step."""
    return base_learning_rate * global_batch(args) / 256


def layer_factor(name: str, depth: int, layer_decay: float) -> float:
    """Return `layer_decay` to the number of layers between a parameter and the head: embeddings have the smallest factor."""
    match = re.search(r"encoder\.layers\.(\d+)\.", name)
    layer = int(match.group(1)) + 1 if match else 0 if ".embeddings." in name else depth + 1
    return layer_decay ** (depth + 1 - layer)
