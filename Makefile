# `make` or `make help` lists the targets: lines with two number signs.

PYTHON ?= python3
BIN := .venv/bin
MODEL := models/smollm2-135m-instruct

PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: help setup demo demo-again test test-long test-commands test-all test-faults lint clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/ready ## make .venv with what training and chatting need

demo: .venv/ready ## train a small model on the CPU, answers before and after; where that is done, show it again
	@if test -e work_dirs/demo/final; then \
		echo "work_dirs/demo holds a finished run, which is reused; to train anew: make demo-again" && \
		$(BIN)/python -m model_tools verdict work_dirs/demo; \
	else \
		$(MAKE) --no-print-directory demo-again; \
	fi

demo-again: .venv/ready $(MODEL)/config.json data/demo.jsonl ## train the demo anew; a finished run is kept beside it
	$(BIN)/deepspeed --quiet train_sft.py recipes/demo.yaml
	$(BIN)/python -m model_tools ask work_dirs/demo data_tools/bank/held_out.yaml --name 黄大力

test: .venv/ready-dev ## run the quick tests
	$(PYTEST) -n 2 --dist worksteal -m "not long and not commands"

test-long: .venv/ready-dev ## run the long proofs: killed runs, several processes, engines
	$(PYTEST) -n 2 --dist worksteal -m long

test-commands: .venv/ready-dev ## type every command of the documents that a CPU can run, and two newcomers' first minutes
	$(PYTEST) -n 2 --dist worksteal -m commands

test-all: .venv/ready-dev ## run all of them
	$(PYTEST) -n 2 --dist worksteal

test-faults: .venv/ready-dev ## run the tests with planted faults, at more moments, and print their table
	MOMENTS=20 $(PYTEST) tests/faults

lint: .venv/ready-dev ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean: ## remove .venv and the demo's model and data; never runs or other data
	rm -rf .venv $(MODEL) data/demo.jsonl .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2)
	$(PYTHON) -m venv .venv || (echo "no venv module: apt-get install python3-venv"; exit 2)

# Without --quiet: pip shows what it downloads and how far it is.
.venv/ready: requirements.txt | .venv/bin/python
	@echo "installing what requirements.txt names into .venv: 1.4 GB on the disk with torch's CPU build, several GB more with CUDA's"
	$(BIN)/python -m pip install -r requirements.txt
	@touch $@

.venv/ready-dev: requirements.txt requirements-web.txt requirements-sweep.txt requirements-gguf.txt requirements-dev.txt | .venv/bin/python
	@echo "installing what requirements-dev.txt names into .venv: about 1 GB more than requirements.txt"
	$(BIN)/python -m pip install -r requirements-dev.txt
	@touch $@ .venv/ready

$(MODEL)/config.json: | .venv/ready
	$(BIN)/python -m model_tools demo-model $(MODEL)

data/demo.jsonl: | .venv/ready
	$(BIN)/python -m data_tools generate --name 黄大力 --rows 720 --ordinary 0.55 --seed 0 $@
