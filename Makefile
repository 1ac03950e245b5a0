# The two commands of the README are `make quickstart` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# constraints.txt pins the tested set; on Linux PyPI's torch brings CUDA, see the README for a CPU build.
# --no-compile: of 20,000 files a run imports a few thousand, and Python compiles those as it goes
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
PYTEST := $(BIN)/python -m pytest -q
export TOKENIZERS_PARALLELISM := false
# the models here are tiny: a second thread costs more than it gives, and much more on a busy machine
export OMP_NUM_THREADS ?= 1
# modules are compiled when first imported, and that is kept: else each of the tests' processes would do it again
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help quickstart test lint typecheck test-slow clean image image-test

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(BIN)/python:  # with the pip of Python 3.11 what follows takes 90 s, with a recent one 63 s
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25'

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) torch -e '.[test]'
	@touch $(VENV)/.installed $@

quickstart: $(VENV)/.installed  ## install, train on the embedded example, test it
	$(BIN)/lit-tune fit --config configs/quickstart.yaml --overwrite
	$(BIN)/lit-tune test --config runs/quickstart/config.yaml

test: $(VENV)/.installed-test lint  ## lint, types, architecture, doctests, all tests but the slow ones
	$(PYTEST) -n 2 --dist worksteal -m "not slow"

lint: $(VENV)/.installed-test  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

typecheck: $(VENV)/.installed-test  ## mypy
	$(BIN)/mypy

SLOW := test-slow-resume test-slow-kills test-slow-durable test-slow-signals test-slow-faults test-slow-fuzz test-slow-rest
.PHONY: $(SLOW)
test-slow: $(SLOW)  ## the long matrices, one after the other; each part is a target of its own
$(SLOW): $(VENV)/.installed-test
test-slow-resume:  ## every checkpointed step of 20 kinds of run is gone on from
	$(PYTEST) -m slow tests/checkpointing/test_exact_resume.py
test-slow-kills:  ## 200 times kill -9
	$(PYTEST) -m slow tests/checkpointing/test_kills.py
test-slow-durable:  ## a failure at each system call of a save; bit flips and cuts
	$(PYTEST) -m slow tests/checkpointing/test_faults.py tests/checkpointing/test_corruption.py
test-slow-signals:  ## SIGTERM and SIGINT to each rank in each phase
	$(PYTEST) -m slow tests/test_signals.py
test-slow-faults:  ## what can be wrong with data, configs, models and machines
	$(PYTEST) -m slow tests/faults
test-slow-fuzz:  ## 10,000 changed configs, and all malicious files
	$(PYTEST) -n 2 -m slow tests/fuzz tests/security
test-slow-rest:  ## all other long tests, benchmarks among them
	$(PYTEST) -m slow --ignore=tests/checkpointing --ignore=tests/faults --ignore=tests/fuzz --ignore=tests/security \
	  --ignore=tests/test_signals.py

image:  ## build the container image with docker, podman or buildah
	tests/image/test_image.sh build

image-test:  ## build the image, run the quickstart in it (minutes; 7 GB of disk with buildah)
	tests/image/test_image.sh

clean:  ## remove the environment and all that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
