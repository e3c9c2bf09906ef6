# gossamer: `make` lists what there is to make. Needs Python 3.11 or newer with pip.

PYTHON ?= python3
# The version the figures in this repository were measured with; TORCH_INDEX picks another build of it, such as
# https://download.pytorch.org/whl/cpu
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
DEMO_OUT ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-faults test-cpus serve-test lint parity bench record bench-gpu clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.installed ## train the default recipe on this machine and print samples (DEMO_OUT=DIR to choose the folder)
	@if [ -e "$(DEMO_OUT)/config.yaml" ]; then \
	  echo "make demo: $(DEMO_OUT) holds a run already; choose one of:"; \
	  if [ -e "$(DEMO_OUT)/model/config.json" ]; then \
	    echo "  $(BIN)/gossamer sample $(DEMO_OUT)             (its text)"; \
	  fi; \
	  if ! grep -qs '"event": "end"' "$(DEMO_OUT)/metrics.jsonl"; then \
	    echo "  $(BIN)/gossamer train --out $(DEMO_OUT) --resume  (go on where it stopped)"; \
	  fi; \
	  echo "  make demo DEMO_OUT=$(DEMO_OUT)-2               (another run beside it)"; \
	  exit 2; \
	fi >&2
	$(BIN)/gossamer train --out "$(DEMO_OUT)"
	$(BIN)/gossamer sample "$(DEMO_OUT)" --prompt "class " --temperature 0.6
	$(BIN)/gossamer sample "$(DEMO_OUT)" --prompt "def get_" --temperature 0.6

test: $(VENV)/.installed-dev ## run the tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2

test-slow: $(VENV)/.installed-dev ## run the slow tests
	$(BIN)/python -m pytest -q -m slow

test-faults: $(VENV)/.installed-dev ## kill and resume, damaged disks, and one process against two and four
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "slow or not slow" tests/test_cluster_files.py tests/train/test_parallel.py \
	  tests/run/test_kill_and_resume.py tests/run/test_disk_faults.py tests/run/test_restarts.py \
	  tests/run/test_loop.py

test-cpus: $(VENV)/.installed-dev ## run the native kernels as built for older x86 processors and, emulated, for ARM
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -m "slow or not slow" tests/ops/test_native_processors.py

serve-test: $(VENV)/.installed-dev ## the service: OpenAI's client, fuzzing, hundreds of clients, a killed engine, flat memory
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s -m "slow or not slow" tests/serve

lint: $(VENV)/.installed-dev ## check style, format and types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

parity: $(VENV)/.installed-dev ## compare this model with the one in transformers, number by number
	$(BIN)/python benchmarks/parity.py

# Records go to bench/; the last command compares their ratios with benchmarks/recorded.json and fails if one fell.
bench: $(VENV)/.installed-dev ## benchmarks beside transformers in about ten minutes, and what fell since last recorded
	$(BIN)/python benchmarks/train_step.py --quick --turns 3 --json bench/train_step.json
	$(BIN)/python benchmarks/operations.py --short --json bench/operations.json
	$(BIN)/python benchmarks/long_context.py --quick --json bench/long_context.json
	$(BIN)/python benchmarks/decode.py --quick --json bench/decode.json
	$(BIN)/python benchmarks/regressions.py

record: $(VENV)/.installed-dev ## run the newest training-cost record again and say whether it holds (ARGS="--texts DIR")
	$(BIN)/python benchmarks/record.py $(ARGS)

bench-gpu: $(VENV)/.installed-dev ## on a GPU: check every operation against float64, time them and training steps (ARGS=--help)
	$(BIN)/python benchmarks/gpu.py $(ARGS)

clean: ## remove the virtual environment, caches and builds; runs stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# A stamp for users and one for developers: installed once, and again when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gossamer needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; name another with: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	$(BIN)/python -m pip install --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@
