# make report: set up, run the main job, print the page's path.   make test: set up, run the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup report test test-all lint format clean

setup: $(READY)

$(READY): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev,notebooks]'
	$(BIN)/python -m pip install --quiet --no-deps torchattacks==3.5.1  # a peer in tests; its pin of an old requests fits nothing else
	touch $(READY)

report: $(READY)
	$(BIN)/interp report

test: $(READY)
	$(BIN)/python -m pytest

test-all: $(READY)
	$(BIN)/python -m pytest -m ''

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv figures/report
