# Every target makes .venv the first time, and again when setup.py changes; only pip uses the network.
#   make quickstart EXTRAS=dev,cuda      on an NVIDIA GPU
#   make test ARGS='-k gridworld'        some of the tests
.DEFAULT_GOAL := help
.PHONY: help quickstart test lint bench rivals clean

EXTRAS ?= dev
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11 python
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/ready-$(EXTRAS)
RIVALS := .venv-rivals
SUITED := sys.version_info >= (3, 11)

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "%-12s%s\n", $$1, $$2}' Makefile

quickstart: $(READY)  ## every stage once, in minutes on a CPU, and a report
	$(BIN)/python -m experiments.pipeline --config=configs/gridworld.py:quickstart --workdir=runs/quickstart

test: $(READY)  ## all tests
	$(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadscope --durations 15 $(ARGS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

bench: $(READY)  ## speed of the hot paths
	$(BIN)/python -m experiments.benchmark $(ARGS)

rivals: $(RIVALS)/xminigrid/ready $(RIVALS)/navix/ready $(RIVALS)/torch/ready  ## our speed beside other libraries'
	$(BIN)/python -m experiments.benchmark --rivals=$(RIVALS) --rows='env_steps|pretrain' --out=runs/benchmark_rivals.json $(ARGS)

clean:  ## remove environments and caches; runs/ and data/ stay
	rm -rf $(VENV) $(RIVALS) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): setup.py
	@$(BIN)/python -c 'import pip, sys; assert $(SUITED)' 2>/dev/null && exit; \
	for python in $(PYTHON); do \
	  $$python -c 'import ensurepip, sys, venv; assert $(SUITED)' 2>/dev/null || continue; \
	  echo "Making $(VENV) with $$($$python --version); this takes about a minute."; \
	  exec $$python -m venv --clear $(VENV); \
	done; \
	echo 'No Python 3.11 or later with its venv module (python3-venv on Debian) among: $(PYTHON).' >&2; \
	echo 'Install one, or name one: make PYTHON=/path/to/python3' >&2; \
	exit 1
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$(EXTRAS)]'
	@touch $@

# One that cannot be installed is left out, and the comparison says so.
$(RIVALS)/%/ready: $(READY) experiments/rivals.py
	$(BIN)/python -m venv --clear $(@D)
	@echo '*' > $(RIVALS)/.gitignore
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$($(BIN)/python experiments/rivals.py $* --requirement) && touch $@ || echo 'Left out: $*'
