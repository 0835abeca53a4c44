"""Trainers of the tokenizer, the autoencoder and the classifier, with their arguments and the losses that only training has.

Trainers get batches and never open a video: datasets live in `data/`, targets in `targets/`. PEFT stays in the scripts.
"""
