"""Probes: small classifiers that are trained on frozen features.

- linear: logistic regression on standardized clip features;
- attentive: a learned query that attends to all tokens, and a linear layer (V-JEPA's protocol, Bardes et al. 2024).

Both choose their settings on validation videos, and use the test videos once, with the chosen settings. A video of several clips is
classified by the mean of its clips' probabilities.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Subset
from transformers import Trainer, TrainingArguments, set_seed

from ..models.configuration_lvmae import LVMAEConfig
from ..models.modeling_lvmae import LVMAEClassAttention, LVMAEPreTrainedModel
from .accuracy import ranks


REGULARIZATIONS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
# The sweep of V-JEPA 2.
LEARNING_RATES = (1e-4, 3e-4, 1e-3, 3e-3, 5e-3)
WEIGHT_DECAYS = (0.01, 0.1, 0.4, 0.8)


class AttentiveProbe(LVMAEPreTrainedModel):
    """The head of [`LVMAEForVideoClassification`] with `pooling="class_attention"`, without the encoder. Its weights fit there.

    Args:
        config: config of the encoder, with `num_labels`.
    """

    _no_split_modules: list[str] = []

    def __init__(self, config: LVMAEConfig):
        super().__init__(config)
        self.pooler = LVMAEClassAttention(config)
        self.fc_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, len(config.id2label or {}))
        self.post_init()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Classify tokens (B, N, D): logits (B, classes)."""
        return self.classifier(self.fc_norm(self.pooler(tokens)))


class ProbeSweep(nn.Module):
    """Several probes that learn from the same batches, so that tokens are read once for all settings."""

    def __init__(self, config: LVMAEConfig, number: int):
        super().__init__()
        self.probes = nn.ModuleList(AttentiveProbe(config) for _ in range(number))

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the sum of the probes' losses, and logits (B, probes, classes).

        Args:
            tokens: (B, N, D).
            labels: class ids (B,).
        """
        logits = torch.stack([probe(tokens) for probe in self.probes], dim=1)
        targets = labels.unsqueeze(1).expand(-1, logits.shape[1])
        # With a sum over the probes, each has the gradient that it would have alone.
        loss = nn.functional.cross_entropy(logits.transpose(1, 2), targets) * logits.shape[1]
        return {"loss": loss, "logits": logits}


@dataclass
class ProbeData:
    """Features, labels and videos of a split's n clips.

    Args:
        features: (n, D) for a linear probe; a dataset of `tokens` and `labels` for an attentive one.
        labels: class ids (n,).
        videos: number of each clip's video (n,).
    """

    features: Any
    labels: np.ndarray
    videos: np.ndarray

    def subset(self, numbers: np.ndarray) -> "ProbeData":
        """Return the data of the clips with these numbers."""
        is_dataset = isinstance(self.features, Dataset)
        features = Subset(self.features, numbers.tolist()) if is_dataset else self.features[numbers]
        return ProbeData(features, self.labels[numbers], self.videos[numbers])

    def accuracy(self, scores: np.ndarray, k: int = 1) -> float:
        """Return the share of videos whose class is among the k highest scores, (n, classes), averaged over a video's clips.

        A video whose scores are not finite counts as wrong.
        """
        _, first, video = np.unique(self.videos, return_index=True, return_inverse=True)
        means = np.zeros((len(first), scores.shape[1]))
        np.add.at(means, video, scores / np.bincount(video)[video, None])
        return float((ranks(means, self.labels[first]) < k).mean())


def class_ids(splits: dict[str, datasets.Dataset], label_column: str) -> tuple[dict[str, np.ndarray], list[str]]:
    """Return the class ids of each split's clips, and the class names: those of the ClassLabel, or else the sorted values.

    A missing column or label raises ValueError.
    """
    for split, clips in splits.items():
        if label_column not in clips.column_names or None in clips[label_column][:]:
            raise ValueError(
                f"Got columns {clips.column_names} in split {split!r}, expected a class in {label_column!r} for every clip: name the "
                "right column (--label_column) or leave the split out."
            )
    feature = next(iter(splits.values())).features[label_column]
    if isinstance(feature, datasets.ClassLabel):
        return {split: np.asarray(clips[label_column][:]) for split, clips in splits.items()}, feature.names
    values = {split: np.asarray(clips[label_column][:]).astype(str) for split, clips in splits.items()}
    names, ids = np.unique(np.concatenate(list(values.values())), return_inverse=True)
    ends = np.cumsum([len(labels) for labels in values.values()])
    return dict(zip(values, np.split(ids, ends[:-1]))), names.tolist()


def split_by_video(data: ProbeData, share: float, seed: int) -> tuple[ProbeData, ProbeData]:
    """Split clips into a training and a validation part. Validation gets `share` of the videos, drawn by `seed`, with all clips."""
    from sklearn.model_selection import GroupShuffleSplit

    draw = GroupShuffleSplit(n_splits=1, test_size=share, random_state=seed)
    train, validation = next(draw.split(data.labels, groups=data.videos))
    return data.subset(train), data.subset(validation)


Scores = Callable[[ProbeData], np.ndarray]


def linear_probe(
    train: ProbeData, validation: ProbeData, num_labels: int, regularizations: Sequence[float] = REGULARIZATIONS
) -> tuple[dict[str, float], Scores]:
    """Train logistic regressions on standardized features (n, D), and choose the inverse regularization by validation.

    Returns:
        The chosen settings with their `validation_accuracy`, and a function from clips to probabilities (n, num_labels).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def scores_of(classifier: Any) -> Scores:
        def scores(data: ProbeData) -> np.ndarray:
            probabilities = np.zeros((len(data.labels), num_labels))
            probabilities[:, classifier.classes_] = classifier.predict_proba(data.features)
            return probabilities

        return scores

    best: tuple[dict[str, float], Scores] | None = None
    for value in regularizations:
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=value, max_iter=2000))
        scores = scores_of(classifier.fit(train.features, train.labels))
        accuracy = validation.accuracy(scores(validation))
        if best is None or accuracy > best[0]["validation_accuracy"]:  # if equal, keep the most regularized
            best = {"C": value, "validation_accuracy": accuracy}, scores
    assert best is not None
    return best


def attentive_probe(
    train: ProbeData,
    validation: ProbeData,
    config: LVMAEConfig,
    seed: int,
    num_train_epochs: float = 20,
    batch_size: int = 64,
    learning_rates: Sequence[float] = LEARNING_RATES,
    weight_decays: Sequence[float] = WEIGHT_DECAYS,
    **arguments: Any,
) -> tuple[dict[str, float], Scores, AttentiveProbe]:
    """Train an attentive probe for each pair of learning rate and weight decay, all at once, and choose the best on validation videos.

    The optimizer is AdamW with a cosine to 0. V-JEPA augments clips anew in each epoch; features on disk have one view of a clip.

    Args:
        config: config of the encoder, with `num_labels`.
        arguments: other `TrainingArguments`: `bf16`, `dataloader_num_workers`, ...

    Returns:
        The same as [`linear_probe`], and the chosen probe.
    """
    set_seed(seed)
    settings = list(product(learning_rates, weight_decays))
    sweep = ProbeSweep(config, len(settings))
    with tempfile.TemporaryDirectory() as folder:
        training_args = TrainingArguments(
            folder,
            num_train_epochs=num_train_epochs,
            per_device_train_batch_size=batch_size,
            per_device_eval_batch_size=batch_size,
            lr_scheduler_type="cosine",
            max_grad_norm=0,  # a common gradient norm would make the probes depend on each other
            remove_unused_columns=False,
            label_names=["labels"],
            save_strategy="no",
            report_to="none",
            seed=seed,
            **arguments,
        )
        optimizer = torch.optim.AdamW(_parameter_groups(sweep, settings))
        trainer = Trainer(sweep, training_args, train_dataset=train.features, optimizers=(optimizer, None))
        trainer.train()

    def all_scores(data: ProbeData) -> np.ndarray:
        return torch.from_numpy(trainer.predict(data.features).predictions).float().softmax(dim=-1).numpy()

    scores = all_scores(validation)
    accuracies = [validation.accuracy(scores[:, number]) for number in range(len(settings))]
    best = int(np.argmax(accuracies))
    found = {
        "learning_rate": settings[best][0],
        "weight_decay": settings[best][1],
        "validation_accuracy": accuracies[best],
    }
    return found, lambda data: all_scores(data)[:, best], sweep.probes[best]  # type: ignore[return-value]


def _parameter_groups(sweep: ProbeSweep, settings: list[tuple[float, float]]) -> list[dict[str, Any]]:
    """Return parameter groups with the learning rate of each probe. Only matrices get its weight decay."""
    groups = []
    for probe, (lr, weight_decay) in zip(sweep.probes, settings):
        for matrices in (True, False):
            params = [weight for weight in probe.parameters() if (weight.squeeze().ndim > 1) == matrices]
            groups.append({"params": params, "lr": lr, "weight_decay": weight_decay if matrices else 0.0})
    return groups
