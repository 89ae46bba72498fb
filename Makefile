# make run and make test each need nothing but Python >= 3.10 and the package index.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= outputs
# Notebooks, and processes of tests: small networks gain more from a core each than from two for one.
AT_ONCE ?= 2
# Seconds after which a notebook without output, message and work is given up.
SILENCE ?= 600
# make run FRESH=1 executes what is done already, too.
FRESH ?=
MDE_PROFILE ?= demo
export MDE_PROFILE

.DEFAULT_GOAL := help
.PHONY: help env run test test-browser test-widgets test-versions lint bench notebooks bundle badges clean

PY := $(VENV)/bin/python
RUN = $(PY) scripts/run_notebooks.py --at-once $(AT_ONCE) --silence $(SILENCE)
INSTALLED := $(VENV)/.installed
WIDGETS7 := $(VENV)/ipywidgets7
# These train for hours: run them by hand.
LONG := $(addprefix benchmarks/,meter_selectivity.py paper_claims.py other_networks.py self_supervised.py)
BENCHMARKS := $(filter-out benchmarks/_% $(LONG),$(sort $(wildcard benchmarks/*.py)))

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1~\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'~' '{printf "%-18s %s\n", $$1, $$2}'

env: $(INSTALLED)  ## make the environment (.venv); again only when the requirements change

$(INSTALLED): requirements.txt requirements-dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("Python 3.10 or later is needed, $(PYTHON) is " + sys.version.split()[0] + ": name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	$(PY) -m pip install -q --disable-pip-version-check --no-deps -e .
	@touch $@

run: $(INSTALLED)  ## execute every notebook, then name the page that shows the results; again: go on
	@$(RUN) --output $(OUTPUT) $(if $(FRESH),--fresh)

# pytest comes last, so that its closing line does, whatever came of the notebooks.
test: $(INSTALLED)  ## every notebook that has not run as it is, then the unit tests with their coverage
	@status=0; $(RUN) --output $(OUTPUT) || status=1; \
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(AT_ONCE) --dist worksteal --cov --cov-report=term:skip-covered || status=1; \
	exit $$status

test-browser: $(INSTALLED)  ## notebooks in JupyterLab and the page of results, in Chromium
	$(PY) -m pytest -q tests_browser

test-widgets: $(WIDGETS7)/.installed  ## the controls and their notebook under ipywidgets 7.7 too
	PYTHONPATH=$(abspath $(WIDGETS7)) $(PY) -m pytest -q tests/test_views_widgets.py
	PYTHONPATH=$(abspath $(WIDGETS7)) $(RUN) --output $(OUTPUT)/ipywidgets7 notebooks/12_explore.ipynb

# An ipywidgets that is found before the environment's own.
$(WIDGETS7)/.installed: $(INSTALLED)
	PIP_CONSTRAINT= $(PY) -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(WIDGETS7) 'ipywidgets==7.7.*' 'widgetsnbextension==3.6.*' ipython_genutils
	PYTHONPATH=$(WIDGETS7) $(PY) -c 'import ipywidgets as i; assert i.__version__.startswith("7.7."), i.__file__'
	@touch $@

test-versions:  ## the unit tests on the lowest versions that requirements.txt admits and on the newest
	$(PYTHON) scripts/test_versions.py

lint: $(INSTALLED)  ## style of code and notebooks; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) scripts/badges.py --check
	$(PY) scripts/strip.py --check

bench: $(INSTALLED)  ## every benchmark, in order; results land beside them
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(PY) $$script; done

notebooks: $(INSTALLED)  ## execute the notebooks in place, ready to commit
	@$(RUN) --in-place

bundle: $(INSTALLED)  ## dist/mde-suite.zip: what to upload to Kaggle or Colab
	@$(PY) scripts/bundle.py

badges: $(INSTALLED)  ## write bootstrap cells and badges from pyproject.toml's address
	$(PY) scripts/badges.py

clean:  ## remove what was made here, but not data, runs or the environment
	rm -rf $(OUTPUT) build dist .coverage .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
