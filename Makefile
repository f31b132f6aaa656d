# `make demo` trains, evaluates and predicts; `make test` runs the checks. Both install what they
# need into .venv first, and can be run again at any time.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/fashion_mnist
# A worker takes neighbouring tests, which share what they compile.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test test-all lint gpu-test sanitize clean
help:
	@echo "make demo      train a small ViG on the embedded photographs, evaluate, predict (CPU: minutes)"
	@echo "make test      lint, types and the tests that need no GPU (11 minutes on two cores)"
	@echo "make test-all  the same with the slow tests"
	@echo "make lint      only lint and types"
	@echo "make gpu-test  the tests that need a CUDA GPU"
	@echo "make sanitize  the kernels under compute-sanitizer: accesses out of bounds, races (CUDA GPU)"
	@echo "make clean     remove the demo's run and the environment"

$(VENV)/runtime: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.12 ...")'
	@echo "== installing the environment into $(VENV)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/runtime
	@echo "== installing the test tools into $(VENV)"
	@$(INSTALL) -r requirements-dev.txt
	@touch $@

demo: $(VENV)/runtime
	@echo "== training on 8,000 photographs (goes on where it stopped; metrics in $(RUN)/metrics.jsonl)"
	@$(BIN)/python train.py --config=configs/fashion_mnist.py --workdir=$(RUN)
	@echo "== evaluating on the 2,000 held-out photographs"
	@$(BIN)/vig evaluate $(RUN)
	@echo "== predicting held-out image files"
	@$(BIN)/vig data images $(RUN)/images --per-class 4
	@$(BIN)/vig predict $(RUN) $(RUN)/images --top 3 --json $(RUN)/answers.json --picture $(RUN)/answers.png | tail -n 12

test: lint
	@echo "== tests (without those that need a GPU, and the slow ones: make test-all)"
	@$(PYTEST) -m "not gpu and not slow"

test-all: lint
	@echo "== tests (without those that need a GPU)"
	@$(PYTEST) -m "not gpu"

lint: $(VENV)/dev
	@echo "== lint and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

gpu-test: $(VENV)/dev
	@$(BIN)/python -m pytest -m gpu

# Compiling is very slow under the sanitizer: a run without it fills a cache. Each buffer is its own
# allocation, so that leaving one is seen; nothing that only tunes runs, and no CUDA graphs.
SANITIZED := XLA_PYTHON_CLIENT_ALLOCATOR=platform JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/sanitize \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
	XLA_FLAGS="--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer="
SANITIZE := $(BIN)/python tests/kernels_pallas/sanitize.py

sanitize: $(VENV)/dev
	@$(SANITIZED) $(SANITIZE)
	@$(SANITIZED) compute-sanitizer --tool memcheck --error-exitcode 1 $(SANITIZE)
	@$(SANITIZED) compute-sanitizer --tool racecheck --error-exitcode 1 $(SANITIZE)

clean:
	rm -rf $(RUN) $(VENV)
