# Every target makes its own .venv from pyproject.toml under constraints.txt; Python 3.11 and make are all it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Small networks are slower with more than one thread.
export OMP_NUM_THREADS ?= 1
export PYTHONHASHSEED ?= 0

.PHONY: help install demo test test-all lint bench docs clean
help:
	@echo "make demo      compare REINFORCE with PPO, A2C and TRPO on CartPole-v1 (under 5 minutes on 2 cores)"
	@echo "make test      lint, types and the test suite"
	@echo "make test-all  the same with the slow learning checks"
	@echo "make bench     throughput against SB3, interleaved, as ratios of medians"
	@echo "make docs      build the HTML documentation into build/docs"
	@echo "make lint      ruff and mypy only"

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[dev]"
	touch $(STAMP)

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/sb3-pg compare --algo reinforce reinforce:baseline=mean a2c ppo trpo --env CartPole-v1 --seeds 3 -n 20000 -f results/demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "slow or not slow"

bench: $(STAMP)
	$(BIN)/python -m benchmarks

docs: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e ".[docs]"
	$(BIN)/python -m sphinx -W -b html docs build/docs

clean:
	rm -rf $(VENV) build dist results
