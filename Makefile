# The two commands of the README are `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false
# the models here are tiny: a second thread costs more than it gives, and much more on a busy machine
export OMP_NUM_THREADS ?= 1

.PHONY: help quickstart test lint typecheck test-slow clean image image-test

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# constraints.txt pins the tested set; on Linux PyPI's torch brings CUDA, see the README for a CPU build
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $@

quickstart: $(VENV)/.installed  ## install, train on the embedded example, test it
	$(BIN)/lit-tune fit --config configs/quickstart.yaml --overwrite
	$(BIN)/lit-tune test --config runs/quickstart/config.yaml

test: $(VENV)/.installed-test lint typecheck  ## lint, types, architecture, doctests, all tests but the slow ones
	$(BIN)/python -m pytest -q -n 2 -m "not slow"

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-test  ## mypy
	$(BIN)/mypy

test-slow: $(VENV)/.installed-test  ## the long matrices
	$(BIN)/python -m pytest -q -m slow

image:  ## build the container image with docker, podman or buildah
	tests/image/test_image.sh build

image-test:  ## build the image, run the quickstart in it (minutes; 7 GB of disk with buildah)
	tests/image/test_image.sh

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
