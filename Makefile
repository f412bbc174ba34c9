# make demo: the main job on an embedded data set, or on IMAGES=path; make test, make check: what every change passes.
PYTHON ?= python3
IMAGES ?=
BIN = .venv/bin
SOURCES = pyproject.toml constraints.txt
# Without compiling what will never be imported: 60 MB less, and seconds saved.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow check clean

.venv/core: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/dev: .venv/core
	$(INSTALL) --editable '.[dev,train,ray,keras,lite2,audit]'
	touch $@

demo: .venv/core
	$(BIN)/python demo/demo.py $(if $(IMAGES),--images "$(IMAGES)")

test: .venv/dev
	$(BIN)/python -m pytest

test-slow: .venv/dev
	$(BIN)/python -m pytest -m slow

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .demo
