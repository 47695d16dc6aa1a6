# Two commands do everything on a fresh machine: `make demo` and `make test`. Both install first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test test-all test-core check format clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-10s %s\n", $$1, $$2}'

venv: $(STAMP)  ## create .venv and install everything into it

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "placeray needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version). Use: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "Installing into $(VENV): about 7 GB of packages, a few minutes the first time."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster,dev]'
	@touch $(STAMP)

demo: venv  ## the whole path on a drawn city: draw, normalize, train, embed, index, evaluate, localize
	$(BIN)/python jobs/demo.py --config jobs/configs/demo/toy.yaml $(DEMO)

test: venv  ## the suite that CI runs
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --durations 15

test-all: venv  ## every test, the slow ones too
	$(BIN)/python -m pytest

test-core: .venv-core/.installed  ## the unit tests in an environment without Ray, MLflow and s3fs
	.venv-core/bin/python -m pytest tests/unit -m "not slow"

.venv-core/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-core
	.venv-core/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . pytest pytest-timeout hypothesis
	@touch .venv-core/.installed

check: venv  ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=platform $(BIN)/lint-imports

format: venv  ## rewrite the files the way `make check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the demo wrote (not the environment)
	rm -rf runs
