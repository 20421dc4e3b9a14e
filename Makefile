# `make train`: watch a GPT learn. `make test`: the test-suite. Both make .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: train test test-slow test-peers lint sweep requirements clean

# Flags of the training program: make train ARGS="--data my_texts --steps 1000"
train: $(VENV)/installed
	$(BIN)/python examples/gpt/train.py $(ARGS)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not peers" --cov --cov-report=term $(ARGS)

# Minutes rather than seconds; .ci/run runs them.
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# Parity with PyTorch's CPU build; pip knows its local file, so pip it is.
test-peers: $(VENV)/installed
	$(BIN)/python -m pip install --quiet -r requirements-peers.txt
	$(BIN)/python -m pytest -m peers $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The GPT's tuning: every trial is kept, so it can be stopped and resumed.
sweep: $(VENV)/installed
	$(BIN)/python examples/gpt/sweep.py $(ARGS)

$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# Exact versions, no addresses. Needs uv.
requirements:
	uv pip compile pyproject.toml --extra test --python-version 3.11 --upgrade \
	  --no-annotate --no-header --no-emit-index-url --output-file requirements.txt

clean:
	rm -rf $(VENV) runs
