# make demo     set everything up and run the main job
# make test     set everything up and pass the tests
# make install  the virtual environment .venv, with grange in it
# make check    what CI runs: format, lint, types, dependency direction, tests
# make bench    Q=<question>: one bench of bench/
# make lock     write requirements.lock again from pyproject.toml

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TYPES := build/types/grange

.PHONY: demo test install check lint bench lock services clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml requirements.lock deploy/make-venv.sh deploy/checkout_finder.py
	@deploy/make-venv.sh $(PYTHON) $(VENV)
	@touch $@

demo: install
	$(BIN)/python examples/alloy_screening.py

services:
	@deploy/install-test-programs.sh

# The programs first: it is known at once whether they can be had. Many tests wait for clocks and processes, so three
# run at a time, each with services of its own; files in order, since the first ones take longest.
WORKERS ?= 3
test: services install
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: install types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	cd build/types && ../../$(BIN)/lint-imports --config ../../pyproject.toml

check: lint test

# mypy and import-linter do not follow setuptools' package-dir: give them the import tree as a folder of links.
.PHONY: types
types:
	@mkdir -p $(TYPES)
	@for f in grange/*; do ln -sfn ../../../$$f $(TYPES)/; done
	@for p in core farm repository; do ln -sfn ../../../$$p $(TYPES)/$$p; done

bench: install
	$(BIN)/python bench/$(Q)/measure.py $(ARGS)

lock: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --no-header --no-annotate --no-emit-index-url \
	    --all-extras --python-version 3.11 pyproject.toml -o requirements.lock

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache
