# make setup   a virtual environment with the tested versions
# make demo    the whole circle on this machine   (SEED=n for another world)
# make serve   the studio that the demo filled: label and review in the browser
# make test    linters, types and the whole test suite
# make lint    linters and types alone
# make bench   measure what this machine can measure
# make soak    kill runs at random moments, watch memory and open files
# make clean   remove caches and the environment; runs/ stays

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.winsome-ready
SEED ?=

# Nothing here may reach for a model hub or report usage.
export HF_HUB_OFFLINE = 1
export GRADIO_ANALYTICS_ENABLED = False
export DO_NOT_TRACK = 1
export PYRIGHT_PYTHON_IGNORE_WARNINGS = 1

.DEFAULT_GOAL := help
.PHONY: help setup demo serve test lint packages bench soak clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY)

# torch comes first and by itself: its wheel is the large one, and an index of CPU builds given to
# pip (PIP_INDEX_URL, PIP_FIND_LINKS) is then asked for it before anything else depends on it.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "winsome: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1) (make PYTHON=python3.12 takes another)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "winsome: $(PYTHON) cannot make a virtual environment (Debian: apt-get install python3-venv)" >&2; exit 1; }
	$(BIN)/python -m pip install -qq --upgrade 'pip>=25'
	$(BIN)/python -m pip install -qq --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install -qq --constraint constraints.txt --editable '.[all,dev]'
	@touch $@

demo: setup
	$(BIN)/winsome demo $(if $(SEED),--seed $(SEED))

serve: setup
	$(BIN)/winsome serve runs/demo/studio

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-logo
	$(BIN)/pyright

packages: setup
	@PYTHON=$(BIN)/python sh tools/system-packages.sh

# A file's tests stay in one process, and the first files, which launch the most, begin first.
test: packages lint
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

bench: setup
	$(BIN)/python -m benchmarks.measure

soak: setup
	$(BIN)/python -m benchmarks.soak

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find align annotate rewards benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
