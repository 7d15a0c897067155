# Two commands set everything up: `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help quickstart install test test-fast lint format notebooks docs clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

quickstart: $(VENV)/installed  ## install, then train, evaluate and sample a small hybrid language model (5 to 7 minutes on two cores)
	$(BIN)/python train.py --config configs/quickstart.py --run-dir runs/quickstart --replace

install: $(VENV)/installed  ## make .venv and install the package

test: $(VENV)/installed-test  ## install what tests need and run them all
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-fast: $(VENV)/installed-test  ## all tests but the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m "not slow"

lint: $(VENV)/installed-test  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: $(VENV)/installed-test  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/installed  ## build the documentation into site/
	$(PIP) install -q -e '.[docs]'
	$(BIN)/mkdocs build --strict

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis site

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "seqmodels needs Python 3.11 or newer, but $(PYTHON) is older: call make PYTHON=python3.11 (or newer)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml
	@echo "installing seqmodels into $(VENV) (about a minute, 1 GB with its dependencies)"
	$(PIP) install -q -e .
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	@echo "installing what the tests need"
	$(PIP) install -q -e '.[test]'
	@touch $@
