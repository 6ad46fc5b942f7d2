# Every target does its own set-up: a fresh machine needs Python 3.11 and this file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: venv quickstart test test-slow lint clean

venv: $(VENV)/.installed

$(VENV)/.installed: setup.cfg constraints.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,serving,hdf5]'
	touch $@

# The whole life of a model change on a data set that needs no download.
quickstart: venv
	$(BIN)/python -m fct_tf.study --config=configs/glyphs.py --workdir=runs/glyphs

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process per core; the tests of a module stay together, as they share what they set up.
PYTEST := $(BIN)/pytest --numprocesses=auto --dist=loadscope

test: lint
	$(PYTEST)

test-slow: venv
	$(PYTEST) -m slow

clean:
	rm -rf $(VENV) runs
