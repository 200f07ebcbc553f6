# Every target sets up what it needs: a virtual environment in .venv, made anew only where these files changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2
# a file stays on one worker, so that what its tests share is made once
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: demo test test-all lint bench ui setup setup-dev
.DEFAULT_GOAL := demo

demo: setup
	@$(BIN)/python -m difflora demo

ui: setup
	@$(BIN)/python -m webui

test: setup-dev
	@$(PYTEST)

test-all: setup-dev
	@$(PYTEST) -m ''

lint: setup-dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/pyright

bench: setup-dev
	@$(BIN)/python -m benchmarks

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing difflora into $(VENV) (some minutes the first time)"
	@$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	@echo "installing difflora and its test tools into $(VENV) (some minutes the first time)"
	@$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "difflora needs Python 3.11 or newer, $(PYTHON) is older: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments: apt-get install python3-venv" >&2; exit 1; }
