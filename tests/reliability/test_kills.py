"""Killed and resumed commands end as uninterrupted ones: those that are quick enough for a test. `kills.py` has the others."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_caches_and_features_killed_at_ten_moments_end_as_if_they_had_not_been():
    command = [
        sys.executable,
        str(Path(__file__).with_name("kills.py")),
        "--kills",
        "10",
        "--commands",
        "cache",
        "features",
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "10 of 10 killed runs ended as if they had not been killed." in run.stdout
