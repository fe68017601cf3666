# `make chat` and `make test` need Python >= 3.10, a C++ compiler and CMake; everything else is installed in .venv.
# `make help` lists what there is.
#   make serve ARGS='--port 8080'    owl-nano behind OpenAI's API and a web page, at http://127.0.0.1:8080
#   make chat ARGS='-i examples/scene.png -p "What color is the star?"'
# Only the program's own answer goes to stdout; what the installer has to say goes to stderr.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
BUILD_INPUTS := pyproject.toml constraints.txt CMakeLists.txt $(wildcard kernels/cpu/*)

.PHONY: chat help serve install test test-slow gate lint nano bench native clean

chat: $(VENV)/.installed
	@$(BIN)/python -m owl_fast.chat $(ARGS)

serve: $(VENV)/.installed-serve
	@$(BIN)/python -m owl_fast.serve $(ARGS)

install: $(VENV)/.installed

help:
	@echo "make chat        a conversation in the terminal; ARGS='-i PICTURE -p QUESTION' for one answer"
	@echo "make serve       a web page and OpenAI's API; ARGS='MODEL --port 8080'"
	@echo "make test        linters, types, tests, then the gate"
	@echo "make gate        counts and ratios that must not get worse"
	@echo "make test-slow   longer sweeps, and packaging in fresh environments"
	@echo "make bench       benchmarks; ARGS='--suite quick'"
	@echo "make nano        owl-nano made again; hours"
	@echo "make native      only libowl_cpu, into build/"
	@echo "make clean       removes what make made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "owl_fast needs Python >= 3.10; set PYTHON=")' >&2
	@$(PYTHON) -m venv $(VENV) >&2

$(VENV)/.installed: $(BUILD_INPUTS) | $(BIN)/python
	@echo "installing owl_fast into $(VENV) (minutes the first time: torch is large) ..." >&2
	@$(PIP) -e . >&2
	@touch $@

$(VENV)/.installed-serve: $(VENV)/.installed
	@echo "installing what the server needs into $(VENV) ..." >&2
	@$(PIP) -e '.[serve]' >&2
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	@echo "installing the test tools into $(VENV) ..." >&2
	@$(PIP) -e '.[test]' >&2
	@touch $@

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -q -m "not slow"
	$(BIN)/python -m benchmarks.gate

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q -m slow

gate: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.gate

nano: $(VENV)/.installed
	@$(PIP) -e '.[recipe]' >&2
	$(BIN)/python -m recipes.owl_nano.run $(ARGS)

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/run.py $(ARGS)

# For a plain checkout that is not installed: owl_fast/native.py finds build/libowl_cpu.so.
native:
	cmake -S . -B build
	cmake --build build

clean:
	rm -rf build dist $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
