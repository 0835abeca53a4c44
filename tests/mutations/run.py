"""Change the code in one place, and see whether a test notices; for every change that this folder lists.

    python tests/mutations/run.py                       # all, one after the other (about an hour on a CPU)
    python tests/mutations/run.py models targets -j 2   # the changes of these lists, two at a time
    python tests/mutations/run.py data --only 3 17      # by number

A list, `NAME.py` in this folder, holds `MUTATIONS`: (file below src/transformers_lvmae or scripts, text that occurs once, text in its place,
tests that must notice). Each change is made in a copy of the repository, so the working tree stays as it is. A change that no test
notices survives: it is printed, and the exit code is 1. Changes that tests cannot notice, because they change nothing that is promised,
do not belong in a list.
"""

import argparse
import compileall
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from py_compile import PycInvalidationMode
from typing import NamedTuple

import pytest


os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before a library is imported

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
    # A changed file is known by its bytes: its time may be that of the former change.
    compileall.compile_dir(folder, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
    return folder


def run_tests(tests: list[str], copy: Path, output: Path, seconds: float) -> int:
    """Run tests in a fork of this process, which has imported the libraries; return the exit code, 1 if it takes too long."""
    pid = os.fork()
    if pid == 0:
        os.setsid()  # with the processes that the tests start
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1), os.dup2(log, 2)
        os.chdir(copy)
        os.environ["PYTHONPATH"] = sys.path[0] = str(copy / "src")
        code = 3  # an error of pytest itself
        try:
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
            sys.stdout.flush()
            files = {name: getattr(module, "__file__", None) or str(copy) for name, module in sys.modules.items()}
            names = [name for name, file in files.items() if not file.startswith(str(copy))]
            output.with_suffix(".modules").write_text("\n".join(names))
        finally:
            os._exit(code)
    deadline = time.monotonic() + seconds
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    if not ended[0]:
        os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(ended[1]) if ended[0] else 1


def prepare(tests: list[str], folder: Path) -> None:
    """Refuse tests that fail without a change, and import the libraries that they use: that takes longer than most tests."""
    output = folder / "first.txt"
    if code := run_tests(tests, make_copy(folder / "first"), output, 3600):
        raise SystemExit(
            f"Got exit code {code} of the tests without a change, expected 0:\n{output.read_text()[-4000:]}"
        )
    for name in output.with_suffix(".modules").read_text().split():
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def is_noticed(mutation: Mutation, folder: Path) -> bool:
    """Make a change in this process's copy, run its tests, and take the change back; return whether a test failed."""
    copy, output = folder / str(os.getpid()), folder / f"{os.getpid()}.txt"
    if not copy.exists():
        shutil.copytree(folder / "first", copy)
    path = copy / mutation.file
    code = path.read_text(encoding="utf-8")
    path.write_text(code.replace(mutation.old, mutation.new, 1), encoding="utf-8")
    try:
        result = run_tests(mutation.tests.split(), copy, output, LONGEST_SECONDS)
    finally:
        path.write_text(code, encoding="utf-8")
    # 1: a test failed, 2: the changed code cannot be imported, 5: only slow tests, which do not run, below 0: it crashed
    if result in (3, 4):
        raise RuntimeError(f"Got exit code {result} of {mutation.tests}, expected 0 or 1: {output.read_text()[-2000:]}")
    return result not in (0, 5)


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
    mutations = [mutation for _, _, mutation in chosen]
    survivors = 0
    with tempfile.TemporaryDirectory() as folder:
        prepare(sorted({test for mutation in mutations for test in mutation.tests.split()}), Path(folder))
        with ProcessPoolExecutor(args.j, get_context("fork")) as pool:
            results = pool.map(partial(is_noticed, folder=Path(folder)), mutations)
            for count, ((name, number, mutation), noticed) in enumerate(zip(chosen, results), start=1):
                verdict = "noticed" if noticed else "SURVIVED"
                print(f"{count}/{len(chosen)} {name} {number} {verdict} {mutation.file}", flush=True)
                if not noticed:
                    survivors += 1
                    print(f"    {mutation.old!r}\n -> {mutation.new!r}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} changes were noticed ({1 - survivors / len(chosen):.1%}).")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
