"""The lists of mutations fit the code."""

import importlib.util
from pathlib import Path

import pytest


spec = importlib.util.spec_from_file_location(
    "mutations_run", Path(__file__).with_name("run.py")
)  # benchmarks/ has a run.py, too
runner = importlib.util.module_from_spec(spec)
spec.loader.exec_module(runner)


@pytest.mark.parametrize("name", runner.LISTS)
def test_every_change_can_be_made(name):
    for mutation in runner.read_list(name):
        code = (runner.ROOT / mutation.file).read_text(encoding="utf-8")
        assert code.count(mutation.old) == 1, (name, mutation)
        assert mutation.old != mutation.new
        for test in mutation.tests.split():
            if not test.startswith("-"):
                file, *names = test.split("[")[0].split("::")
                assert all(f"{last}(" in (runner.ROOT / file).read_text() for last in names[-1:]), (name, mutation)
