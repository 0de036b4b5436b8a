# Works from a bare clone with python3 (3.11 or newer, with venv), make and git.

# The system's own Python where it can make environments: distributions build it with profile-guided optimisation, which
# one that a version manager compiled often lacks; every payment then costs a tenth more (docs/performance.md).
RIGHT_PYTHON := -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))'
PYTHON ?= $(firstword $(foreach found,/usr/bin/python3 python3,$(shell $(found) $(RIGHT_PYTHON) 2>/dev/null && echo $(found))) python3)
VENV := .venv
BIN := $(VENV)/bin
# What `make bench` measures: every figure, or one: online, offline, scale, with options of its own.
BENCH ?= all

# The stamps lie in the environment, so that removing it removes them.
RUNTIME := $(VENV)/.runtime
DEV := $(VENV)/.dev
TRAINING := $(VENV)/.training
# Where `make train-fraud` finds labelled worlds; docs/fraud.md says what they hold.
DATA ?= data/fraud

.PHONY: setup setup-dev debian-packages gen format check-contracts lint test test-slow up demo bench train-fraud lock clean
.DELETE_ON_ERROR:

setup: $(RUNTIME)

setup-dev: $(DEV)

# ensurepip runs last in venv, so pip is the sign of a whole environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=")'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.setup: requirements/setup.txt | $(BIN)/pip
	$(BIN)/pip install -qq --disable-pip-version-check --require-hashes --requirement $<
	@touch $@

# $(1): a requirements file. uv reads no pip configuration, so where only pip knows the way to a
# package index, pip does the work.
define install
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --require-hashes --requirement $(1) \
		|| $(BIN)/pip install -qq --disable-pip-version-check --require-hashes --requirement $(1)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --offline --no-deps --no-build-isolation --editable .
endef

$(RUNTIME): requirements/runtime.txt pyproject.toml $(VENV)/.setup
	$(call install,requirements/runtime.txt)
	@touch $@

# dev.txt holds everything runtime.txt does, in the same versions.
$(DEV): requirements/dev.txt pyproject.toml $(VENV)/.setup
	$(call install,requirements/dev.txt)
	@touch $(RUNTIME) $@

debian-packages:
	@tools/install-debian-packages

gen: $(DEV)
	$(BIN)/python tools/contracts.py generate

format: $(DEV)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix
	$(BIN)/buf format --write

check-contracts: $(DEV)
	$(BIN)/python tools/contracts.py check

lint: $(DEV) check-contracts
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/lint-imports --no-logo
	$(BIN)/mypy

# The same examples in the same order every time.
test: $(DEV) debian-packages lint
	$(BIN)/pytest --numprocesses 2 --dist loadfile --hypothesis-profile steady --randomly-seed 1

# Looks for new ones.
test-slow: $(DEV) debian-packages
	$(BIN)/pytest -m slow

up: $(RUNTIME)
	@$(BIN)/tallystick up

demo: $(RUNTIME)
	@$(BIN)/tallystick demo

bench: $(RUNTIME) debian-packages
	@$(BIN)/tallystick bench $(BENCH)

# training.txt holds everything runtime.txt does, in the same versions.
$(TRAINING): requirements/training.txt pyproject.toml $(VENV)/.setup
	$(call install,requirements/training.txt)
	@touch $(RUNTIME) $@

train-fraud: $(TRAINING)
	$(BIN)/python -m training.fraud --data $(DATA)

# Newest versions that pyproject.toml allows, with the hashes of every file a Linux machine could
# be served. Addresses and local paths stay out: they differ from machine to machine.
COMPILE = $(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--no-header --no-annotate --no-emit-index-url --no-emit-find-links
lock: $(VENV)/.setup
	$(COMPILE) requirements/setup.in --output-file requirements/setup.txt
	$(COMPILE) pyproject.toml --extra dev --constraint requirements/setup.txt --output-file requirements/dev.txt
	$(COMPILE) pyproject.toml --constraint requirements/dev.txt --output-file requirements/runtime.txt
	$(COMPILE) pyproject.toml --extra training --constraint requirements/dev.txt --output-file requirements/training.txt

# Back to a bare clone. Also forgets the development stack's data: stop it first.
clean:
	rm -rf $(VENV) .tallystick build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './web/node_modules/*' -prune -exec rm -rf {} +
