"""The setting of every test: one thread, a fixed seed, NaN in uninitialized memory, and outputs recomputed in tiny models too."""

import pytest
import torch

from transformers_lvmae.models import recomputation


torch.set_num_threads(1)  # tiny tensors: threads cost more than they bring


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def nan_in_uninitialized_memory():
    """`torch.empty` returns NaN, so that a weight that nothing sets shows. torch does so in deterministic mode only."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def recompute_small_outputs_too(monkeypatch):
    for name in ("SMALLEST_NUMEL", "SMALLEST_NUMEL_ON_ACCELERATORS"):
        monkeypatch.setattr(recomputation, name, 0)
