"""On a machine with a GPU: run the tests marked gpu, and measure LVMAE beside transformers' VideoMAE and V-JEPA 2, in ten minutes at most.

    bash benchmarks/gpu.sh

The machine needs this repository and Python with the packages of pyproject.toml, torch with CUDA among them; no network. What is missing is
said before anything starts. Measured are milliseconds and peak memory, in bfloat16 autocast with random weights. OUTPUT gets
results.jsonl, gpu.json with the machine's name, gpu.md with the tables for model_cards/cost.md, and tests.log.

Each case has its own time, and all have --minutes together. What does not fit into the memory or into its time is a row that says
so. What was not reached is measured when the same command is started again; results of another machine or commit are put aside. To
measure everything anew, give another --output.

The files: gpu_cases.py lists the cases, gpu_measuring.py measures them in a process of its own, model_work.py builds their work.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import pickle
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from cases import Case
from gpu_cases import gpu_cases
from model_work import ENCODERS
from tables import medians, table

from transformers_lvmae.command_line import CommandLine, run


ROOT = Path(__file__).resolve().parents[1]
TESTS = ("Tests", "pytest -m gpu")
STARTING = 120  # seconds that a process may take before its first case
Key = tuple[str, str]


def machine(device: str) -> dict[str, Any]:
    """Name, driver and memory of the device, and the versions that the figures depend on."""
    found: dict[str, Any] = {"device": platform.processor() or platform.machine(), "torch": str(torch.__version__)}
    if device != "cpu":
        properties = torch.cuda.get_device_properties(0)
        found |= {"device": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0")}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    found["transformers"] = importlib.metadata.version("transformers")
    found["commit"] = output_of("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD")
    return found


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def check_device(device: str) -> None:
    """Raise ValueError if there is no GPU."""
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(
            f"Got torch {torch.__version__} that finds no GPU, expected one (nvidia-smi lists it) and torch built for CUDA: correct it, "
            "or try the program out with --device cpu --frames 4 --sizes small."
        )


class Results:
    """The lines of results.jsonl of this machine, by (group, name)."""

    def __init__(self, folder: Path, about: dict[str, Any]):
        self.path, self.about = folder / "results.jsonl", about
        written = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []
        if not written or written[0] != about:
            if written:
                self.path.rename(folder / f"results_{time.strftime('%Y%m%d_%H%M%S')}.jsonl")
            self.path.write_text(json.dumps(about) + "\n")

    def rows(self) -> dict[Key, dict[str, Any]]:
        lines = self.path.read_text().splitlines()[1:]
        return {(row["group"], row["name"]): row for row in map(json.loads, lines)}

    def add(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


def run_tests(results: Results, folder: Path, seconds: float) -> None:
    """Run the tests marked gpu, unless they have passed here before, for at most `seconds`."""
    if results.rows().get(TESTS, {}).get("passed"):
        return
    if importlib.util.find_spec("pytest") is None:
        results.add({"group": TESTS[0], "name": TESTS[1], "status": "not run: pytest is missing"})
        return
    # Other files may need packages that this machine does not have.
    files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *files]
    with (folder / "tests.log").open("w") as log:
        try:
            code = subprocess.run(
                command, cwd=ROOT, stdout=log, stderr=log, timeout=max(1, seconds), check=False
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    ended = re.findall(r"^\d+ (?:passed|failed|skipped|deselected|error).*$", (folder / "tests.log").read_text(), re.M)
    status = ended[-1] if ended else "over their time" if code is None else f"failed: exit code {code}"
    results.add({"group": TESTS[0], "name": TESTS[1], "status": status, "passed": code == 0})


def supervise(
    cases: list[Case], results: Results, device: str, seconds: float, patience: float, deadline: float
) -> None:
    """Measure the cases that have no row yet, in processes that are replaced when one hangs or dies, until `deadline`.

    Args:
        patience: seconds that one case may take.
        deadline: of `time.monotonic()`.
    """
    while time.monotonic() < deadline:
        pending = [case for case in cases if (case.group, case.name) not in results.rows()]
        if not pending:
            return
        reason = work_until(pending, results, device, seconds, patience, deadline)
        left = [case for case in pending if (case.group, case.name) not in results.rows()]
        if reason is not None and left:
            results.add({**left[0].record(), "status": reason})


def work_until(
    cases: list[Case], results: Results, device: str, seconds: float, patience: float, deadline: float
) -> str | None:
    """Measure cases in one process. Return why the first case without a row has none, or None if time is up or the process ended well."""
    working, started = results.path.with_name("working"), time.time()
    working.unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("gpu_measuring.py"))]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((cases, device, seconds, results.path)))
    process.stdin.close()
    try:
        while process.poll() is None:
            if time.monotonic() > deadline:
                return None
            began = working.stat().st_mtime if working.exists() else started + STARTING
            if time.time() - began > patience:
                return "over its time"
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    return f"failed: exit code {process.returncode}" if process.returncode else None


def report(cases: list[Case], results: Results, folder: Path) -> str:
    """Write gpu.json and gpu.md; return the tables."""
    rows = results.rows()
    tests = rows.get(TESTS, {"status": "not run"})["status"]
    parts = [", ".join(f"{name} {value}" for name, value in results.about.items()), f"Tests marked gpu: {tests}."]
    shown = []
    for case in cases:
        row = rows.get((case.group, case.name), {**case.record(), "status": "not reached"})
        shown.append(row if "ms" in row else {**row, "name": f"{case.name} ({row['status']})"})
    for group, figures in medians(shown).items():
        blocks = {row["name"]: row.get("blocks", 0) for row in shown if row["group"] == group}
        parts.append(table(group, figures, blocks))
    text = "\n\n".join(parts) + "\n"
    (folder / "gpu.md").write_text(text)
    (folder / "gpu.json").write_text(json.dumps({"machine": results.about, "tests": tests, "rows": shown}, indent=1))
    return text


def parser() -> argparse.ArgumentParser:
    parser = CommandLine(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder (default: runs/gpu)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu tries the program out")
    parser.add_argument(
        "--sizes", nargs="+", choices=list(ENCODERS), default=list(ENCODERS), help="ViTs (default: all)"
    )
    parser.add_argument("--frames", type=int, default=128, help="frames of a clip (default: 128)")
    parser.add_argument("--names", nargs="+", help="run only these rows")
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything (default: 9.5)")
    parser.add_argument("--seconds", type=float, default=3, help="for the timed steps of a case (default: 3)")
    parser.add_argument("--patience", type=float, default=90, help="seconds that a case may take (default: 90)")
    parser.add_argument("--no_tests", action="store_true", help="only measure")
    return parser


def main(arguments: list[str] | None = None) -> int:
    args = parser().parse_args(arguments)
    deadline = time.monotonic() + 60 * args.minutes
    check_device(args.device)
    args.output.mkdir(parents=True, exist_ok=True)
    results = Results(args.output, machine(args.device))
    cases = [case for case in gpu_cases(args) if not args.names or case.name in args.names]
    if not args.no_tests:
        run_tests(results, args.output, 0.4 * 60 * args.minutes)
    supervise(cases, results, args.device, args.seconds, args.patience, deadline)
    print(report(cases, results, args.output))
    rows = results.rows()
    wrong = [
        key for key, row in rows.items() if row.get("status", "").startswith("failed") or row.get("passed") is False
    ]
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for the tests that compare bits
    run(main)
