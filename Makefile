# Every target sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := dev,lite0,digits,track

.PHONY: help setup demo test test-fast test-all lint types clean

help:  ## List the targets
	@echo "make TARGET [ARGS='…']"
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  \1\t\2/' | expand -t 12

setup: $(STAMP)  ## Make .venv and install the package with its extras (quick when nothing changed)

# PYTHON=… overrides the search; a failed installation leaves no stamp, so the next call tries again.
$(STAMP): pyproject.toml constraints.txt
	@set -e; \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "error: no Python 3.11 or later with venv: install one, or make PYTHON=/path/to/python3" >&2; exit 2; fi; \
	if [ ! -x $(BIN)/python ]; then $$found -m venv $(VENV); fi
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

demo: setup  ## Train, sample and report on embedded data (QUICK=1: two minutes; ARGS='--minutes 60')
	$(BIN)/prologue demo $(if $(QUICK),--quick) $(ARGS)

# Whole files go to one process each: tests of a file share what it set up.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: setup  ## Run the tests on all cores (ARGS='tests/test_config.py -x')
	$(PYTEST) -m 'not gpu and not browser' $(ARGS)

test-fast: setup  ## Run the tests that take a moment each
	$(PYTEST) -m 'not slow and not gpu and not browser' $(ARGS)

test-all: setup  ## Run every test, those that need a GPU or a browser included
	$(PYTEST) $(ARGS)

lint: setup  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Check types
	$(BIN)/mypy

clean:  ## Remove caches and builds; keeps runs/ and .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
