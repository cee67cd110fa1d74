PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
# The environment of tests/parity: timm and mmpretrain import torchvision, which $(VENV) must not have.
VENV_PEERS ?= .venv-peers
# Number of test processes, with one thread each, since the tensors in the tests are too small for more: a third one on two
# cores computes while others wait.
TEST_JOBS ?= 3
export PYTHON VENV VENV_PEERS STACK TORCH MMCV_LINKS FORCE_CUDA MAX_JOBS

.DEFAULT_GOAL := help
.PHONY: help setup ready peers doctor browser demo test test-all soak cluster-test coverage speed gpu-check lint format docs clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables (for make setup):'
	@echo '  PYTHON=python3       the Python interpreter of the environment, 3.10 to 3.13'
	@echo '  VENV=.venv           the folder of the environment'
	@echo '  STACK=onedl          onedl (maintained) or openmmlab (the original releases, in a separate VENV)'
	@echo "  TORCH='...'          pip arguments for a torch other than the CPU build, e.g. 'torch==2.12.0 --index-url URL'"
	@echo '  MMCV_LINKS=URL       index URL of a prebuilt mmcv, instead of compiling it'
	@echo '  FORCE_CUDA=1         compile mmcv for CUDA on a machine without a GPU'
	@echo '  MAX_JOBS=N           compile N files at a time (default: one per core)'
	@echo 'Variable (for make test):'
	@echo '  TEST_JOBS=3          number of test processes'

setup:  ## create .venv with torch, the stack and this project; run it again to resume
	@tools/setup.sh

ready:
	@tools/setup.sh --quiet

peers:  ## create .venv-peers with timm, transformers and mmpretrain, for comparisons
	@tools/setup_peers.sh

browser:  ## install Chromium (apt, as root), its driver and axe-core (npm) for tests/browser
	@missing=$$(command -v chromium >/dev/null || echo chromium; command -v npm >/dev/null || echo nodejs npm); \
	[ -z "$$missing" ] || { apt-get update && apt-get install -y --no-install-recommends $$missing; } || \
	  echo "not installed (sudo apt-get install" $$missing"): tests/browser will be skipped"
	@npm ci --prefix tests/browser --no-audit --no-fund || echo 'npm ci failed: tests/browser will be skipped'

doctor: ready  ## check the environment and print a remedy for each problem
	@$(PY) tools/doctor.py

demo: ready  ## run end to end on generated images: under 10 minutes on 2 cores
	@$(PY) tools/demo.py

# The parity tests with the given markers. If their environment is missing, they are skipped.
define parity
	@if tools/setup_peers.sh --quiet; then $(VENV_PEERS)/bin/python -m pytest tests/parity -m '$(1)' -n $(TEST_JOBS); \
	else echo 'SKIPPED tests/parity: $(VENV_PEERS) could not be created, for the reason above'; fi
endef

test: ready  ## run the fast tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow and not soak and not cluster' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile
	$(call parity,not slow)

test-all: ready browser  ## run all tests except the soak and cluster tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not soak and not cluster' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile
	$(call parity,)

soak: ready  ## run the soak tests (hundreds of kills, signals, damaged files, full disks): up to 1 hour on 2 cores
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/soak -m soak -n 2 --dist loadfile

cluster-test: ready  ## as root: hosts as network namespaces, and Slurm (see CONTRIBUTING.md): up to 20 minutes on 2 cores
	@OMP_NUM_THREADS=1 $(PY) -m pytest tests/cluster -m cluster -n 2 --dist load

coverage: ready  ## run the fast tests and print which lines they cover, by module (slower than make test)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m 'not slow and not soak and not cluster' --ignore tests/parity -n $(TEST_JOBS) --dist loadfile \
	  -q --cov --cov-report=term:skip-covered --cov-report=html:build/coverage

speed: ready  ## time whole models beside stock, idle and beside busy processes: 25 minutes with nothing else running
	@$(PY) tools/measure_speed.py

gpu-check:  ## on a machine with a GPU: check the kernels, measure, and say which defaults the figures support
	@tools/gpu_check.sh

lint: ready  ## check style and types
	@$(PY) -m ruff check
	@$(PY) -m ruff format --check
	@$(PY) -m mypy

format: ready  ## fix the style
	@$(PY) -m ruff check --fix
	@$(PY) -m ruff format

docs: ready  ## build the documentation site in build/site
	@$(PY) -m pip install --quiet --disable-pip-version-check -r requirements/docs.txt
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	@echo 'open build/site/index.html'

clean:  ## remove caches and build files, but not .venv*, work_dirs or data
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage*
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
