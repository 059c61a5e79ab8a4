# Every target sets up what it needs in .venv; nothing has to be run before it.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# After a worker that crashed, pytest-xdist would wait for the tests of its file for ever: it ends, saying so.
PARALLEL := --numprocesses auto --dist loadfile --max-worker-restart 0

.PHONY: help demo test nightly kernels docs pictures quality style clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: .venv/.demo  ## segment examples/ with the embedded checkpoint
	$(BIN)/python scripts/segment.py examples --model_name_or_path checkpoints/ccnet-efficientnet-camvid --output_dir demo_output

test: .venv/.dev  ## run the test suite on all cores, in about 20 minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not nightly" $(PARALLEL) $(PYTEST_ARGUMENTS)

nightly: .venv/.dev  ## run what takes many minutes: real networks, all variants, mutations of the kernels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m nightly $(PARALLEL) $(PYTEST_ARGUMENTS)

# Shared tests of the installed transformers, from its source distribution; without a network the suite skips them.
build/transformers: .venv/.dev
	mkdir -p build/download
	-$(BIN)/python -m pip download --quiet --no-deps --no-binary transformers --dest build/download \
		transformers==$$($(BIN)/python -c "import importlib.metadata as m; print(m.version('transformers'))")
	-mkdir -p $@ && tar xzf build/download/transformers-*.tar.gz -C $@ --strip-components=1 --wildcards '*/tests/test_*.py' \
		&& touch $@/tests/__init__.py  # the distribution leaves it out; the tests import it

kernels: .venv/.dev  ## compile the CUDA operator into build/kernels; needs nvcc, no GPU
	$(BIN)/python -m ccnet_hf.kernels build --arch 8.0 9.0+PTX --output build/kernels

docs: .venv/.docs  ## build the documentation into build/site; needs no network
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

pictures: .venv/.dev  ## draw every picture of README and docs again, in an hour (single ones: scripts/pictures.py --help)
	$(BIN)/python scripts/pictures.py --all

quality: .venv/.dev  ## check the style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: .venv/.dev  ## apply the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and what the targets made
	rm -rf .venv demo_output build dist *.egg-info src/*.egg-info

$(BIN)/uv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

# Many tests start processes of their own, which would compile what they import each time where Python may not keep it.
.venv/.dev: export UV_COMPILE_BYTECODE = 1
.venv/.dev: export UV_COMPILE_BYTECODE_TIMEOUT = 600

.venv/.demo .venv/.dev .venv/.docs: .venv/.%: pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable '.[$*]'
	@touch $@
