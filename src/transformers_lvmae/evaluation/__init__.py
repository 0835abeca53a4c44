"""What a trained model is worth: accuracy over several views of a video, tables and confusion matrices, frozen features and probes.

Trainers use `accuracy.py` alone. Pictures of masks and predictions live in `visualization/`.
"""
