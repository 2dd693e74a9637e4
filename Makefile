# make test   lint, type checks, import rules and the tests, in .venv
# make demo   simulate a scan (or take SCAN=folder), train, reconstruct and score it; the result lies in demo/
# make wheel  build the wheel into dist/
# make clean  remove what these targets made
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test check demo wheel clean
.DEFAULT_GOAL := test

# torch comes first and alone, so that the constraint decides its build before anything else asks for it.
$(STAMP): pyproject.toml constraints.txt ptychodus_plugins/reconstructor_entry_points.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

check: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

# One thread for each of the two test processes: more would only fight over the cores.
test: check
	OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest -n 2 --dist worksteal

demo: $(STAMP)
	$(BIN)/ptychopinn-torch demo $(if $(SCAN),--scan '$(SCAN)')

wheel: $(STAMP)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist demo .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
