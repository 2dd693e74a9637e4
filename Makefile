# make test   lint, type checks, import rules and the tests, in .venv
# make demo   simulate a scan (or take SCAN=folder), train, reconstruct and score it; the result lies in demo/
# make docs   build the documentation into build/docs, warnings being errors; runs the tutorials
# make pictures  renew the pictures of the window, of a report and of the symptoms in docs/images
# make wheel  build the source archive and the wheel into dist/ twice, compare, and check them
# make reliability  renew docs/reliability.md from the tests that inject faults
# make fuzz   mutate every kind of file that is read, guided by coverage, each for FUZZ_SECONDS (default 600)
# make kills  kill trainings at KILLS random moments (default 50): models can be loaded, resumed runs are equal
# make mutants  change the code in one place at a time and renew the section of docs/reliability.md on what no test saw
# make dependencies  renew docs/dependencies.md: packages, versions and licences
# make sbom   write a software bill of materials (CycloneDX) to dist/sbom.json
# make soak   200 reconstructions and 20 trainings in one process: nothing may grow (about half an hour)
# make quality  the table of docs/benchmarks.md (STAR=folder adds the measured star, PTYCHI=python pty-chi)
# make bench  the speed table of docs/benchmarks.md (QUICK=1 in under five minutes, STAR=folder adds the measured star)
# make clean  remove what these targets made
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: test check demo docs pictures wheel reliability fuzz kills mutants dependencies sbom soak quality bench clean
.DEFAULT_GOAL := test

# The version of the package stands in its __init__.py, and the installed metadata repeat it.
# torch comes first and alone, so that the constraint decides its build before anything else asks for it.
$(STAMP): pyproject.toml constraints.txt ptychopinn_torch_plugin/__init__.py ptychodus_plugins/reconstructor_entry_points.py
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

docs: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs build/docs

pictures: $(STAMP)
	PYTHONPATH=. $(BIN)/python docs/make_screenshots.py
	PYTHONPATH=. $(BIN)/python docs/make_symptoms.py

fuzz: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[fuzz]'
	for target in model scan configuration json patterns product resume; do \
	  PYTHONPATH=. OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_readers.py $$target \
	    -max_total_time=$(or $(FUZZ_SECONDS),600) || exit 1; done

kills: $(STAMP)
	KILLS=$(or $(KILLS),50) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 0 tests/reliability/test_random_kills.py

# MUTANTS limits the sample, MINUTES the time.
mutants: $(STAMP)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[mutants]'
	$(BIN)/python tests/reliability/mutants.py --mutants $(or $(MUTANTS),400) --minutes $(or $(MINUTES),30)

dependencies: $(STAMP)
	$(BIN)/python docs/list_dependencies.py > docs/dependencies.md

sbom: $(STAMP)
	$(BIN)/python -m pip install --quiet cyclonedx-bom
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml -o dist/sbom.json $(BIN)/python

quality: $(STAMP)
	$(BIN)/python -m benchmarks.quality $(if $(STAR),--star '$(STAR)') $(if $(PTYCHI),--ptychi '$(PTYCHI)')

bench: $(STAMP)
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.speed $(if $(QUICK),--quick) $(if $(STAR),--star '$(STAR)')

reliability: $(STAMP)
	RELIABILITY_DOC=docs/reliability.md OMP_NUM_THREADS=1 QT_QPA_PLATFORM=offscreen $(BIN)/python -m pytest -n 2 --dist worksteal

soak: $(STAMP)
	$(BIN)/python -m benchmarks.soak

# An environment of its own: neither torch nor the package is needed to build. The time of the last commit stands in every
# archive, so that the same sources give the same bytes.
wheel:
	$(PYTHON) -m venv build/tools
	build/tools/bin/python -m pip install --quiet build hatchling twine
	rm -rf dist build/again
	export SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct); for folder in dist build/again; do \
	  build/tools/bin/python -m build --no-isolation --outdir $$folder || exit 1; done
	for file in dist/*; do cmp $$file build/again/$${file##*/} || exit 1; done
	build/tools/bin/python -m twine check --strict dist/*

clean:
	rm -rf $(VENV) build dist demo docs/auto_tutorials docs/sg_execution_times.rst .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
