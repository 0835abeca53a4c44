"""What the decoder predicts and where: scores of tokens, target codes and latents, decoder masks, and caches of them on disk.

Everything here works on tensors and clips and knows no Trainer. The frozen tokenizer is used here and trained in `training/`.
"""
