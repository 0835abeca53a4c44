"""The command that kills long runs. More kills: `python tests/reliability/kills.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(tmp_path):
    command = [sys.executable, str(Path(__file__).with_name("kills.py")), "--kills", "4", "--commands"]
    done = subprocess.run(
        [*command, "pre-training, cached", "fine-tuning, LoRA"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "4 of 4 killed runs ended as if they had not been killed." in done.stdout
