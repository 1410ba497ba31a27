# make demo: the whole journey on the loops in tests/data/loops.  make test: everything that a change must pass.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
ORIGINAL := .venv-original
IN_TWO_PROCESSES := --numprocesses 2 --dist loadfile --no-loadscope-reorder
TESTS := tests/journey tests/on_ray tests/core

.PHONY: install demo pretrained test check browser soak soak-short bench bench-gpu

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("audiodiff needs Python 3.11 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/python jobs/demo.py

# Train the model `builtin:loops` again, in a few minutes on two cores.
pretrained: install
	$(BIN)/python jobs/prepare.py --recipe jobs/recipes/pretrained.yaml
	$(BIN)/python jobs/train.py --recipe jobs/recipes/pretrained.yaml
	rm -rf audiodiff_core/files/pretrained/loops
	$(BIN)/python -m audiodiff_core.checkpoint --float16 runs/pretrained/train/model audiodiff_core/files/pretrained/loops

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy --num-workers 2
	$(BIN)/lint-imports

# Two processes share the test files, the longest first.
test: check
	$(BIN)/pytest $(IN_TWO_PROCESSES) $(PYTEST_FLAGS) $(TESTS)

# The pages in Chromium, which is the system's own.
browser: install
	$(BIN)/pytest -m browser $(TESTS)

# Long fault, load and quality runs.
soak: install
	$(BIN)/pytest --soak

# Those of them that take minutes.
soak-short: install
	$(BIN)/pytest $(IN_TWO_PROCESSES) --soak-short $(TESTS)

# The original project, in an environment of its own since it needs older libraries: what `make bench` compares with.
$(ORIGINAL)/.installed: tests/benchmarks/original/requirements.txt tests/benchmarks/original/constraints.txt
	$(PYTHON) -m venv $(ORIGINAL)
	$(ORIGINAL)/bin/pip install --quiet --disable-pip-version-check --constraint tests/benchmarks/original/constraints.txt \
		--requirement tests/benchmarks/original/requirements.txt
	touch $@

# Every measured claim, ours beside the alternative.
bench: install $(ORIGINAL)/.installed
	$(BIN)/python -m tests.benchmarks
	$(BIN)/python -m tests.benchmarks.prepare
	$(BIN)/python -m tests.benchmarks.shards
	$(BIN)/python -m tests.benchmarks.round_trip
	$(BIN)/python -m tests.benchmarks.sampling
	$(BIN)/python -m tests.benchmarks.engine
	$(BIN)/python -m tests.benchmarks.generate
	$(BIN)/python -m tests.benchmarks.original_generate
	$(BIN)/python -m tests.benchmarks.gate
	$(BIN)/python -m tests.benchmarks.serve
	$(BIN)/python -m tests.benchmarks.loops
	$(BIN)/python -m tests.benchmarks.training_core
	$(BIN)/python -m tests.benchmarks.training_memory
	$(BIN)/python -m tests.benchmarks.train_data
	$(BIN)/python -m tests.benchmarks.train_feed
	$(BIN)/python -m tests.benchmarks.checkpoint_stall
	$(BIN)/python -m tests.benchmarks.train_overhead
	$(BIN)/python -m tests.benchmarks.training_compile
	$(BIN)/python -m tests.benchmarks.learning
	$(BIN)/python -m tests.benchmarks.networks
	$(BIN)/python -m tests.benchmarks.few_steps
	$(BIN)/python -m tests.benchmarks.conditions
	$(BIN)/python -m tests.benchmarks.methods
	$(BIN)/python -m tests.benchmarks.shipped

# Sampling, decoding, synthesis and training on a CUDA GPU: hours, or minutes with GPU_FLAGS=--quick.
bench-gpu: install
	$(BIN)/python -m tests.benchmarks.gpu $(GPU_FLAGS)
