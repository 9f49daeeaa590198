# Everything here sets itself up: a bare machine needs Python 3.11, make and g++ (DeepSpeed compiles one small library).
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell command -v python3.11 || command -v python3)
UV := uv==0.13.9
# Libraries that DeepSpeed compiles are kept with the environment they were compiled for.
export TORCH_EXTENSIONS_DIR := $(CURDIR)/$(VENV)/torch_extensions
export PATH := $(CURDIR)/$(BIN):$(PATH)
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM := false
# `make setup TORCH=cpu TORCH_INDEX=...`: torch without CUDA, 2.7 GB on disk in place of 6.4. PyPI has none for Linux on
# x86-64, so TORCH_INDEX is the address of PyTorch's index of CPU builds, or a folder with the wheel.
TORCH := cuda
ifeq ($(filter cpu cuda,$(TORCH)),)
$(error TORCH=$(TORCH): must be cpu or cuda)
endif
ifeq ($(TORCH)$(TORCH_INDEX),cpu)
$(error TORCH=cpu: add TORCH_INDEX=, the address of PyTorch's index of CPU builds (its installation page has it) or a folder with the wheel)
endif
# The lock's version, or TORCH_VERSION=2.13.0.
TORCH_VERSION = $(shell sed -nE 's/^torch==([0-9.]+).*/\1/p' requirements.lock)
# Empty is off: without compiled modules every start of a rank takes 17 s longer.
export PYTHONDONTWRITEBYTECODE :=

# By file, so that what a file sets up for its tests is set up once. The tiers are in tests/tiers.py.
OPTIONS := --dist loadfile --no-loadscope-reorder --durations 10
PYTEST := $(BIN)/pytest $(OPTIONS)
# Two workers more than the two cores of CI: much of what the later tiers do is waiting, for a time-out, a start or a server.
WORKERS := -n 4
# Begun first, so that no process is left alone with one of them at the end.
LONGEST := tests/flow/benches/test_first_light_rehearsal.py tests/flow/train/resilience/test_thirty_kills.py \
  tests/ranks/train/zero/test_stages.py tests/flow/report/test_demo_study.py tests/flow/report/test_whole_way.py \
  tests/flow/tracking/test_servers.py tests/flow/train/resilience/test_stopping.py \
  tests/unit/train/zero/test_extension_build.py
# Two ranks of HuBERT-large want the memory for themselves.
LARGEST := tests/flow/train/test_real_size.py

UV_INSTALL := $(BIN)/uv pip install --system-certs --compile-bytecode --python $(BIN)/python
define INSTALL_cuda
$(UV_INSTALL) --require-hashes -r requirements.lock \
  || $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r requirements.lock
endef

# The lock less torch and what only its CUDA build needs. PyPI's torchaudio links CUDA in a compiled part that resampling,
# which is all that is used of it, does without; where the part is there, importing torchaudio fails.
CUDA_ONLY := torch|triton|cuda-[a-z-]+|nvidia-[a-z0-9-]+
define INSTALL_cpu
awk '/^[a-z]/ { skip = /^($(CUDA_ONLY))(==|\[)/ } !skip' requirements.lock > $(VENV)/without-cuda.txt
$(UV_INSTALL) --no-deps --require-hashes -r $(VENV)/without-cuda.txt
$(UV_INSTALL) --no-deps $(if $(wildcard $(TORCH_INDEX)),--no-index --find-links,--index-url) $(TORCH_INDEX) torch==$(TORCH_VERSION)+cpu
rm -f $(VENV)/lib/python*/site-packages/torchaudio/lib/*.so
endef

.PHONY: help setup demo test test-integration test-long test-rest say-test coverage check proof lock clean

help:  ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(VENV)/.ready  ## make the environment

$(VENV)/.ready: requirements.lock pyproject.toml
	@command -v g++ >/dev/null || { echo "g++ is missing: DeepSpeed compiles a small library. On Debian: apt-get install g++" >&2; exit 2; }
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing. Install it, or name another: make PYTHON=python3" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@# pip does the same, in minutes rather than seconds; it also knows the machine's own pip settings.
	$(INSTALL_$(TORCH))
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@# Before anything waits for it: else the first training of all would compile.
	$(BIN)/python -c "from ccts_dist.train.zero.engine import compile_for_ranks; compile_for_ranks()"
	touch $@

demo: setup  ## the whole pipeline on a spoken corpus: two ranks, ZeRO-2, no GPU
	$(BIN)/python launch/reproduce.py --table demo

test: say-test setup  ## the fast tests: units, contracts, and one whole way on two ranks
	$(PYTEST) -n 2 --tier fast tests/unit tests/contract tests/flow

test-integration: setup  ## real ranks and whole commands
	$(PYTEST) $(WORKERS) --tier integration tests/ranks tests/flow tests/unit

test-long: setup  ## kills, clusters, servers, tables, and many more examples of each property
	$(PYTEST) $(WORKERS) --tier long --ignore $(LARGEST) $(LONGEST) tests
	$(BIN)/pytest --tier long $(LARGEST)

test-rest: setup  ## both of these in one go, as CI runs them: shorter by minutes
	$(PYTEST) $(WORKERS) --tier integration --tier long --ignore $(LARGEST) $(LONGEST) tests
	$(BIN)/pytest --tier long $(LARGEST)

coverage: export COVERAGE_FILE := $(CURDIR)/build/coverage/data
coverage: export COVERAGE_RCFILE := $(CURDIR)/pyproject.toml
coverage: setup  ## lines and branches of ccts_dist that the tests of all tiers run: half an hour
	rm -rf $(dir $(COVERAGE_FILE))
	mkdir -p $(dir $(COVERAGE_FILE))
	-$(BIN)/coverage run -m pytest $(OPTIONS) -n 2 --tier fast tests/unit tests/contract tests/flow
	-$(BIN)/coverage run -m pytest $(OPTIONS) $(WORKERS) --tier integration --tier long --ignore $(LARGEST) $(LONGEST) tests
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --sort=cover

say-test:
	@test -e $(VENV)/.ready && echo "the fast tests, about three minutes" \
	  || echo "first the environment, once (downloads 3 GB, two minutes), then the fast tests, about three minutes"

check: setup  ## formatting, lint, spelling, types, layers: no tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell
	$(BIN)/pyright
	$(BIN)/lint-imports

proof: $(if $(BASE),setup)  ## the demo's losses and weights at another revision and here: make proof BASE=main
	@test -n "$(BASE)" || { echo "usage: make proof BASE=REVISION, such as BASE=main or BASE=HEAD~1." \
	  "Exit codes: 0 equal; 2 different, or no comparison. python -m tests.proof --help says more." >&2; exit 2; }
	$(BIN)/python -m tests.proof "$(BASE)"

lock:  ## write requirements.lock anew from pyproject.toml
	$(BIN)/uv pip compile --quiet --generate-hashes --no-emit-index-url --no-annotate --python-version 3.11 \
	  --extra train --extra demo --extra s3 --extra onnx --extra lora --extra tensorboard --extra dev --custom-compile-command "make lock" pyproject.toml -o requirements.lock

clean:  ## remove the environment and what the demo made
	rm -rf $(VENV) demo
