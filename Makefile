# `make` without a target lists the targets.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# Tests and the demo never contact the Hub.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.DEFAULT_GOAL := help
.PHONY: help install demo bench gpu results test test-attention test-slow test-integrations tour conformance wheel-check docs schemas lint format types check clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-18s %s\n", $$1, $$2}'

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[report,sweep,train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@touch $@

install: $(VENV)/.installed-dev ## make .venv with everything that tests need

demo: $(VENV)/.installed ## train, sweep beta, extrapolate and report, in minutes on two cores
	$(RUN) scripts/train.py --config configs/experiment/demo.yaml
	$(RUN) scripts/train.py --config configs/experiment/demo.yaml --set name=rope \
		--set model.overrides.position_method=rope --set training.output_dir=runs/demo/rope
	$(RUN) scripts/sweep_beta.py --config configs/sweep/demo.yaml
	$(RUN) scripts/sweep_beta.py --config configs/sweep/demo_posthoc.yaml
	$(RUN) scripts/extrapolate.py --config configs/evaluation/demo.yaml
	$(RUN) scripts/report.py --output-dir runs/demo --title 'AlibiGPT demo' --records \
		runs/demo/alibi/training.jsonl runs/demo/rope/training.jsonl \
		runs/demo/sweep/trials.jsonl runs/demo/posthoc/trials.jsonl runs/demo/extrapolation.jsonl

bench: test-attention ## time attention, models and decoding, in about ten minutes
	$(RUN) scripts/benchmark.py --config configs/benchmark/cpu.yaml

test-attention: $(VENV)/.installed-dev ## run the tests of attention, which must pass before anything is timed
	OMP_NUM_THREADS=1 $(RUN) -m pytest -q tests/test_attention.py

gpu: $(VENV)/.installed-dev ## test, time and compare on one CUDA GPU, in ten minutes
	$(RUN) -m benchmarks.gpu --output-dir runs/gpu

results: $(VENV)/.installed ## write RESULTS.md and docs/results from the records under results/
	$(RUN) scripts/report.py --config configs/report/tables.yaml
	$(RUN) scripts/report.py --config configs/report/results.yaml

test: $(VENV)/.installed-dev ## run the tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto

test-slow: $(VENV)/.installed-dev ## run the tests that take minutes or gigabytes
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m slow

test-integrations: $(VENV)/.installed-dev ## run the tests with PEFT, TRL, lm-eval, ONNX and others
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[integrations]'
	OMP_NUM_THREADS=1 $(RUN) -m pytest -m integrations

tour: $(VENV)/.installed-dev ## run the notebook of examples/, in minutes
	$(RUN) -m pytest -m slow tests/test_examples.py

conformance: $(VENV)/.installed-dev ## run transformers' own model tests on AlibiGPT
	$(RUN) tests/conformance/run.py

wheel-check: ## build the wheel, install it alone, and run its commands from an empty folder
	.ci/wheel_check.sh $(PYTHON)

docs: $(VENV)/.installed-docs ## build the documentation into site/, which needs no network
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

schemas: $(VENV)/.installed ## write configs/schema/ from the settings' classes
	$(RUN) -m alibi_gpt_cli.schemas

lint: $(VENV)/.installed-dev ## check style
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(VENV)/.installed-dev ## fix style
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

types: $(VENV)/.installed-dev ## check the types of the files that pyproject.toml lists
	$(RUN) -m mypy

check: lint types test tour conformance wheel-check docs ## style, types, tests, the notebook, conformance, the wheel and the documentation, as in CI

clean: ## remove .venv, runs, builds and caches
	rm -rf $(VENV) runs site build dist .pytest_cache .ruff_cache .mypy_cache *.egg-info
