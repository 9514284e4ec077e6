# `make train` and `make test` are each enough on a machine that has only Python 3.11 or newer with venv and pip.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: train test test-all test-rest test-versions mutations format clean

train: $(READY)
	$(BIN)/python examples/compare.py

# Processes of pytest. Tests often wait for processes of their own, so that more than two are of use on two cores.
SIDE_BY_SIDE ?= 4
PYTEST := $(BIN)/pytest --quiet --numprocesses $(SIDE_BY_SIDE) --dist worksteal

# What every change has to pass, within minutes.
test: $(READY)
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(PYTEST)

# What `test` leaves out: the full matrices, and 200 examples of each property.
test-rest: $(READY)
	$(PYTEST) --thorough -m "slow or hypothesis"

# Before an issue is called resolved.
test-all: test test-rest

# The lowest and the highest torch that is accepted, each in an environment of its own (several GB, made once).
test-versions: $(READY)
	$(BIN)/python tests/versions/run.py

# Breaks the code in 22 places; `make test` has to notice each.
mutations: $(READY)
	$(BIN)/python tests/mutations/run.py

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The environment, made once and again whenever what is pinned changes.
$(READY): requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "samestep needs Python 3.11 or newer: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf .venv .venv-versions .pytest_cache .mypy_cache .ruff_cache .hypothesis
