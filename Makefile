# Needs Python >= 3.10, make and git; everything else goes into .venv, which `make clean` removes.
# PYTHON=/path/to/python chooses the interpreter, ARGS="..." is passed on to the program that the target runs.
# WORKERS=0 runs the tests one by one in one process, for example with ARGS="--pdb tests/unit/test_step.py".

PYTHON ?= python3
ARGS ?=
MINUTES ?= 10
WORKERS ?= auto
venv := .venv
bin := $(venv)/bin
# One stamp per set of extras: an installation runs again only when pyproject.toml has changed.
installed := $(venv)/installed
pytest := $(bin)/python -m pytest --numprocesses=$(WORKERS)
# The newest Flower is installed. Its pages are added to in older ones, too.
flowers := $(venv)/flower-2.0.1 $(venv)/flower-2.1.0

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv check fix test test-unit chaos demo bench pictures clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(installed)-test ## make .venv with everything that development needs

check: $(installed)-test ## lint, format, imports and types
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/lint-imports --no-cache
	$(bin)/mypy
	PYRIGHT_PYTHON_GLOBAL_NODE=off $(bin)/pyright --pythonpath $(bin)/python

fix: $(installed)-test ## let the linter and the formatter correct what they can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

# Each worker imports all tests, and each Celery worker the package: they compile both only once.
test test-unit: export PYTHONDONTWRITEBYTECODE =

test: $(installed)-test $(flowers) ## run the whole test suite, in WORKERS=auto processes
	$(pytest) $(ARGS)

test-unit: $(installed)-test ## run the tests that need no server, for daily work
	$(pytest) tests/unit $(ARGS)

chaos: $(installed)-test ## kill, freeze and cut off everything for MINUTES=10; SEED=... is the first seed
	@$(bin)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(if $(PROGRAMS),--programs $(PROGRAMS)) $(ARGS)

demo: $(installed)-embedded ## kill workers while they charge 20 orders, and see each charged exactly once
	@$(bin)/python -m example_app.demo $(ARGS)

bench: $(installed)-test ## measure what durability costs
	$(bin)/python -m benchmarks $(ARGS)

pictures: $(installed)-test ## take the pictures of docs/pictures anew, in a browser
	DURABLE_PICTURES=docs/pictures $(bin)/python -m pytest --numprocesses=0 tests/smoke/test_flower.py -k test_pages_fit

clean: ## remove .venv and all caches
	rm -rf $(venv) build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(installed)-%: pyproject.toml | $(bin)/python
	$(bin)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(venv)/flower-%: $(installed)-test
	$(bin)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ flower==$*
	@touch $@

$(bin)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "celery-durable needs Python >= 3.10; say which: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(venv)
