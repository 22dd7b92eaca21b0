# One command sets everything up: a virtual environment in the checkout, nothing outside it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
# The package without [train], in a virtual environment for each version of Python.
CORE = .venv-core-$(shell $(PYTHON) -c 'import sys; print("{}.{}".format(*sys.version_info))')
DATA ?=
DEMO := demo
PORT ?= 8000

.PHONY: help demo serve test test-fast test-core check bench docs messages format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [DATA=folder]  train, evaluate and compare two small networks; prints the path of the report"
	@echo "make serve [PORT=8000]   the page and the API on this machine, with the model that comes with the package"
	@echo "make test                all checks and all tests"
	@echo "make test-fast           the tests that need no browser, no database and no PyTorch"
	@echo "make test-core           the same on an installation without PyTorch; choose a Python by PYTHON=python3.13"
	@echo "make check               format, lint, types and import contracts, as pre-commit calls it"
	@echo "make bench               measure speed; writes results/benchmarks/"
	@echo "make docs                build the documentation in site/"
	@echo "make messages            update the message catalogs of src/pneumoscope/locale/ and compile them"
	@echo "make clean               remove the virtual environments and the demo"

define REQUIRE_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is required; $(PYTHON) is version " + sys.version.split()[0] + ". Choose another: make PYTHON=python3.12 ...")'
endef

$(READY): pyproject.toml constraints.txt
	$(REQUIRE_PYTHON)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

# Five processes on two cores, for many tests wait; they take tests from each other at the end. One thread for each: with more,
# they would wait for each other.
# The tests start Python hundreds of times, so bytecode is kept even where the environment turns that off.
PYTEST := -m pytest -n 5 --dist worksteal
test test-fast test-core: export OMP_NUM_THREADS := 1
test test-fast test-core: export PYTHONDONTWRITEBYTECODE :=

test: check
	$(BIN)/python $(PYTEST)

test-fast: $(READY)
	$(BIN)/python $(PYTEST) -m fast

# Installs the wheel, not a link to src, so that it also shows what the wheel contains.
test-core:
	$(REQUIRE_PYTHON)
	test -x $(CORE)/bin/python || $(PYTHON) -m venv $(CORE)
	$(CORE)/bin/python -m pip install --quiet --upgrade 'pip>=24'
	$(CORE)/bin/python -m pip install --quiet --constraint constraints.txt '.[evaluate,dicom,serve,test]'
	$(CORE)/bin/python $(PYTEST) -m fast

demo: $(READY)
	$(BIN)/python -m pneumoscope.demo --out $(DEMO)$(if $(DATA), --data '$(DATA)')

serve: $(READY)
	$(BIN)/pneumoscope serve --open --port $(PORT)

bench: $(READY)
	$(BIN)/python benchmarks/training.py --out results/benchmarks

docs: $(READY)
	$(BIN)/python docs/generate_reference.py
	NO_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --quiet --strict
	@echo site/index.html

# New messages get an empty msgstr, obsolete ones are removed; translate, then run it again to compile.
LOCALE := src/pneumoscope/locale
messages: $(READY)
	$(BIN)/pybabel -q extract -F babel.cfg -k N_ --no-location --omit-header -w 120 -o $(LOCALE)/pneumoscope.pot src/pneumoscope
	$(BIN)/pybabel -q update -D pneumoscope -i $(LOCALE)/pneumoscope.pot -d $(LOCALE) -w 120 \
		--no-fuzzy-matching --ignore-obsolete --ignore-pot-creation-date
	$(BIN)/pybabel -q compile -D pneumoscope -d $(LOCALE) --statistics
	rm $(LOCALE)/pneumoscope.pot

format: $(READY)
	$(BIN)/ruff format src tests benchmarks docs
	$(BIN)/ruff check --fix src tests benchmarks docs

clean:
	rm -rf .venv .venv-core-* $(DEMO)
