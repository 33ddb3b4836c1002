# make quickstart    pretrain on digits and print what was learned (CPU, a few minutes)
# make test          install everything, run the tests that see most faults: minutes
# make test-all      all of them: several processes, launch scripts, trajectories, deep encoders too
# make test-release  what only a release needs: bare installs, every recording, disks full anywhere
# make parity        compare with every recording of the official code, a line for each
# make lint types    what CI checks besides
# make wheel         what could be published, in dist/: a wheel and its source, checked
# PYTHON=python3.12 make test   takes another interpreter

PYTHON ?= python3
VENV ?= .venv
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
BIN := $(VENV)/bin
MADE := $(VENV)/.python-$(VERSION)
CORE := $(VENV)/.core
ALL := $(VENV)/.all
RELEASE := $(VENV)/.release
# One more than cores: a test of a door waits for processes that start.
WORKERS ?= $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) + 1 )))
SHELL_SCRIPTS := launch/common.sh $(shell grep -l '^\#!.*bash' launch/*)
# tests/conftest.py groups and orders the tests.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup --no-loadscope-reorder

# Where it is set, each of the many processes compiles anew all that it imports.
unexport PYTHONDONTWRITEBYTECODE

# Both precisions: JAX has one in a process.
BOTH = $(PYTEST) $(1) && JAX_ENABLE_X64=1 $(PYTEST) $(1)

.PHONY: quickstart test test-all test-release parity lint types wheel clean

quickstart: $(CORE)
	$(BIN)/python -m simclr_jax.main --config=configs/digits.py

test: $(ALL)
	$(call BOTH,-m "not slow and not release")

test-all: $(ALL)
	$(call BOTH)

test-release: $(ALL) parity
	$(BIN)/python -m pytest -m release tests

# Every recording, with a line for each: of tests/golden, or of SIMCLR_GOLDEN=FOLDER make parity
parity: $(ALL)
	failed=0; for x64 in 0 1; do \
	  SIMCLR_PARITY=all JAX_ENABLE_X64=$$x64 $(PYTEST) tests/parity \
	    || failed=1; \
	done; exit $$failed

lint: $(ALL)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/shellcheck -x -P SCRIPTDIR -P . .ci/run $(SHELL_SCRIPTS)

types: $(ALL)
	$(BIN)/mypy

# The wheel is built from the unpacked source distribution: nothing that lies about gets into it.
wheel: $(RELEASE)
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

# An environment of another interpreter is replaced.
$(MADE):
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(CORE): $(MADE) pyproject.toml
	$(BIN)/python -m pip install -q -e .
	touch $@

$(ALL): $(MADE) pyproject.toml requirements.txt
	$(BIN)/python -m pip install -q --no-compile -r requirements.txt -e '.[images,tf,heic,dev]'
	touch $(CORE) $@

$(RELEASE): $(CORE)
	$(BIN)/python -m pip install -q -e '.[release]'
	touch $@
