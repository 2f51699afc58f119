# A clone needs no other set-up: every target makes its own .venv first, once.
#
#   make demo       a first clip, made with what ships in the repository
#   make test       lint, format, import contracts, types, the documentation, then the tests; all
#                   run, whatever fails
#   make lint | style | contracts | types | docs | pytest      one of these alone; docs builds the
#                   documentation into site/, and a warning or a broken link fails it
#   make package    a wheel and a source archive in dist/, checked as the package index does
#   make format     rewrite the files the way `make test` wants them
#   make setup      only the .venv
#   make clean      remove the .venv and every cache
#
# Variables, as in `make demo PYTHON=python3.12`:
#
#   PYTHON          the Python (3.11 or newer) that makes .venv; python3 unless given
#   TORCH_INDEX     one more package index to take torch from. On Linux the standard torch brings
#                   gigabytes of CUDA: without an NVIDIA GPU, give the CPU index that PyTorch's
#                   "Get Started" page shows. Not needed where pip is set up to find a CPU build.
#   DEMO_ARGS       passed on to `recast demo`
#   WORKERS         how many tests run at once (2); each computes with one thread
#   PYTEST_ARGS     passed on to pytest, as in `make pytest PYTEST_ARGS="-k video"`

PYTHON ?= python3
TORCH_INDEX ?=
DEMO_ARGS ?=
PYTEST_ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/python -m pip install --no-input --disable-pip-version-check -c constraints.txt

# The stamp is the last thing that a set-up writes, and it holds the place of the clone. Without it
# .venv is half-made; with another place in it the clone was moved, which breaks a virtual
# environment; and a Python that cannot find its packages was removed or upgraded. Such a .venv is
# made anew. One that is sound but older than its inputs is only updated.
PACKAGES := pip torch diffusers recast pytest xdist
PROBE := from importlib.util import find_spec; import sys; sys.exit(not all(map(find_spec, sys.argv[1:])))
PLACE := $(shell $(BIN)/python -c '$(PROBE)' $(PACKAGES) 2>/dev/null && cat $(STAMP) 2>/dev/null)
ifneq ($(PLACE),$(CURDIR))
.PHONY: $(STAMP)
MAKE_VENV := $(PYTHON) -m venv --clear $(VENV)
else
MAKE_VENV := :
endif

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup demo test lint style contracts types docs pytest package format clean

help:
	@sed -n -e '/^#/!q' -e 's/^# \{0,1\}//p' Makefile

setup: $(STAMP)

demo: $(STAMP)
	$(BIN)/recast demo $(DEMO_ARGS)

# Cheap before dear, and a failure does not keep the later ones from running.
test: $(STAMP)
	@$(MAKE) --no-print-directory --keep-going lint style contracts types docs pytest

lint: $(STAMP)
	$(BIN)/ruff check .

style: $(STAMP)
	$(BIN)/ruff format --check .

contracts: $(STAMP)
	$(BIN)/lint-imports

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	OMP_NUM_THREADS=1 NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

pytest: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

package: $(STAMP)
	$(INSTALL) --quiet --no-build-isolation --editable '.[release]'
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/python -m twine check --strict dist/*
	@ls -l dist

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .import_linter_cache build dist site

# torch goes first and alone, so that the choice of its build is made before anything asks for it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "Recast needs Python 3.11 or newer, and '$(PYTHON)' is not: make PYTHON=python3.11" >&2; exit 1; }
	@$(MAKE_VENV)
	@rm -f $(STAMP)
	@test -n "$(TORCH_INDEX)" || test "$$(uname -s)" != Linux || command -v nvidia-smi >/dev/null || echo \
	  "No NVIDIA GPU here. Should pip now fetch nvidia packages: stop it, see TORCH_INDEX in 'make help'."
	$(INSTALL) $(if $(TORCH_INDEX),--extra-index-url '$(TORCH_INDEX)') torch
	$(INSTALL) hatchling
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@$(BIN)/python -m pip check
	@printf '%s\n' '$(CURDIR)' > $(STAMP)
