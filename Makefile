# Every target works from a bare clone with Python 3.11+ and make; .venv is made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export OMP_NUM_THREADS ?= 1
export MKL_NUM_THREADS ?= 1
WORKERS ?= 2
# Of each study that is killed on an executor; docs/log.md has figures of 40 and 20.
KILL_RUNS ?= 8
KILLS ?= 4
RESULTS := benchmarks/results
TODAY := $(shell date +%F)

.PHONY: demo test test-slow test-gpu test-cluster test-services check bench bench-coverage bench-gpu docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       install, train at several patch sizes, fit the law, write a report (~6 min)"
	@echo "make test       install what tests need, run them"
	@echo "make test-slow  the slow checks (repeated kill-and-resume, full sweeps)"
	@echo "make test-gpu   the checks that need a CUDA device"
	@echo "make test-cluster  the checks that start a Slurm (Debian, root) and a Ray cluster on this machine, and kill them"
	@echo "make test-services  those of them that time nothing (about 8 minutes)"
	@echo "make check      ruff, format, mypy"
	@echo "make bench      side-by-side timings on the CPU, as ratios, into benchmarks/results (minutes)"
	@echo "make bench-coverage  how often intervals of the laws hold the truth, by simulation (~25 min)"
	@echo "make bench-gpu  correctness and speed on a CUDA device, into benchmarks/results (< 9 min)"
	@echo "make docs       regenerate docs/cli.md from the program"

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "patchscale needs Python >= 3.11, this is " + sys.version'
	@$(PYTHON) -m venv $(VENV) || { echo "error: python venv is missing; on Debian: apt-get install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# torch and torchvision are resolved together, so that their compiled parts match.
$(VENV)/.train: $(BIN)/uv pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e '.[train]'
	@touch $@

$(VENV)/.dev: $(BIN)/uv pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e '.[dev]'
	@touch $@ $(VENV)/.train

$(VENV)/.cluster: $(BIN)/uv pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e '.[cluster]'
	@touch $@

$(VENV)/.bench: $(BIN)/uv pyproject.toml
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet -e '.[bench]'
	@touch $@

demo: $(VENV)/.train
	$(BIN)/patchscale quickstart

test: $(VENV)/.dev
	tools/install-system-packages
	$(BIN)/pytest -n $(WORKERS)

test-slow: $(VENV)/.dev $(VENV)/.bench
	tools/install-system-packages
	$(BIN)/pytest -m slow

test-gpu: $(VENV)/.dev
	$(BIN)/pytest -m gpu

# What starting a run takes is measured while nothing else runs.
test-cluster: $(VENV)/.dev $(VENV)/.cluster
	$(BIN)/pytest -m cluster -s tests/cluster/test_local.py
	$(MAKE) test-services

test-services: $(VENV)/.dev $(VENV)/.cluster
	tools/install-services
	PATCHSCALE_KILL_RUNS=$(KILL_RUNS) PATCHSCALE_KILLS=$(KILLS) $(BIN)/pytest -m cluster -n 2 --dist worksteal --ignore tests/cluster/test_local.py

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One after the other, so that they do not disturb each other; nothing else should run.
bench: $(VENV)/.bench
	$(BIN)/python benchmarks/mixer_cpu.py --output $(RESULTS)/mixer_cpu_$(TODAY).json
	$(BIN)/python benchmarks/vit_forward.py --output $(RESULTS)/vit_forward_cpu_$(TODAY).json
	$(BIN)/python benchmarks/pixel_step.py --output $(RESULTS)/pixel_step_cpu_$(TODAY).json
	$(BIN)/python benchmarks/attention_vs_scan.py --output $(RESULTS)/attention_vs_scan_cpu_$(TODAY).json
	$(BIN)/python benchmarks/cost_accuracy.py --output $(RESULTS)/cost_accuracy_cpu_$(TODAY).json
	$(BIN)/python benchmarks/training.py --output $(RESULTS)/training_cpu_$(TODAY).json
	$(BIN)/python benchmarks/loader.py --output $(RESULTS)/loader_cpu_$(TODAY).json
	$(BIN)/python benchmarks/detection_step.py --output $(RESULTS)/detection_step_cpu_$(TODAY).json
	$(BIN)/python benchmarks/laws.py --output $(RESULTS)/laws_cpu_$(TODAY).json

# 500 simulations of every design: about 25 minutes on two cores; ended early, it goes on where it was.
bench-coverage: $(VENV)/.bench
	$(BIN)/python benchmarks/coverage.py --output $(RESULTS)/coverage_cpu_$(TODAY).json

bench-gpu: $(VENV)/.dev $(VENV)/.bench
	PYTHON=$(BIN)/python OUT=$(RESULTS) sh benchmarks/gpu.sh

docs: $(VENV)/.dev
	$(BIN)/python -m patchscale.cli.reference > docs/cli.md.tmp && mv docs/cli.md.tmp docs/cli.md

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache build dist
