# Each target first sets up what it needs: a virtual environment in .venv with the exact versions of constraints.txt.
# `make demo` installs the package alone, the other targets also the tools of development.
SHELL := /bin/bash
.DEFAULT_GOAL := help

# TORCH=2.6.0 or TORCH=newest: an environment of its own with another version of torch.
VENV := .venv$(if $(TORCH),-torch-$(TORCH))
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGE := $(VENV)/.package
EXTRAS := dev,lite0,digits,track

.PHONY: help setup demo test test-fast test-all lint types clean

help:  ## List the targets
	@echo "make TARGET [ARGS='...'] [PYTHON=python3.13] [TORCH=2.6.0|newest]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s%s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## Create .venv and install the package with its extras (instant if nothing changed)

# $(call install,EXTRAS) makes the environment. A failed installation leaves no stamp, so the next call tries again.
# Each torch pins its own sympy.
define install
	@set -e; \
	for python in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then echo "error: no Python 3.11 or later with venv: install one, or set PYTHON=/path/to/python3" >&2; exit 2; fi; \
	if [ ! -x $(BIN)/python ]; then $$found -m venv $(VENV); fi
	@$(if $(TORCH),grep -vE '^(torch|sympy)==' constraints.txt,cat constraints.txt) > $(VENV)/constraints.txt
	@echo '$(if $(filter-out newest,$(TORCH)),torch==$(TORCH))' >> $(VENV)/constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -c $(VENV)/constraints.txt -e '.$(1)'
	@touch $@
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,[$(EXTRAS)])
	@touch $(PACKAGE)

# The package alone, for those who do not develop it.
$(PACKAGE): pyproject.toml constraints.txt
	$(call install,)

demo: $(PACKAGE)  ## Train, sample and write a report on embedded data (QUICK=1: two minutes; ARGS='--minutes 60')
	$(BIN)/prologue demo $(if $(QUICK),--quick) $(ARGS)

# One process runs all tests of a file, because they share fixtures.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

test: setup  ## Run the tests on all cores (ARGS='tests/test_config.py -x')
	$(PYTEST) -m 'not gpu and not browser' $(ARGS)

test-fast: setup  ## Run the tests that neither train, measure nor compile
	$(PYTEST) -m 'not slow and not gpu and not browser' $(ARGS)

test-all: setup  ## Run all tests, including those that need a GPU or a browser
	$(PYTEST) $(ARGS)

lint: setup  ## Check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Check types
	$(BIN)/mypy

clean:  ## Remove caches and builds; keep runs/ and .venv
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis src/*.egg-info
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
