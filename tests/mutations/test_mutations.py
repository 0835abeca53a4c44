"""The lists of mutations fit the code."""

import pytest
from run import LISTS, ROOT, read_list


@pytest.mark.parametrize("name", LISTS)
def test_every_change_can_be_made(name):
    for mutation in read_list(name):
        code = (ROOT / mutation.file).read_text(encoding="utf-8")
        assert code.count(mutation.old) == 1, (name, mutation)
        assert mutation.old != mutation.new
        for test in mutation.tests.split():
            if not test.startswith("-"):
                assert (ROOT / test.split("::")[0]).exists(), (name, mutation)
