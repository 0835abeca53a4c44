# Everything runs in .venv, which `make install` builds once. PYTHON chooses the interpreter that it is made from.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install quickstart test quality bench

install: .venv/installed

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --editable '.[dev]'
	touch $@

quickstart: install  ## tokenizer, pre-training, fine-tuning and a classified clip, on generated videos
	PATH="$(CURDIR)/$(BIN):$$PATH" bash scripts/runs/quickstart.sh

test: install  ## the fast tests
	$(BIN)/pytest -n 2

bench: install  ## our pre-training step beside VideoMAE's at 128 frames; benchmarks/run.py --help has more
	$(BIN)/python benchmarks/run.py --cases step --sizes base --frames 128 --attention sdpa

quality: install  ## lint, format and types
	$(BIN)/ruff check src scripts studies examples benchmarks tests
	$(BIN)/ruff format --check src scripts studies examples benchmarks tests
	$(BIN)/mypy
