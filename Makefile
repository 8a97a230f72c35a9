# The two commands: `make demo` goes from a table to predictions, `make test` proves the tree.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Most modules of the packages are never imported: compiling them is left to their first import.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --editable

# With it every process that a test starts would compile its modules again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint docs clean

demo: $(VENV)/demo.stamp
	test -f runs/reviews.csv || $(BIN)/goat-jax data write reviews --rows 1200 --out runs/reviews.csv
	$(BIN)/goat-jax train --model package:minilm --data runs/reviews.csv
	$(BIN)/goat-jax predict runs/reviews \
	    --text "A warm, sharp and very funny film." \
	    --text "Two hours that I will never get back." \
	    --text "The cast is superb, and the ending moved me to tears." \
	    --text "A lifeless plot, told without a single idea." \
	    --text "Beautifully shot, from the first scene to the last." \
	    --text "The jokes fall flat and the story goes nowhere." \
	    --text "One of the best thrillers in years." \
	    --text "Clumsy, loud and far too long." \
	    --text "An intelligent, touching portrait of a family." \
	    --text "The script is a mess that no actor could save."

test: $(VENV)/test.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not nightly'

# Warnings are errors: a broken link, a public name without an entry, a docstring that is not text.
docs: $(VENV)/docs.stamp
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "the site: docs/_build/html/index.html"

lint: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[plots,tensorboard]"
	touch $@

# torch is a test dependency, pinned to the exact release the numbers are compared with.
$(VENV)/test.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[docs,test]"
	touch $@ $(VENV)/demo.stamp $(VENV)/docs.stamp

$(VENV)/docs.stamp: pyproject.toml | $(VENV)/bin/python
	$(INSTALL) ".[all,docs]"
	touch $@ $(VENV)/demo.stamp

clean:
	rm -rf $(VENV) runs dist build docs/_build docs/made
