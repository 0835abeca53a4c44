"""Files that are whole or absent, digests of whole files, and the words of a full disk."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

import transformers_lvmae
from transformers_lvmae.files import digest, is_full_disk, write_aside


def test_a_killed_write_leaves_the_former_file(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_aside(path, "former")
    write = Path.write_text

    def cut(self, text, **options):
        write(self, text[:2], **options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", cut)
    with pytest.raises(KeyboardInterrupt):
        write_aside(path, "newer")
    monkeypatch.undo()
    assert path.read_text() == "former"
    write_aside(path, "newest")
    assert path.read_text() == "newest"
    assert os.listdir(tmp_path) == ["results.json"]


def test_a_file_that_a_function_writes_is_whole_or_absent(tmp_path):
    def half(part):
        part.write_text("ha")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_aside(tmp_path / "table", half)
    assert not (tmp_path / "table").exists()
    write_aside(tmp_path / "table", lambda part: part.write_text("whole"))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["whole"]


def test_the_package_writes_no_text_in_place():
    source = Path(transformers_lvmae.__file__).parent
    assert [path.name for path in source.rglob("*.py") if ".write_text(" in path.read_text()] == ["files.py"]


def test_a_digest_is_of_the_whole_file(tmp_path):
    data = bytes(range(256)) * 10_000  # more than two blocks
    (tmp_path / "weights").write_bytes(data)
    assert digest(tmp_path / "weights") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space"),
        OSError(errno.EDQUOT, "Quota exceeded"),
        RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0"),
        ValueError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_is_known_by_its_number_or_its_words(error):
    assert is_full_disk(error)
    outer = RuntimeError("saving failed")
    outer.__context__ = error
    assert is_full_disk(outer)


def test_other_errors_are_no_full_disk():
    assert not is_full_disk(None)
    assert not is_full_disk(OSError(errno.EACCES, "Permission denied"))
