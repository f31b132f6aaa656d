# `make demo` trains, evaluates and predicts. `make test` runs the checks. Both install what they need
# into $(VENV) first and can be repeated at any time.
PYTHON ?= python3
# A second interpreter for `make test-all`, for example PYTHON312=python3.12: the newest JAX needs it.
PYTHON312 ?=
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/fashion_mnist
SCENES := runs/fashion_scenes
OBJECTS := runs/fashion_detection
# Each worker runs neighbouring tests, which share compiled functions.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo demo-segmentation demo-detection test test-all tests-with-default-flags lint gpu-test sanitize api clean
help:
	@echo "make demo      train a small ViG on embedded photographs, evaluate it, predict (CPU: minutes)"
	@echo "make demo-segmentation"
	@echo "               train a small segmenter on composed scenes, evaluate, predict (CPU: minutes)"
	@echo "make demo-detection"
	@echo "               train a small detector of boxes and masks on composed scenes, evaluate (CPU: minutes)"
	@echo "make test      lint, types and the fast tests; needs no GPU"
	@echo "make test-all  also the slow tests, with XLA's default flags; PYTHON312=python3.12 runs the tests"
	@echo "               a second time in .venv312, with the newest JAX"
	@echo "make lint      lint and types only"
	@echo "make gpu-test  the tests that need a CUDA GPU"
	@echo "make sanitize  all kernels under compute-sanitizer (memcheck, racecheck); needs a CUDA GPU"
	@echo "make api       write docs/api.md from the docstrings"
	@echo "make clean     remove the demo's run and the environments"

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
	@echo "== training on 8,000 photographs (an interrupted run resumes; metrics: $(RUN)/metrics.jsonl)"
	@$(BIN)/python train.py --config=configs/fashion_mnist.py --workdir=$(RUN)
	@echo "== evaluating on the 2,000 held-out photographs"
	@$(BIN)/vig evaluate $(RUN)
	@echo "== predicting held-out image files"
	@$(BIN)/vig data images $(RUN)/images --per-class 4
	@$(BIN)/vig predict $(RUN) $(RUN)/images --top 3 --json $(RUN)/answers.json --picture $(RUN)/answers.png | tail -n 12

demo-segmentation: $(VENV)/runtime
	@echo "== training on 4,000 composed scenes (an interrupted run resumes)"
	@$(BIN)/python train.py --config=configs/fashion_scenes.py --workdir=$(SCENES)
	@echo "== evaluating on the 500 held-out scenes; $(SCENES)/worst_images.png has the worst of them"
	@$(BIN)/vig evaluate $(SCENES)
	@$(BIN)/vig report $(SCENES)

demo-detection: $(VENV)/runtime
	@echo "== training on 4,000 composed scenes (an interrupted run resumes)"
	@$(BIN)/python train.py --config=configs/fashion_detection.py --workdir=$(OBJECTS)
	@echo "== evaluating on the 500 held-out scenes; $(OBJECTS)/worst_images.png has the worst of them"
	@$(BIN)/vig evaluate $(OBJECTS)
	@$(BIN)/vig report $(OBJECTS)

test: lint
	@echo "== fast tests (make test-all runs the slow ones too)"
	@$(PYTEST) -m "not gpu and not slow"

test-all: lint tests-with-default-flags
	@test -z "$(PYTHON312)" || \
		$(MAKE) VENV=.venv312 PYTHON="$(PYTHON312)" tests-with-default-flags

# On a CPU the fast tests lower XLA's optimisation level to compile sooner; users do not.
tests-with-default-flags: $(VENV)/dev
	@echo "== all tests that need no GPU, with XLA's default flags ($(VENV))"
	@VIG_TESTS_XLA=default $(PYTEST) -m "not gpu"

lint: $(VENV)/dev
	@echo "== lint and types"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

gpu-test: $(VENV)/dev
	@$(BIN)/python -m pytest -m gpu

# Compilation is very slow under the sanitizer, so a run without it fills a cache first. Every buffer
# is a separate allocation, so that an access outside of it is seen. Autotuning and CUDA graphs are off.
SANITIZED := XLA_PYTHON_CLIENT_ALLOCATOR=platform JAX_COMPILATION_CACHE_DIR=$(CURDIR)/$(VENV)/sanitize \
	JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0 JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1 \
	XLA_FLAGS="--xla_gpu_autotune_level=0 --xla_gpu_enable_command_buffer="
SANITIZE := $(BIN)/python tests/kernels_pallas/sanitize.py

sanitize: $(VENV)/dev
	@$(SANITIZED) $(SANITIZE)
	@$(SANITIZED) compute-sanitizer --tool memcheck --error-exitcode 1 $(SANITIZE)
	@$(SANITIZED) compute-sanitizer --tool racecheck --error-exitcode 1 $(SANITIZE)

api: $(VENV)/runtime
	@$(BIN)/python tools/api_page.py

clean:
	rm -rf $(RUN) $(SCENES) $(OBJECTS) .venv .venv312
