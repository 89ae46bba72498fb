# make run and make test each need nothing but Python >= 3.10 and the package index.
PYTHON ?= python3
VENV ?= .venv
OUTPUT ?= outputs
CELL_TIMEOUT ?= 900
# In tests: small networks gain more from a core each than from two for one.
NOTEBOOKS_AT_ONCE ?= 2
MDE_PROFILE ?= demo
export MDE_PROFILE

.DEFAULT_GOAL := help
.PHONY: help env run test test-browser test-widgets lint bench notebooks badges clean

PY := $(VENV)/bin/python
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

run: $(INSTALLED)  ## execute every notebook, then name the page that shows the results
	@$(PY) scripts/run_notebooks.py --output $(OUTPUT) --timeout $(CELL_TIMEOUT)

test: $(INSTALLED)  ## the unit tests, then every cell of every notebook
	$(PY) -m pytest -q
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -x -n $(NOTEBOOKS_AT_ONCE) --dist loadfile --nbval-lax --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) notebooks/

test-browser: $(INSTALLED)  ## notebooks in JupyterLab and the page of results, in Chromium
	$(PY) -m pytest -q tests_browser

test-widgets: $(WIDGETS7)/.installed  ## the controls and their notebook under ipywidgets 7.7 too
	PYTHONPATH=$(abspath $(WIDGETS7)) $(PY) -m pytest -q tests/test_views_widgets.py
	PYTHONPATH=$(abspath $(WIDGETS7)) $(PY) -m pytest -q -x --nbval-lax --nbval-current-env --nbval-cell-timeout $(CELL_TIMEOUT) notebooks/12_explore.ipynb

# An ipywidgets that is found before the environment's own.
$(WIDGETS7)/.installed: $(INSTALLED)
	PIP_CONSTRAINT= $(PY) -m pip install -q --disable-pip-version-check --no-deps --upgrade --target $(WIDGETS7) 'ipywidgets==7.7.*' 'widgetsnbextension==3.6.*' ipython_genutils
	PYTHONPATH=$(WIDGETS7) $(PY) -c 'import ipywidgets as i; assert i.__version__.startswith("7.7."), i.__file__'
	@touch $@

lint: $(INSTALLED)  ## style of code and notebooks; changes nothing
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) scripts/badges.py --check
	$(PY) scripts/strip.py --check

bench: $(INSTALLED)  ## every benchmark, in order; results land beside them
	@set -e; for script in $(BENCHMARKS); do echo "== $$script"; $(PY) $$script; done

notebooks: $(INSTALLED)  ## execute the notebooks in place, ready to commit
	@$(PY) scripts/run_notebooks.py --in-place --timeout $(CELL_TIMEOUT)

badges: $(INSTALLED)  ## write bootstrap cells and badges from pyproject.toml's address
	$(PY) scripts/badges.py

clean:  ## remove what was made here, but not data, runs or the environment
	rm -rf $(OUTPUT) .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
