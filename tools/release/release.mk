# Wheels, tests of what is installed from them, and releases. docs/releasing.md describes them.
.PHONY: wheel test-wheel test-matrix release

# CPython 3.11 has a wheel of its own, the first newer one builds that of all later versions; free-threaded ones, looked
# for on the PATH, have their own, too.
FREE_THREADED_PYTHONS ?= $(foreach minor,13 14 15,$(shell command -v python3.$(minor)t))
WHEEL_PYTHONS := $(PYTHON) $(firstword $(NEWER_PYTHONS)) $(FREE_THREADED_PYTHONS)
# A command that runs CPython 3.11 for aarch64: qemu-aarch64 -L ROOT ROOT/usr/bin/python3.11.
AARCH64_PYTHON ?=
SMOKE_PYTHONS ?= $(PYTHON) $(NEWER_PYTHONS) $(FREE_THREADED_PYTHONS)

wheel:  ## Wheels for Linux, and the sdist, in dist/: built twice, audited, installed on every Python.
	CMAKE_BUILD_PARALLEL_LEVEL=$(JOBS) $(PYTHON) tools/release/wheels.py --output dist --scratch $(BUILD)/release $(WHEEL_PYTHONS)
	$(BUILD)/release/env-0/bin/python tools/release/audit.py dist
	$(MAKE) test-wheel

test-wheel:  ## Installs the wheels of dist/ on every Python to be had, without a compiler, and uses them.
	$(PYTHON) tools/release/smoke.py dist $(SMOKE_PYTHONS)
ifeq ($(AARCH64_PYTHON),)
	@echo "No AARCH64_PYTHON: the extension for aarch64 was not loaded (docs/releasing.md)."
else
	$(PYTHON) tools/release/emulate.py dist $(AARCH64_PYTHON)
endif

test-matrix: test-oldest test-newest  ## Both ends of what is supported, each against the installed wheel.

release:  ## All that a release needs: checks, wheels, matrix, digests. Stops before the upload.
	$(PYTHON) tools/release/check.py
	$(MAKE) wheel
	PIP_FIND_LINKS=$(CURDIR)/dist PIP_ONLY_BINARY=jax_maddness $(MAKE) test-matrix VENV=$(BUILD)/release/venv INSTALL=jax_maddness[test]
	cd dist && sha256sum -- *.whl *.tar.gz > SHA256SUMS
	@echo "To publish dist/: twine upload dist/*.whl dist/*.tar.gz, then push the tag."
