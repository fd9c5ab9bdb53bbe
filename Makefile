# Every target makes what it needs, in a virtual environment of its own. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BUILD  ?= build
JOBS   ?= 2
BIN    := $(VENV)/bin
CXX_SOURCES := CMakeLists.txt pyproject.toml $(wildcard xla_ffi/*)
CXX_TESTS   := $(CXX_SOURCES) $(wildcard xla_ffi/tests/*)

.DEFAULT_GOAL := help
.PHONY: help demo test test-python test-cpp test-emulated bazel-test lint format doctor clean

help:  ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.examples  ## Exact, int8 and look-ups side by side on real digits; writes demo.png.
	$(BIN)/python examples/digits.py --picture demo.png

test: test-python test-cpp test-emulated  ## Every test: Python, C++, and the AVX-512 tier emulated.

test-python: $(VENV)/.test  ## Tests and doctests, on every tier that this CPU has.
	$(BIN)/python -m pytest -n $(JOBS)

test-cpp: $(BUILD)/cpp/.built  ## C++ tests of the kernels, with AddressSanitizer and UBSan.
	ctest --test-dir $(BUILD)/cpp --output-on-failure

doctor: $(VENV)/.examples  ## Says whether the installation is well.
	$(BIN)/python -m jax_maddness doctor

lint: $(VENV)/.dev  ## Formatting, lint and types: what CI checks first.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h' '*.inc' ':!xla_ffi/tiers.inc')

format: $(VENV)/.dev  ## Formats Python and C++, and fixes what lint can fix.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cc' '*.h' '*.inc' ':!xla_ffi/tiers.inc')

clean:  ## Removes everything that the other targets made.
	rm -rf $(VENV) $(BUILD) .pytest_cache .hypothesis .mypy_cache .ruff_cache demo.png
	find . -name __pycache__ -prune -exec rm -rf {} +

# The package, editable, with one set of extras; each stamp is renewed when the C++ or the dependencies change.
$(VENV)/.examples $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: $(CXX_SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[$*]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BUILD)/cpp/.built: $(CXX_TESTS)
	cmake -S . -B $(BUILD)/cpp -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_SANITIZE=ON \
	  -DJAX_MADDNESS_WERROR=ON
	cmake --build $(BUILD)/cpp --parallel $(JOBS)
	touch $@
