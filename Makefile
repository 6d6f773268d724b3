# make report: set up, run the main job, print the page's path.   make test: set up, run the tests.
# make test-oldest: attention and loading, which lean on timm's insides, with the oldest timm that pyproject.toml allows.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
OLDEST := .venv-oldest
TIMM := $(shell sed -n 's/.*"timm>=\([0-9.]*\)".*/\1/p' pyproject.toml)
LEANING := attention* capture* queries readings cam unread loading inspect build checkpoints translate origins networks hub signatures*

.PHONY: setup report test test-all test-oldest lint format clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,notebooks]'
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1  # a peer in tests; its pin of an old requests fits nothing else
	touch $(READY)

$(OLDEST)/.ready: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --upgrade pip
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[dev]' timm==$(TIMM)
	touch $@

report: $(READY)
	$(BIN)/interp report

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m ''

test-oldest: $(OLDEST)/.ready
	$(OLDEST)/bin/python -m pytest $(wildcard $(LEANING:%=tests/test_%.py))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(OLDEST) figures/report
