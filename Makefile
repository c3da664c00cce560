# Every target sets up what it needs in .venv. TORCH chooses the build of PyTorch: make test TORCH="torch==2.10.0"
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
SOURCES := setup.py pyproject.toml $(wildcard csrc/*)

.PHONY: test test-gpu demo check bench bench-gpu report sanitize clean

test: $(VENV)/installed  ## the whole test suite
	$(RUN) -m pytest -q -n auto tests

demo: $(VENV)/installed  ## train on digits, shrink without fine-tuning, time the dataflows
	$(RUN) examples/digits.py
	@echo; echo "Linear layers of 512 nodes on this machine, each dataflow beside the dense layer:"
	$(RUN) -m bench --quick -k "linear 512 nodes"

check: $(VENV)/installed  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(VENV)/installed  ## CPU benchmark, some ten minutes: bench/results/cpu.csv, docs/bench.md, README's table
	$(RUN) -m bench
	$(RUN) -m bench.report

report: $(VENV)/installed  ## docs/bench.md, its figures and README's table from bench/results
	$(RUN) -m bench.report

sanitize: $(VENV)/installed  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	bash tests/sanitize.sh $(RUN)

test-gpu:  ## the kernels' tests on a GPU, with the Python, torch and triton at hand, and under compute-sanitizer
	$(PYTHON) -m pytest -q tests/gpu
	compute-sanitizer --tool memcheck --error-exitcode 1 $(PYTHON) -m pytest -q -p no:cacheprovider tests/gpu -k "repeatable or dataflow or foreach"
	compute-sanitizer --tool racecheck --error-exitcode 1 $(PYTHON) -m pytest -q -p no:cacheprovider tests/gpu -k "repeatable or dataflow or foreach"

bench-gpu:  ## GPU benchmark, some minutes: bench/results/gpu.csv
	$(PYTHON) -m bench.gpu

clean:
	rm -rf $(VENV) build *.egg-info inn_kernels/_C*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Build isolation would download a second PyTorch; the build uses the one installed here.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(RUN) -m pip install --quiet "$(TORCH)" numpy "setuptools>=77" wheel
	$(RUN) -m pip install --quiet --no-build-isolation -e ".[test,demo,convert,dev]"
	touch $@
