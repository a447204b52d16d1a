# make demo   set up, train on 8x8 digits, say where the report is
# make test   set up what is missing, run the tests
# make site   the documentation as pages, into ./site; read them with python -m http.server -d site
# make bench  all measurements of docs/performance.md, on an otherwise idle machine
# make gpu    all measurements on one GPU, at most 8 minutes; make gpu-rehearsal goes through them on a CPU
VENV := .venv
BIN := $(VENV)/bin
# The first interpreter that is new enough.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# One thread a test process: two of them fill two cores.
TEST_ENV := OMP_NUM_THREADS=1 SPIKEDISTILL_EAGER=1

.PHONY: demo test test-slow test-fuzz bench gpu gpu-rehearsal lint check site clean

demo: $(VENV)/.demo
	$(BIN)/spikedistill train digits
	@echo "for the commands in this shell: source $(VENV)/bin/activate"

test: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2

test-slow: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m 'slow and not fuzz'

# 10,000 mutated files a reader: 20 minutes
test-fuzz: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m fuzz tests/fuzz

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/all.py

# With the interpreter that is there: a machine with a GPU may have torch and no network.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py $(GPU)

gpu-rehearsal:
	$(TEST_ENV) $(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py --device cpu --quick --json build/gpu.json

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

# Offline: pages load nothing from elsewhere. The theme's maker announces its successor on every build.
site: $(VENV)/.site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "spikedistill needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,peers]'
	@touch $@ $(VENV)/.demo

$(VENV)/.site: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) site build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache
