# make install | make demo | make check | make test | make lint | make docs        (PYTHON=python3.12 make install picks another interpreter)
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: install demo test check lint docs sanitize bench gpu-check lock clean

install: $(STAMP)

$(STAMP): setup.cfg pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else f"Python {v[0]}.{v[1]} met, 3.10 to 3.12 expected: run PYTHON=python3.11 make install")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[all,dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(PY) -m tasks.classification.demo --out results/demo

# two processes, whole files each, the longest first: what a file compiles or trains once is made once; freed memory is
# kept, where the kernel would hand out every large tensor's pages anew; so is what pytest makes of each assert, a third
# of the start
PYTEST := PYTHONDONTWRITEBYTECODE= MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 $(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(STAMP)
	$(PYTEST)

# between two edits: one case of each test but the slow ones, and one of each file
check: $(STAMP)
	$(PYTEST) -m quick

lint: $(STAMP)
	$(PY) -m ruff check .
	$(PY) -m mypy

# the documentation as a site, results/site/index.html, with warnings as errors
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet --config-file configs/docs/mkdocs.yml

$(VENV)/.installed-docs: $(STAMP)
	$(PY) -m pip install --quiet --disable-pip-version-check -c requirements.lock -e ".[docs]"
	@touch $@

# the C++ sources under AddressSanitizer and UndefinedBehaviorSanitizer; needs g++
sanitize: $(STAMP)
	ESBNN_CACHE=$(VENV)/sanitized ESBNN_CXXFLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined -g" \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  $(PY) -m pytest tests/core/test_native.py tests/core/test_kernels.py tests/core/test_kernels_fuzz.py tests/core/test_neon.py \
	  tests/core/test_onnx_operators.py tests/core/test_real_kernels.py tests/core/test_row.py tests/core/test_program.py tests/core/test_stem.py \
	  tests/core/test_native_training.py tests/core/test_winograd.py -k "not emulation and not process and not compiler and not import and not opcheck"

# about ten minutes on one core; makes the tables of layers, networks, training and sizes of docs/reports/performance.md anew
bench: $(STAMP)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.speed.layers --compile
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.speed.networks --compile
	MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184 OMP_NUM_THREADS=1 $(PY) -m benchmarks.speed.training
	OMP_NUM_THREADS=1 $(PY) -m benchmarks.speed.sizes
	$(PY) -m benchmarks.report

# what waits for a GPU (docs/reports/gpu.md), in stages of ten minutes together, each kept in results/gpu as it ends. Options go in
# GPU_CHECK="--resume"; with a Python that has torch, numpy and pytest: make gpu-check PY=python3 STAMP=
gpu-check: $(STAMP)
	$(PY) -m benchmarks.gpu_check $(GPU_CHECK)

# the lock is resolved for Python 3.10 to 3.12 at once; needs uv
lock:
	uv pip compile --universal --python-version 3.10 --no-annotate --no-header \
	  --extra all --extra dev --extra docs requirements.in setup.cfg -o requirements.lock
	sed -i '1i # The exact versions that make install and CI install, resolved for Python 3.10 to 3.12 (make lock).\n# On x86-64 and aarch64 Linux and on macOS 14 for arm64; Macs with Intel processors have no torch (docs/guides/arm.md).' requirements.lock

# also what was trained (runs/) and unpacked or downloaded (data/) here
clean:
	rm -rf $(VENV) results/demo runs data
