"""Make what the decoder predicts: scores of tokens, target codes and latents, decoder masks, and caches of targets on disk.

Everything here works on tensors and clips and knows no Trainer. The tokenizer is frozen here; `training/` trains it.
"""
