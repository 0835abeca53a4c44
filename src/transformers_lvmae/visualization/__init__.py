"""Pictures and films: frames with masks and scores, curves of a run, and predictions of a pre-training run.

This folder only draws. The models and `targets/` compute what it shows.
"""
