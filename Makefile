# make demo, make test: all the set-up included, on a machine that has Python 3.11+, a C++ compiler and PyPI.
# make build: the native parts into the source tree, for work on pybatch itself.
PYTHON ?= python3
VENV ?= .venv
PY = $(VENV)/bin/python
PREFIX ?= $(CURDIR)

build:  # uses the packages of $(PY)
	@site=$$($(PY) -c 'import os, torch; print(os.path.dirname(os.path.dirname(torch.__file__)))') && \
	cmake -G Ninja -S . -B build/dev -DCMAKE_INSTALL_PREFIX=$(PREFIX) -DPYBATCH_WERROR=ON -DPython_EXECUTABLE=$$(realpath -s $(PY)) \
	  -Dpybind11_DIR=$$site/pybind11/share/cmake/pybind11 -DTORCH_DIR=$$site/torch -DPYBATCH_VERSION=0.1.0 >/dev/null && \
	cmake --build build/dev --target install

.PHONY: build
