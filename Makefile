# What a user or CI types. Every target but clean, gpu and gpu-sanitize creates .venv and builds the extension if
# needed; with nothing changed that costs nothing, since each step leaves a stamp in .venv. To start
# afresh: make clean, and rm -r .venv for the environment too.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH  ?= torch==2.13.0
DEMO   ?= $(BIN)/python -m rnnfast demo
ARGS   ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip install --disable-pip-version-check
# [build-system] of pyproject.toml but for torch, which comes first and pinned, so that nothing
# pulls another one in. --check-build-dependencies below tells when the two lists disagree.
BUILD_REQUIREMENTS := "setuptools>=77" wheel "pybind11>=2.13" numpy "cmake>=3.22" ninja

# With the folders: one that gained or lost a file is newer than the stamp.
SOURCES     := CMakeLists.txt setup.py pyproject.toml $(shell find csrc -not -name '*.md')
CXX_SOURCES := $(filter %.h %.cpp %.cu %.cuh,$(SOURCES))
EXTENSION   := $(wildcard rnnfast/_C*.so)

.PHONY: build demo test test-slow bench lint format cuda-check gpu gpu-sanitize wheel clean

build: $(VENV)/built

demo: build
	$(DEMO)

test: build
	$(BIN)/python -m pytest -q -m 'not slow' $(ARGS)

# What compiles, starts processes or trains: minutes more.
test-slow: build
	$(BIN)/python -m pytest -q -m slow $(ARGS)

bench: build
	$(BIN)/python benchmarks $(ARGS)

lint: build
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	@! grep -rnE '#include *[<"](torch|ATen|c10|pybind11)' csrc --exclude-dir=bindings || \
		{ echo 'Only csrc/bindings may include torch or pybind11.'; exit 1; }

format: build
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Compiles the CUDA kernels and their bindings for the architectures we ship, warnings as errors.
# Needs nvcc, no GPU. What it makes is not used.
cuda-check: $(VENV)/requirements
	RNNFAST_CUDA=1 RNNFAST_WERROR=1 $(BIN)/python setup.py build_ext --build-lib build/cuda-check

# On a machine with a GPU: builds for it, runs the tests that need one and the benchmarks, of our
# kernels first and then of what `auto` takes, in about nine minutes. Logs and CSVs end in $(OUT).
# GPU_PYTHON has a CUDA build of torch, pytest, what the language models need and the build
# requirements; nothing is installed. What fails, or hangs until its time is over, does not keep the
# rest from running: blocks that wait for each other may wait for ever.
GPU_PYTHON  ?= python3
GPU_ARCHS   ?= 90a
GPU_SECONDS ?= 60
OUT         ?= build/gpu
ON_GPU      := CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1 PYTHONPATH=$(CURDIR):$(PYTHONPATH)

gpu:
	@command -v nvcc >/dev/null && \
		$(GPU_PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null || \
		{ echo 'make gpu: needs a GPU, nvcc on PATH and a CUDA build of torch in $(GPU_PYTHON)'; exit 1; }
	@mkdir -p $(OUT)
	RNNFAST_CUDA=1 RNNFAST_CUDA_ARCHS=$(GPU_ARCHS) $(GPU_PYTHON) setup.py build_ext --inplace \
		>$(OUT)/build.log 2>&1 || { tail -n 30 $(OUT)/build.log; exit 1; }
	@rm -f $(OUT)/tests.log $(OUT)/layers.log $(OUT)/steps.log; \
	failed=; run() { seconds=$$1; name=$$2; log=$(OUT)/$${2%-*}.log; shift 2; \
		$(ON_GPU) timeout -k 5 $$seconds $(GPU_PYTHON) "$$@" >>$$log 2>&1 || failed="$$failed $$name"; \
		tail -n 15 $$log; }; \
	run 240 tests -m pytest -v -m cuda tests/cuda; \
	for backend in rnnfast auto; do \
		run $$(($(GPU_SECONDS) + 30)) layers-$$backend benchmarks/gpu.py --backend $$backend \
			--budget $(GPU_SECONDS) --output $(OUT)/gpu_$$backend.csv; \
		run 75 steps-$$backend benchmarks/gpu_language_model_step.py --backend $$backend --seconds 2 \
			--output $(OUT)/gpu_language_model_step_$$backend.csv; \
	done; \
	[ -z "$$failed" ] || { echo "make gpu: failed:$$failed"; exit 1; }

# There too: small shapes under the sanitizer of NVIDIA's toolkit, which makes them slow.
gpu-sanitize:
	@command -v compute-sanitizer >/dev/null || { echo 'make gpu-sanitize: needs compute-sanitizer on PATH'; exit 1; }
	@mkdir -p $(OUT)
	@failed=; for tool in memcheck racecheck; do \
		CUBLAS_WORKSPACE_CONFIG=:4096:8 compute-sanitizer --tool $$tool --error-exitcode 1 $(GPU_PYTHON) -m pytest \
			-q -m cuda tests/cuda/test_sequence_on_device.py -k '7x3x8 or 3x17x33' \
			>$(OUT)/$$tool.log 2>&1 || failed="$$failed $$tool"; \
		tail -n 5 $(OUT)/$$tool.log; \
	done; \
	[ -z "$$failed" ] || { echo "make gpu-sanitize: failed:$$failed"; exit 1; }

wheel: build
	$(BIN)/python -m build --no-isolation --wheel

clean:
	rm -rf build dist *.egg-info rnnfast/_*.so .pytest_cache .ruff_cache
	find rnnfast tests benchmarks -name __pycache__ -prune -exec rm -r {} +

# torch is a long download: on a terminal pip shows its bar.
$(VENV)/requirements: Makefile
	@echo "== creating $(VENV) with $(TORCH) and the build requirements (minutes, once)"
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(if $(MAKE_TERMOUT),,-qq) $(TORCH)
	$(PIP) -qq --upgrade $(BUILD_REQUIREMENTS)
	@touch $@

# Also runs when the stamp is new but the extension has gone.
$(VENV)/built: $(VENV)/requirements $(SOURCES) $(if $(EXTENSION),,missing)
	@echo "== building the extension (a minute or two, later only what changed)"
	$(PIP) -qq --no-build-isolation --check-build-dependencies -e '.[lm,dev]'
	@touch $@

.PHONY: missing
missing:
