# `make train`: watch a GPT learn. `make test`: the test-suite. Both make .venv first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
OLDEST := .venv-oldest
OLDEST_BIN := $(OLDEST)/bin

.PHONY: train test test-peers test-slow test-oldest test-dist test-tpu test-notebook lint docs \
  notebook pictures dist bench sweep compare convergence requirements clean

# Flags of the training program: make train ARGS="--data my_texts --out runs/mine"
train: $(VENV)/installed
	$(BIN)/python examples/gpt/train.py $(ARGS)

# Which lines they run, for a sixth more time: make test ARGS=--cov. To be quick they are
# compiled with little optimization, and run some of many cases that are alike. .ci/run tests
# what users get, and all: make test TEST_ENV= NARROW=
TEST_ENV := JAX_DISABLE_MOST_OPTIMIZATIONS=1
NARROW := or wide
test: $(VENV)/installed
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 -m "not (dist or notebook or peers or slow or tpu $(NARROW))" $(ARGS)

# Parity with PyTorch's CPU build, which only these tests need.
test-peers: $(VENV)/installed
	$(PIP) -r requirements-peers.txt
	$(BIN)/python -m pytest -m peers $(ARGS)

# Many random cases, and several processes, some of them killed. One test at a time: each
# starts up to eight devices.
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(ARGS)

# The oldest versions that pyproject.toml admits: samples of what touches JAX, optax, chex
# and Flax most. (Numbers are tested with the newest alone.)
OLDEST_TESTS := \
  tests/test_axes_from_logical.py \
  tests/test_checkpoints.py::test_flax_bytes \
  tests/test_contract.py::test_inject_hyperparams \
  tests/test_contract.py::test_nnx_optimizer \
  tests/test_contract.py::test_train_state \
  tests/test_imports.py \
  tests/test_qk_flax.py \
  tests/test_readme.py::test_recipes_run \
  tests/test_routing_trees.py \
  tests/test_sharding.py::test_a_whole_step_of_training_keeps_its_shardings \
  tests/test_sharding.py::test_orthogonalize_alone \
  tests/test_sharding_arguments.py

test-oldest: $(OLDEST)/installed
	$(OLDEST_BIN)/python -m pip check
	$(OLDEST_BIN)/python -m pytest -n 2 $(OLDEST_TESTS) $(ARGS)

# Wheel and sdist: what is in them, and the wheel in an environment of its own.
test-dist: $(VENV)/installed
	$(PIP) -r requirements-dist.txt
	$(BIN)/python -m pytest -m dist $(ARGS)

# What a TPU's compiler makes of updates; needs no TPU. Where libtpu is installed, jax looks
# for one unless JAX_PLATFORMS=cpu.
test-tpu: $(VENV)/installed
	$(PIP) -r requirements-tpu.txt
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m tpu $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation, with the reference from the docstrings: open site/index.html. A link
# that leads nowhere, a page that is in no menu, and any other warning is an error.
docs: $(VENV)/installed
	$(PIP) -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 JAX_PLATFORMS=cpu $(BIN)/python -m mkdocs build --strict

# The notebook of the documentation, from top to bottom: its outputs are kept in it.
notebook: $(VENV)/installed
	$(PIP) -r requirements-docs.txt
	cd docs && JAX_PLATFORMS=cpu ../$(BIN)/python -m jupyter nbconvert --to notebook --execute --inplace *.ipynb

# Whether it still runs; about two minutes.
test-notebook: $(VENV)/installed
	$(PIP) -r requirements-docs.txt
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -m notebook $(ARGS)

# The pictures in docs/pictures, which are kept, from the library's tables and a page's code.
pictures: $(VENV)/installed
	JAX_PLATFORMS=cpu $(BIN)/python docs/pictures.py

# The sdist, and the wheel made from it: dist/
dist: $(VENV)/installed
	$(PIP) -r requirements-dist.txt
	$(BIN)/python -m build --no-isolation

# Against optax.contrib, PyTorch (if installed: requirements-peers.txt) and the GEMM;
# every case is kept, so it can be stopped and resumed. Tables alone: ARGS=--table
bench: $(VENV)/installed
	$(BIN)/python benchmarks/bench.py $(ARGS)

# The GPT's tuning and comparison: every run is kept, so both can be stopped and resumed.
sweep: $(VENV)/installed
	$(BIN)/python examples/gpt/sweep.py $(ARGS)

compare: $(VENV)/installed
	$(BIN)/python examples/gpt/compare.py $(ARGS)

# Recipes and variants against each other, AdamW and peers: some hours, in any pieces
# (ARGS="--budget-minutes 9"). Tables and figure: ARGS=--report
convergence: $(VENV)/installed
	$(BIN)/python benchmarks/convergence.py $(ARGS)

$(VENV)/installed: requirements.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	$(PIP) --no-deps --editable .
	touch $@

$(OLDEST)/installed: requirements-oldest.txt pyproject.toml
	test -x $(OLDEST_BIN)/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check \
	  -r requirements-oldest.txt
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --editable .
	touch $@

# Exact versions, no addresses. Needs uv.
requirements:
	uv pip compile pyproject.toml --extra test --python-version 3.11 --upgrade \
	  --no-annotate --no-header --no-emit-index-url --output-file requirements.txt

clean:
	rm -rf $(VENV) $(OLDEST) .cache dist runs site
