# make quickstart   install into .venv, train LeNet-5 on 5,000 real digits, show the result
# make test         install into .venv, run all checks and tests; SEED=2 runs them in another order
# make coverage     the same tests, and the lines of the package that they do not run
# make check        lint, types, import layers, and the fast tests
# make soak         fuzz every reader; kill runs and sweeps at every change of a file, and finish them: an hour or more
# make format       format the code
# make docs         build the documentation site into outputs/site
# make clean        remove .venv
PYTHON ?= python3
VENV   ?= .venv
SEED   ?= 1
FUZZ   ?= 5000
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
PYTEST  = $(BIN)/python -m pytest --numprocesses=auto --dist=loadgroup --randomly-seed=$(SEED)

# Tests without training, other processes, browsers or clusters.
FAST   := tests/data/test_idx.py tests/data/test_splits.py tests/models tests/reports/test_statistics.py tests/test_config.py

.PHONY: help quickstart test coverage check soak format docs clean

help:
	@sed -n 's/^# make /make /p' Makefile

quickstart: $(VENV)/.installed
	@$(BIN)/mnist-train name=quickstart data=mnist5k trainer.batch_size=32 trainer.epochs=12 trainer.threads=1 scheduler=cosine hydra.run.dir=outputs/quickstart/$$(date +%Y%m%d-%H%M%S)-$$$$
	@$(BIN)/mnist-report outputs/quickstart
	@echo "Each run is stored in its own directory in outputs/quickstart; next: mnist-train --help"

# tests/test_types.py runs mypy.
test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo
	$(PYTEST)

# Separate from test, because counting lines makes the tests a fifth slower.
coverage: $(VENV)/.installed-dev
	$(PYTEST) --cov --cov-report=term-missing:skip-covered

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(PYTEST) -q $(FAST)

soak: $(VENV)/.installed-dev
	FUZZ_EXAMPLES=$(FUZZ) $(BIN)/python -m pytest -q tests/faults/test_fuzz.py
	$(BIN)/python tests/faults/soak.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "outputs/site/index.html; with search: $(BIN)/python -m http.server --directory outputs/site"

# Each stamp file is newer than its dependencies if nothing needs installing.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV): about 2 minutes and 6 GB, mostly PyTorch"
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing into $(VENV), with all test dependencies: about 3 minutes and 7 GB"
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "mnist-exp needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Name another: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV)
