"""`topk_accuracies` as a metric of `evaluate`.

    metric = evaluate.load(".../transformers_lvmae/evaluation/evaluate_metric.py")
    metric.compute(predictions=logits, references=labels)
    metric.compute(predictions=logits, references=labels, label_sets={"verb": [0, 97], "noun": [97, 397]})

Loading it from its path (`evaluate_metric.__file__`) needs no network. Nothing else in the package needs `evaluate`.
"""

from typing import Any

import datasets
import evaluate
import numpy as np

from .accuracy import topk_accuracies


class TopKAccuracy(evaluate.Metric):
    """Collect batches with `add_batch`, on one process or several; `compute(label_sets=..., ks=...)` calls `topk_accuracies`."""

    def _info(self) -> Any:
        logits = datasets.Sequence(datasets.Value("float32"))
        label = datasets.Value("int64")
        return evaluate.MetricInfo(
            description="Top-k accuracy of one label, or of several label sets and their combination.",
            citation="",
            inputs_description=topk_accuracies.__doc__ or "",
            features=[
                datasets.Features({"predictions": logits, "references": label}),
                datasets.Features({"predictions": logits, "references": datasets.Sequence(label)}),
            ],
        )

    def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[str, float]:
        return topk_accuracies(np.asarray(predictions), np.asarray(references), **kwargs)
