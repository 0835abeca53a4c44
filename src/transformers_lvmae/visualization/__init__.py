"""Pictures and films: frames with masks and scores on them, curves of a run, what a pre-training run predicts.

Only drawing happens here. What is drawn is computed by the models and by `targets/`.
"""
