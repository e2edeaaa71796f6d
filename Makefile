# make demo   set up .venv, get the demo model, make the data, train, show answers before and after
# make test   set up .venv with the test requirements, run the tests that are quick; make test-long the others, which are
#             long proofs (kills, every engine); make test-all both; make test-faults those with planted faults
# make lint   check style and types; make clean removes .venv and the demo's model and data, never runs or other data

PYTHON ?= python3
BIN := .venv/bin
MODEL := models/smollm2-135m-instruct

PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

.PHONY: setup demo test test-long test-all test-faults lint clean

setup: .venv/ready

demo: .venv/ready $(MODEL)/config.json data/demo.jsonl
	$(BIN)/deepspeed --quiet train_sft.py recipes/demo.yaml
	$(BIN)/python -m model_tools ask work_dirs/demo data_tools/bank/held_out.yaml --name 黄大力

test: .venv/ready-dev
	$(PYTEST) -n 2 --dist worksteal -m "not long"

test-long: .venv/ready-dev
	$(PYTEST) -n 2 --dist worksteal -m long

test-all: .venv/ready-dev
	$(PYTEST) -n 2 --dist worksteal

test-faults: .venv/ready-dev
	$(PYTEST) tests/faults

lint: .venv/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf .venv $(MODEL) data/demo.jsonl .pytest_cache .ruff_cache .mypy_cache

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.11"; exit 2)
	$(PYTHON) -m venv .venv || (echo "no venv module: apt-get install python3-venv"; exit 2)

.venv/ready: requirements.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements.txt
	@touch $@

.venv/ready-dev: requirements.txt requirements-web.txt requirements-sweep.txt requirements-gguf.txt requirements-dev.txt | .venv/bin/python
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	@touch $@ .venv/ready

$(MODEL)/config.json: | .venv/ready
	$(BIN)/python -m model_tools demo-model $(MODEL)

data/demo.jsonl: | .venv/ready
	$(BIN)/python -m data_tools generate --name 黄大力 --rows 720 --ordinary 0.55 --seed 0 $@
