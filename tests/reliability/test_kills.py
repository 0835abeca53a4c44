"""The command that kills long runs. More kills, and more commands: `python tests/reliability/kills.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("commands", "kills"), [(["pre-training, cached", "fine-tuning, LoRA"], 4), (["cache", "features"], 10)]
)
def test_killed_runs_end_as_if_they_had_not_been(commands, kills):
    command = [
        sys.executable,
        str(Path(__file__).with_name("kills.py")),
        "--kills",
        str(kills),
        "--commands",
        *commands,
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert f"{kills} of {kills} killed runs ended as if they had not been killed." in run.stdout
