# `make` lists the targets. Those that need .venv create it the first time and update it
# after setup.cfg, pyproject.toml or constraints.txt changed. They need the network only
# for that.

VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.installed
INSTALLED := $(VENV)/.installed-dev
REQUIREMENTS := setup.cfg pyproject.toml constraints.txt
SOURCES := dppo_jax experiments benchmarks tests examples docs/_site
# One process per core, at most four: compiling uses only one core.
PYTEST_FLAGS ?= -q --numprocesses auto --maxprocesses 4 --dist loadfile

# True for an interpreter that exists, works (a pyenv shim may do neither), has a
# version that setup.cfg accepts, and can create virtual environments.
SUITABLE := -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' </dev/null >/dev/null 2>&1
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3 python; do \
	if $$python $(SUITABLE); then echo $$python; break; fi; done)

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help demo test test-slow coverage mutants fuzz lint types format bench bench-gpu figures site clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile

demo: $(BASE)  ## Pre-train, fine-tune and evaluate a small policy (TASK=can: an arm)
	@$(BIN)/python -m experiments.demo \
		$(if $(TASK),--config=experiments/configs/$(TASK).py:demo)

test: lint types  ## Lint, types and the fast tests: what CI runs
	@echo "== pytest (the first run compiles, later ones reuse .jax_cache)"
	@$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-slow: $(INSTALLED)  ## The tests that take minutes
	@echo "== pytest -m slow"
	@$(BIN)/python -m pytest $(PYTEST_FLAGS) -m slow

coverage: $(INSTALLED)  ## Branch coverage of dppo_jax by the fast tests
	@$(BIN)/python -m pytest $(PYTEST_FLAGS) --cov --cov-report=term:skip-covered

mutants: $(INSTALLED)  ## Do the tests notice errors? (MODULES="learning/losses ...")
	@nice -n 10 $(BIN)/python -m tests.mutants $(MODULES)

fuzz: $(INSTALLED)  ## Damage .pt and .npz files, guided by coverage (MINUTES=5)
	@$(BIN)/python -m pip install --quiet --no-input --disable-pip-version-check \
		--constraint constraints.txt --editable ".[fuzz]"
	@for reader in torch dppo_npz; do \
		nice -n 10 $(BIN)/python -m tests.fuzz $$reader --minutes $(or $(MINUTES),5) || exit 1; \
	done

lint: $(INSTALLED)  ## Check with black, isort and flake8; change nothing
	@echo "== black, isort, flake8"
	@$(BIN)/python -m black --quiet --check --diff $(SOURCES)
	@$(BIN)/python -m isort --quiet --check --diff $(SOURCES)
	@$(BIN)/python -m flake8 $(SOURCES)

types: $(INSTALLED)  ## mypy
	@echo "== mypy"
	@$(BIN)/python -m mypy dppo_jax experiments benchmarks

format: $(INSTALLED)  ## Let black and isort rewrite the sources
	@$(BIN)/python -m isort --quiet $(SOURCES)
	@$(BIN)/python -m black --quiet $(SOURCES)

# JSON=1 keeps the rows in benchmarks/results/, where `make figures` finds them.
KEEP := $(if $(JSON),--json)
HOPPER := --config experiments/configs/hopper.py:v0_8

bench: $(BASE)  ## Measure this machine, about 30 minutes (JSON=1 keeps the rows)
	@echo "== physics"
	@$(BIN)/python -m benchmarks.physics --batch 512 $(KEEP)
	@echo "== denoising"
	@$(BIN)/python -m benchmarks.denoising $(KEEP)
	@echo "== an iteration of avoid"
	@$(BIN)/python -m benchmarks.train_step $(KEEP)
	@echo "== an iteration of Hopper"
	@$(BIN)/python -m benchmarks.train_step $(HOPPER) $(KEEP)
	@$(BIN)/python -m benchmarks.train_step $(HOPPER) $(KEEP) \
		--set algorithm.ppo.minibatch=chain name=hopper_chain
	@$(BIN)/python -m benchmarks.train_step $(HOPPER:v0_8=fast) $(KEEP)
	@echo "== an iteration of soft actor-critic"
	@$(BIN)/python -m benchmarks.off_policy $(KEEP)
	@echo "== checkpoints"
	@$(BIN)/python -m benchmarks.checkpoints $(KEEP)
	@echo "== iterations of all algorithms"
	@$(BIN)/python -m benchmarks.algorithms --task avoid $(KEEP)
	@echo "== a control step of a robot"
	@$(BIN)/python -m benchmarks.latency $(KEEP)
	@echo "== pre-training"
	@$(BIN)/python -m benchmarks.pretrain $(KEEP)
	@echo "== 64 to 4096 environments"
	@$(BIN)/python -m benchmarks.scaling --max-seconds 10 $(KEEP) $(if $(JSON),--plot)
	@echo "== compiling"
	@$(BIN)/python -m benchmarks.compile_time $(KEEP)

bench-gpu: $(BASE)  ## Measure a GPU in 8 minutes (SMALL=1 tries it on a CPU)
	@$(BIN)/python -m benchmarks.gpu $(if $(SMALL),--small) $(if $(DATA),--data $(DATA))

figures: $(BASE)  ## Write kept measurements into docs/performance.md
	@$(BIN)/python -m benchmarks.report

site: $(BASE)  ## Build the documentation in site/, without a network
	@$(BIN)/python -c "import mkdocs, mkdocstrings" 2>/dev/null || $(INSTALL) ".[site]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "open site/index.html, or for the search http://localhost:8000 after:"
	@echo "  $(BIN)/python -m http.server --directory site"

clean:  ## Remove caches and build leftovers; .venv and runs/ stay
	@rm -rf .pytest_cache .mypy_cache .jax_cache build dist site *.egg-info
	@find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp file holds the requirements that were installed, so that new file dates alone,
# as after switching branches, install nothing. Programs need BASE; tests and linters
# need INSTALLED.
UNCHANGED = cat $(REQUIREMENTS) | cmp -s - $@ && touch $@
INSTALL = $(BIN)/python -m pip install --no-input --disable-pip-version-check \
	--constraint constraints.txt --editable

$(BASE): $(REQUIREMENTS)
	@if $(UNCHANGED); then exit 0; fi; \
	set -e; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python="$(PYTHON)"; \
		if [ -z "$$python" ] || ! $$python $(SUITABLE); then \
			echo "No usable Python found$${python:+: '$$python' does not work}." >&2; \
			echo "dppo_jax needs Python 3.11, 3.12 or 3.13 with the venv module;" >&2; \
			echo "install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
			exit 1; \
		fi; \
		echo "== creating $(VENV) with $$($$python --version)"; \
		$$python -m venv --clear $(VENV); \
	fi; \
	echo "== installing the dependencies into $(VENV); the first time takes minutes"; \
	$(INSTALL) .; \
	cat $(REQUIREMENTS) > $@

$(INSTALLED): $(BASE)
	@if $(UNCHANGED); then exit 0; fi; \
	echo "== installing what tests and linters need into $(VENV)"; \
	$(INSTALL) ".[dev]" && cat $(REQUIREMENTS) > $@
