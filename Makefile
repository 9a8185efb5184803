# Everything runs in an environment of its own, made when first needed; a second call installs again only what changed.
#   make demo | test | bench | lint | format | venv | clean
# On another interpreter or in another place: make PYTHON=python3.12 VENV=/some/where test

PYTHON ?= python3
VENV ?= .venv
EXTRAS := cli,hf,report,test,lint
JOBS := $(shell nproc)
# For example -DGOSSAMER_WERROR=ON; for the extension and the C++ tests, which share what is compiled.
CMAKE_FLAGS ?=
BUILD := build/make

BIN := $(abspath $(VENV))/bin
# CMake of the machine, or else the one that was installed beside Python.
CMAKE_PATH := PATH="$$PATH:$(BIN)"
BUILD_FILES := CMakeLists.txt $(wildcard cmake/*) pyproject.toml constraints.txt README.md LICENSE
SOURCES := $(shell find csrc python -type f -not -path '*/.*' -not -name '*.pyc')
CXX_SOURCES = $(shell find csrc tests/cpp -name '*.cpp' -o -name '*.h')

.PHONY: demo test bench lint format venv clean

demo: venv
	$(BIN)/python examples/demo.py

test: venv
	$(CMAKE_PATH) cmake -S . -B $(BUILD) -DGOSSAMER_PYTHON=OFF -DGOSSAMER_TESTS=ON
	$(CMAKE_PATH) cmake --build $(BUILD) --parallel $(JOBS)
	$(CMAKE_PATH) ctest --test-dir $(BUILD) --output-on-failure --parallel $(JOBS)
	GOSSAMER_BUILD_DIR=$(BUILD)/CMakeFiles/gossamer_core.dir $(BIN)/python -m pytest

bench: venv
	mkdir -p build
	$(BIN)/python -m pytest bench --benchmark-json=build/bench.json

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)

format: venv
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

venv: $(VENV)/installed

$(VENV)/created:
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/installed: $(VENV)/created $(BUILD_FILES) $(SOURCES)
	command -v cmake > /dev/null || $(BIN)/python -m pip install cmake
	$(BIN)/python -m pip install 'scikit-build-core>=0.10' 'pybind11>=2.13' ninja
	$(CMAKE_PATH) CMAKE_ARGS='$(CMAKE_FLAGS)' $(BIN)/python -m pip install --no-build-isolation -Cbuild-dir=$(BUILD) \
	  --constraint constraints.txt '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf build $(VENV)
