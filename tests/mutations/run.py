"""Change the code in one place, and see whether a test notices; for every change that this folder lists.

    python tests/mutations/run.py                       # all, one after the other (about two hours on a CPU)
    python tests/mutations/run.py models targets -j 2   # the changes of these lists, two at a time
    python tests/mutations/run.py data --only 3 17      # by number

A list, `NAME.py` in this folder, holds `MUTATIONS`: (file below src/transformers_lvmae or scripts, text that occurs once, text in its place,
tests that must notice). Each change is made in a copy of the repository, so the working tree stays as it is. A change that no test
notices survives: it is printed, and the exit code is 1. Changes that tests cannot notice, because they change nothing that is promised,
do not belong in a list.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import NamedTuple


HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LISTS = sorted(path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "test_mutations"))
LONGEST_SECONDS = 600


class Mutation(NamedTuple):
    """A change of the code: the file below the root, a text that occurs in it once, the text in its place, and tests to run."""

    file: str
    old: str
    new: str
    tests: str


def read_list(name: str) -> list[Mutation]:
    """Read a list of mutations of this folder."""
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [
        Mutation(file if file.startswith("scripts/") else f"src/transformers_lvmae/{file}", *rest)
        for file, *rest in module.MUTATIONS
    ]


def make_copy(folder: Path) -> Path:
    """Copy what tests need of the repository."""
    names = ["src", "tests", "scripts", "studies", "examples", "benchmarks", "docs", "model_cards"]
    for name in names:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for path in ROOT.glob("*.*"):
        if path.is_file():
            shutil.copy(path, folder)
    return folder


def is_noticed(mutation: Mutation, copy: Path) -> bool:
    """Make a change in a copy, run its tests, and take the change back; return whether a test failed."""
    path = copy / mutation.file
    code = path.read_text(encoding="utf-8")
    path.write_text(code.replace(mutation.old, mutation.new, 1), encoding="utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutation.tests.split()]
    try:
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=LONGEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_text(code, encoding="utf-8")
    if run.returncode not in (0, 1, 2):  # 1: a test failed, 2: the changed code cannot be imported
        raise RuntimeError(f"Got exit code {run.returncode} of {command}, expected 0 or 1: {run.stdout[-2000:]!r}")
    return run.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lists", nargs="*", default=LISTS, help=f"of {LISTS} (default: all)")
    parser.add_argument("--only", nargs="+", type=int, help="numbers of the changes in a list, from 0")
    parser.add_argument("-j", type=int, default=1, help="changes at a time (default: %(default)s)")
    args = parser.parse_args()
    chosen = [
        (name, number, mutation)
        for name in args.lists
        for number, mutation in enumerate(read_list(name))
        if args.only is None or number in args.only
    ]
    copies: Queue = Queue()
    survivors = []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.j) as pool:
        for number in range(args.j):
            copies.put(make_copy(Path(folder, str(number))))

        def judge(item: tuple[str, int, Mutation]) -> tuple[tuple[str, int, Mutation], bool]:
            copy = copies.get()
            try:
                return item, is_noticed(item[2], copy)
            finally:
                copies.put(copy)

        for count, (item, noticed) in enumerate(pool.map(judge, chosen), start=1):
            name, number, mutation = item
            print(
                f"{count}/{len(chosen)} {name} {number} {'noticed' if noticed else 'SURVIVED'} {mutation.file}",
                flush=True,
            )
            if not noticed:
                survivors.append(item)
                print(f"    {mutation.old!r}\n -> {mutation.new!r}", flush=True)
    print(
        f"{len(chosen) - len(survivors)} of {len(chosen)} changes were noticed ({1 - len(survivors) / len(chosen):.1%})."
    )
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
