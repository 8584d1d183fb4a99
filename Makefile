# Two commands are enough: `make train` and `make test`. Each installs first where that is needed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PACKAGES := actors cluster evaluation learner rewards_service shapes tune_configs
# Options for `make train` and `make report`: make train ARGS="name=quick evaluation=quick"
ARGS ?=
RUN ?= run

.PHONY: help train test slow lint types report clean

help:
	@echo "make train   train a policy, register it, evaluate it, write the report   (ARGS=\"OPTION=VALUE ...\")"
	@echo "make report  write the report of a run again   (RUN=name)"
	@echo "make test    the tests, with coverage"
	@echo "make slow    the tests that take minutes each: processes killed in the middle of something"
	@echo "make lint    ruff: rules and format"
	@echo "make types   mypy, strict"
	@echo "make clean   remove what tools have cached; runs and .venv stay"

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; install Python 3.11, or name it: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: $(PYTHON) is not Python 3.11; name one that is: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@if $(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip install --python $(BIN)/python -e '.[dev]' -c constraints.txt; \
	then :; else echo "uv could not install; trying pip"; $(BIN)/python -m pip install -e '.[dev]' -c constraints.txt; fi
	@touch $@

train: $(INSTALLED)
	$(BIN)/addiffusion train $(ARGS)

report: $(INSTALLED)
	$(BIN)/addiffusion report $(RUN)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not slow" --numprocesses=2 --dist=loadfile --durations=20 $(PACKAGES:%=--cov=%) --cov-report=term:skip-covered --cov-fail-under=85

slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --timeout=900

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED)
	$(BIN)/mypy $(PACKAGES) tests

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage coverage.xml
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +
