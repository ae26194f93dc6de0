# Everything here needs GNU make, a POSIX machine and Python 3.11; the rest is installed into .venv.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3.11
export PYTHON

RECIPE ?= training/recipes/sft-1.yaml
ARGS ?=
PYTEST_ARGS ?=

.PHONY: help serve test lint typecheck unit integration fuzz bench bench-gpu bench-reliability screenshots format adapt train lock image clean

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

serve: ## Install what is needed and serve on http://localhost:8000 (ARGS="--port 9000")
	@venv=$$(scripts/setup.sh serve | tail -n 1); exec "$$venv/bin/requery" serve $(ARGS)

test: lint typecheck ## Lint, check types, run all tests (unit and integration in one go)
	.venv/bin/pytest -n 2 --dist loadscope $(PYTEST_ARGS)

lint: .venv/.requery-dev ## Check style, formatting and which room may import which
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/lint-imports

typecheck: .venv/.requery-dev ## Check types, strictly
	.venv/bin/mypy

unit: .venv/.requery-dev ## Run the unit tests (no model, no server)
	.venv/bin/pytest -m "not integration" -n 2 $(PYTEST_ARGS)

integration: .venv/.requery-dev ## Run the tests with the real model, engine and Redis
	.venv/bin/pytest -m integration -n 2 --dist loadscope $(PYTEST_ARGS)

fuzz: .venv/.requery-dev ## Look for counterexamples for about ten minutes (ARGS="--requests 20000")
	scripts/fuzz.sh $(ARGS)

bench: .venv/.requery-dev ## Measure what docs/performance.md describes (an hour or more; quiet machine)
	.venv/bin/python -m loadtests.bench all --out build/loadtests/bench.json $(ARGS)

bench-gpu: ## The same on an NVIDIA GPU, for larger models, beside what the hardware allows
	@venv=$$(REQUERY_DEVICE=cuda scripts/setup.sh serve | tail -n 1); \
	REQUERY_DEVICE=cuda "$$venv/bin/python" -m loadtests.bench gpu --out build/loadtests/bench-gpu.json $(ARGS)

bench-reliability: .venv/.requery-dev ## Measure what docs/reliability.md promises (half an hour; quiet machine)
	.venv/bin/python -m loadtests.reliability all --out build/loadtests/reliability.json $(ARGS)

screenshots: .venv/.requery-dev ## Take the pictures of docs/console.md anew
	REQUERY_SCREENSHOTS=1 REQUERY_REQUIRE_BROWSER=1 .venv/bin/pytest tests/browser/test_pictures.py $(PYTEST_ARGS)

format: .venv/.requery-dev ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

adapt: .venv/.requery-dev ## Make a version of a shop's product list (ARGS="--products products.csv --name my-shop --out my-versions")
	.venv/bin/requery adapt $(ARGS)

train: .venv/.requery-dev ## Train a version (RECIPE=training/recipes/<name>.yaml)
	.venv/bin/requery train --recipe $(RECIPE) $(ARGS)

image: .venv/.requery-dev ## Build the CPU image as root with buildah and try it (many minutes; ARGS="--debootstrap --host-config")
	PIP=.venv/bin/pip deploy/container/build.sh $(ARGS)
	REQUERY_TEST_IMAGE=requery:cpu .venv/bin/pytest tests/deploy/test_image.py $(PYTEST_ARGS)

lock: .venv/.requery-dev ## Write the lock files anew (UPGRADE=1 for newest releases)
	scripts/lock.sh

clean: ## Remove environments, caches and build outputs
	rm -rf .venv .venv-gpu .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage build dist ./*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The set-up script's own stamp: it decides whether anything is to be done.
.venv/.requery-dev: FORCE
	@scripts/setup.sh dev >/dev/null

.PHONY: FORCE
FORCE:
