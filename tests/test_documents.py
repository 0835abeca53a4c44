"""The documents agree with the code: links exist, and commands, options and Python blocks work.

Nothing is trained here. A program runs until it has parsed its command line, and pytest until it has collected its tests.
"""

import argparse
import ast
import inspect
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import pytest
from accelerate.commands.launch import launch_command_parser
from builders import PROGRAM_FOLDERS, ROOT

from transformers_lvmae import FSQMagViTConfig, LVMAEConfig
from transformers_lvmae.command_line import CommandLine


README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "model_cards").glob("*.md")),
]
LINKED = [*PAGES, ROOT / "CHANGELOG.md"]
RUNS = sorted([*ROOT.glob("scripts/runs/*.sh"), *ROOT.glob("studies/runs/*.sh"), *ROOT.glob("benchmarks/*.sh")])
PROGRAMS = [
    path
    for folder in PROGRAM_FOLDERS
    for path in sorted(folder.glob("*.py"))
    if re.search("ArgumentParser|CommandLine|parse_arguments", path.read_text())
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE_COMMAND = re.compile(r"(python|bash|sbatch|accelerate launch|pytest|make|pip install) .+")
RUN_ARGUMENTS = {"selection_footage": ["film.mp4"], "selection_nuisances": ["grain"]}
# In place of python, accelerate and sbatch: write the command line down, and do nothing.
STUB = '#!/bin/sh\nprintf "%s\\0" "$(basename "$0")" "$@" > "$RECORD/$$"\n'


class Parsed(BaseException):
    """Ends a program as soon as it has parsed its command line."""


def each(paths):
    return pytest.mark.parametrize("path", paths, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(path, language):
    """The fenced blocks of one language; commands stand in blocks that name none."""
    return [text for name, text in FENCE.findall(path.read_text()) if name == language]


def inline_code(path):
    text = FENCE.sub("", path.read_text())
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


def commands(path):
    """The words of every command in a document, in blocks and within text."""
    lines = [line for block in blocks(path, "") for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in inline_code(path) if INLINE_COMMAND.fullmatch(span)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors(path):
    """What the headings are called in links, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def program_parser(monkeypatch, program, arguments=None):
    """The parser of a program; with arguments, the program parses them, and a wrong one fails the test."""
    parse, found = argparse.ArgumentParser.parse_known_args, []

    def parse_and_stop(self, args=None, namespace=None):
        found.append(self)
        if arguments is not None:
            known, unknown = parse(self, args, namespace)
            assert not unknown, f"{program.name} has no option {unknown}"
            check_overrides(program, known)
        raise Parsed

    def fail(self, message):
        raise AssertionError(f"{program.name}: {message}")

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        patch.setattr(argparse.ArgumentParser, "error", fail)
        patch.setattr(CommandLine, "error", fail)
        patch.setattr(sys, "argv", [str(program), *(arguments or [])])
        patch.syspath_prepend(str(program.parent))
        with pytest.raises((Parsed, SystemExit)):  # --help exits by itself; errors do not, see above
            runpy.run_path(str(program), run_name="__main__")
    return found[0]


def check_overrides(program, arguments):
    """`--config_overrides` names fields of the config of the program's model."""
    config = FSQMagViTConfig if program.name == "train_tokenizer.py" else LVMAEConfig
    overrides = json.loads(getattr(arguments, "config_overrides", "{}"))
    assert set(overrides) <= {field.name for field in fields(config)}


def check_program(monkeypatch, words):
    """`python FILE ...`, `accelerate launch ... FILE ...` and `sbatch FILE ...`: the program takes these options."""
    if words[1] == "-c":
        return
    if words[0] == "accelerate":
        launched = launch_command_parser().parse_args(words[2:])
        assert launched.config_file is None or (ROOT / launched.config_file).exists()
        words = ["python", launched.training_script, *launched.training_script_args]
    if words[0] == "sbatch":
        words = [word for word in words if word != "--wait"]
        assert (ROOT / words[1]).exists()
        words = ["python", "scripts/pretrain.py", *words[2:]]
    program_parser(monkeypatch, ROOT / words[1], words[2:])


def check_command(monkeypatch, words):
    if words[0] in ("python", "accelerate", "sbatch"):
        check_program(monkeypatch, words)
    elif words[0] == "bash":
        assert (ROOT / words[1]) in RUNS
    elif words[0].endswith("pytest"):
        collected = pytest.main([*words[1:], "--collect-only", "-q", "-p", "no:cacheprovider"])
        assert collected == pytest.ExitCode.OK, "a file is missing, or no test is selected"
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["pip", "install"]:
        for extra in re.findall(r"\.\[(\w+)\]", words[2]):
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text()
    else:
        raise AssertionError("no check for this command: write one, or name the block's language")


def test_the_readme_is_short():
    assert len(README.read_text().split()) <= 1500


def test_the_tree_names_what_exists():
    for line in blocks(README, "text")[0].splitlines():
        folder = ROOT / "src" / "transformers_lvmae" if line.startswith(" ") else ROOT
        assert (folder / line.split()[0]).exists(), line


@each(LINKED)
def test_links_lead_somewhere(path):
    text = re.sub(r"`[^`]+`", "", FENCE.sub("", path.read_text()))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each(PAGES)
def test_commands_fit_the_programs(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for words in commands(path):
        try:
            check_command(monkeypatch, words)
        except Exception as error:
            raise AssertionError(shlex.join(words)) from error


def test_options_in_the_text_exist(monkeypatch):
    parsers = [launch_command_parser(), *(program_parser(monkeypatch, program) for program in PROGRAMS)]
    options = {option for parser in parsers for option in parser._option_string_actions}
    config_fields = {field.name for config in (LVMAEConfig, FSQMagViTConfig) for field in fields(config)}
    for path in PAGES:
        for words in [shlex.split(span) for span in inline_code(path) if span.startswith("--")]:
            assert {word for word in words if word.startswith("--")} <= options, f"{path.name}: {words}"
            if words[0] == "--config_overrides":
                assert set(json.loads(words[1])) <= config_fields, f"{path.name}: {words}"


@each(PAGES)
def test_python_blocks_fit_the_package(path):
    """They compile, their imports exist, and what they import takes the arguments that they pass."""
    for block in blocks(path, "python"):
        tree, names = ast.parse(block), {}
        imports = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
        exec(compile(ast.Module(imports, []), str(path), "exec"), names)
        for call in ast.walk(tree):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
                given = {keyword.arg: None for keyword in call.keywords}
                inspect.signature(names[call.func.id]).bind(*call.args, **given)


@each(RUNS)
def test_run_files_are_commands_that_the_programs_take(path, tmp_path, monkeypatch):
    for folder in ("scripts/runs", "studies/runs", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for name in ("python", "accelerate", "sbatch"):
        (tmp_path / name).write_text(STUB)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "record").mkdir()
    (tmp_path / "runs" / path.stem).mkdir(parents=True)
    inputs = {name: name.lower() for name in ("ANNOTATIONS", "VIDEOS", "PRETRAINED", "TOKENIZER", "K710", "DIVING48")}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RECORD": str(tmp_path / "record"), **inputs}
    copy = tmp_path / path.relative_to(ROOT)
    subprocess.run(["bash", str(copy), *RUN_ARGUMENTS.get(path.stem, [])], env=environment, check=True)
    recorded = [file.read_text().split("\0")[:-1] for file in sorted((tmp_path / "record").iterdir())]
    assert recorded
    monkeypatch.chdir(ROOT)
    for words in recorded:
        check_program(monkeypatch, words)
