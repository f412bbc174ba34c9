# make demo: the main job on an embedded data set, or on IMAGES=path; make check, make test, make test-heavy: what every
# change passes; make test-slow: tests of more than half a minute; make docs: the documentation as web pages.
PYTHON ?= python3
IMAGES ?=
BIN = .venv/bin
SOURCES = pyproject.toml constraints.txt
# Without compiling what will never be imported: 60 MB less, and seconds saved.
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-heavy test-slow check docs clean

.venv/core: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(INSTALL) --editable .
	touch $@

.venv/dev: .venv/core
	$(INSTALL) --editable '.[dev,train,ray,keras,lite2,audit,serve,coreml,openvino,heic,hub]'
	touch $@

demo: .venv/core
	$(BIN)/python demo/demo.py $(if $(IMAGES),--images "$(IMAGES)")

# What the browser tests put on their pages; they are skipped, visibly, where npm is missing.
.venv/web: .venv/dev
	-command -v npm > /dev/null && cd .venv && npm pack --silent --ignore-scripts onnxruntime-web@1.30.0
	touch $@

TOGETHER = --numprocesses auto --maxprocesses 4 --dist worksteal
# Each process begins with neighbouring files, which share what is made once for several, and takes over of the others'
# when it has done its own, so that all end together; each has its own empty caches. The tests start hundreds of
# processes, which would compile all that they import again and again where no bytecode may be written.
test test-heavy test-slow: export PYTHONDONTWRITEBYTECODE =
test: .venv/web
	$(BIN)/python -m pytest $(TOGETHER)

test-heavy: .venv/web
	$(BIN)/python -m pytest -m 'heavy and not slow' $(TOGETHER)

test-slow: .venv/web
	$(BIN)/python -m pytest -m slow

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/docstrings.py

.venv/docs: .venv/core
	$(INSTALL) --editable '.[docs,train]'
	touch $@

docs: .venv/docs
	$(BIN)/sphinx-build -W --keep-going --quiet -b html docs .docs
	@echo "The documentation: .docs/index.html"

clean:
	rm -rf .venv .demo .docs
