"""Evaluation of trained models: predictions over several views of a video, accuracies, tables, frozen features and probes.

Trainers use only `accuracy.py`. Pictures of masks and predictions live in `visualization/`.
"""
