PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# Where tests/parity runs: timm and mmpretrain import torchvision, which $(VENV) must not have.
VENV_PEERS ?= .venv-peers
# Tests run in this many processes of one thread each: their tensors are too small for more.
TEST_JOBS ?= 2
export PYTHON VENV VENV_PEERS STACK TORCH MMCV_LINKS FORCE_CUDA MAX_JOBS

.DEFAULT_GOAL := help
.PHONY: help setup ready peers doctor browser demo test test-all soak coverage lint format docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables (for make setup):'
	@echo '  PYTHON=python3       the Python to start from, 3.10 to 3.13'
	@echo '  VENV=.venv           where the environment goes'
	@echo '  STACK=onedl          onedl (maintained) or openmmlab (the original releases, in a VENV of its own)'
	@echo "  TORCH='...'          arguments for pip in place of the CPU build, e.g. 'torch==2.12.0 --index-url URL'"
	@echo '  MMCV_LINKS=URL       take a prebuilt mmcv from there instead of compiling it'
	@echo '  FORCE_CUDA=1         compile mmcv for CUDA on a machine without a GPU'
	@echo '  MAX_JOBS=N           compile N files at a time (default: one a core)'
	@echo 'Variable (for make test):'
	@echo '  TEST_JOBS=2          processes that share the tests'

setup:  ## prepare .venv: torch, the stack, this project (run again after an interruption)
	@tools/setup.sh

ready:
	@tools/setup.sh --quiet

peers:  ## prepare .venv-peers: timm, transformers and mmpretrain, to compare with
	@tools/setup_peers.sh

browser:  ## what the browser's tests need: Chromium (apt, as root), its driver and axe-core (npm)
	@missing=$$(command -v chromium >/dev/null || echo chromium; command -v npm >/dev/null || echo nodejs npm); \
	[ -z "$$missing" ] || { apt-get update && apt-get install -y --no-install-recommends $$missing; } || \
	  echo "not installed (sudo apt-get install" $$missing"): tests/browser will be skipped"
	@npm ci --prefix tests/browser --no-audit --no-fund || echo 'npm ci failed: tests/browser will be skipped'

doctor: ready  ## check the environment, with a remedy for each problem
	@$(PY) tools/doctor.py

demo: ready  ## a small end-to-end run
	@$(PY) tools/demo.py

# The tests of parity, for the given markers; without their environment the rest still counts.
define parity
	@if tools/setup_peers.sh --quiet; then $(VENV_PEERS)/bin/python -m pytest tests/parity -m '$(1)'; \
	else echo 'SKIPPED tests/parity: $(VENV_PEERS) could not be prepared, for the reason above'; fi
endef

test: ready  ## the fast tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow and not soak' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile
	$(call parity,not slow)

test-all: ready browser  ## every test but the soak
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not soak' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile
	$(call parity,)

soak: ready  ## kills, signals, damage and full disks by the hundred: up to an hour on 2 cores
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/soak -m soak -n $(TEST_JOBS) --dist loadfile

coverage: ready  ## the fast tests again, and what they leave bare, by module (takes longer than make test)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow and not soak' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile \
	  -q --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

lint: ready  ## style and types
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: ready  ## apply the style
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

docs: ready  ## the documentation site, in build/site
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo 'open build/site/index.html'

clean:  ## remove caches and build products (not .venv*, work_dirs or data)
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
