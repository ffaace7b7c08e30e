# `make demo` and `make check` do all of their own set-up, in .venv, from a bare checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Where torch comes from, if not from pip's usual index: the CPU build, or one for another CUDA.
TORCH_INDEX ?=

.PHONY: demo check format lint types test site bench clean

demo: $(STAMP)
	$(BIN)/layerbridge demo

check: format lint types test

format: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

# One thread a process: the models in the tests are tiny, and threads would only wait for each other.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

# The documentation, into site/, offline; `make check` builds it too, in tests/test_site.py. To read it with its search:
# python -m http.server --directory site --bind 127.0.0.1
site: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# One after the other, on all cores, which should have nothing else to do. LAYERBRIDGE_DATA names the folder of real texts;
# QUICK=1 takes the smallest sizes, which show that all of it runs and measure nothing.
bench: $(STAMP)
	$(BIN)/python -m benchmarks $(if $(QUICK),--quick)

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache site

# constraints.txt holds the exact versions that the tests ran with.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "layerbridge needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet -c constraints.txt --no-deps --index-url $(TORCH_INDEX) torch)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@
