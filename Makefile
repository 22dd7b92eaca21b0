# One command sets everything up: a virtual environment in the checkout, nothing outside it.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
DATA ?=
DEMO := demo
PORT ?= 8000

.PHONY: help demo serve test check bench docs messages format clean
.DELETE_ON_ERROR:

help:
	@echo "make demo [DATA=folder]  train, evaluate and compare two small networks; prints the path of the report"
	@echo "make serve [PORT=8000]   the page and the API on this machine, with the model that comes with the package"
	@echo "make test                everything: format, lint, types, import contracts, tests"
	@echo "make check               the quick part of it, as pre-commit calls it"
	@echo "make bench               measure speed; writes results/benchmarks/"
	@echo "make docs                write the generated pages of docs/ anew"
	@echo "make messages            update the message catalogues of src/pneumoscope/locale/ and compile them"
	@echo "make clean               remove the virtual environment and what the demo made"

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; choose one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=24'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

check: $(READY)
	$(BIN)/ruff format --check src tests benchmarks docs
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: check
	$(BIN)/python -m pytest -n 2 --dist loadfile

demo: $(READY)
	$(BIN)/python -m pneumoscope.demo --out $(DEMO)$(if $(DATA), --data '$(DATA)')

serve: $(READY)
	$(BIN)/pneumoscope serve --open --port $(PORT)

bench: $(READY)
	$(BIN)/python benchmarks/training.py --out results/benchmarks

docs: $(READY)
	$(BIN)/python docs/generate.py

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
	rm -rf .venv $(DEMO)
