# Everything is built from requirements.lock into .venv; nothing else on the machine is touched.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python3)
UV := .uv/bin/uv
BIN := .venv/bin
STAMP := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint format bench docs lock versions clean

help: ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

venv: $(STAMP) ## Build .venv from requirements.lock

$(UV):
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5'

$(STAMP): requirements.lock pyproject.toml | $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) .venv
	$(UV) pip sync --quiet --compile-bytecode --require-hashes --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --no-deps --no-build-isolation --python $(BIN)/python --editable .
	@touch $@

demo: venv ## Run the main job, elfs/digits: label-free coresets of a bundled dataset, no download
	@$(BIN)/winnow run elfs/digits

test: venv ## Run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: venv ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .mypy_cache/packages/winnow  # mypy follows links, not the package's __path__
	@ln -sfn $(CURDIR)/flows $(CURDIR)/tasks $(CURDIR)/deployments $(CURDIR)/winnow/*.py $(CURDIR)/winnow/py.typed .mypy_cache/packages/winnow/
	$(BIN)/mypy

format: venv ## Rewrite the code in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: venv ## Run the benchmarks; one JSON line each into benchmarks/results/
	@for script in benchmarks/[a-z]*.py; do echo "== $$script"; $(BIN)/python $$script || exit 1; done

docs: venv ## Write the generated pages of docs/ (index of methods, datasets, …)
	$(BIN)/python docs/generate.py

lock: $(UV) ## Pin every dependency, with hashes, into requirements.lock
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 --group dev -o requirements.lock pyproject.toml

versions: venv ## Record the code behind each cached task, after raising the version of those whose results changed
	$(BIN)/python tests/test_versions.py

clean: ## Remove the environments and the tools' caches (not the artifact store .winnow)
	rm -rf .venv .uv .pytest_cache .mypy_cache .ruff_cache
