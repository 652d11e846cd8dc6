# `make report` and `make test` do everything, set-up included. See README.md.

PYTHON ?= python3
BIN    := .venv/bin
# TensorFlow with CUDA only where a graphics card answers: it is six times the download.
KIND   := $(shell nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
LOCK   := requirements/$(KIND).lock

.PHONY: help setup run report study notebooks test matrix lint format lock platforms lab bench clean

help:            ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 10

setup: .venv/$(KIND).done  ## make .venv with the pinned packages

.venv/$(KIND).done: $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -r $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

run: setup       ## train and evaluate on DATASET (default: synthetic), skipping finished runs
	$(BIN)/python -m fruitveg_tl run $(if $(DATASET),--dataset "$(DATASET)") $(ARGS)

report: setup    ## execute all notebooks on DATASET (default: synthetic) and bind them into a PDF
	$(BIN)/python -m fruitveg_tl report $(if $(DATASET),--dataset "$(DATASET)") $(ARGS)

study: setup     ## for committing: put the runs of this machine into data/results
	$(BIN)/python -m fruitveg_tl study

notebooks: setup ## execute them in place, on the images they name, for committing
	$(BIN)/python -m fruitveg_tl report --in-place

test: setup      ## run the tests
	$(BIN)/python -m pytest

matrix: setup    ## make the whole report on every kind of images that users bring, half an hour
	$(BIN)/python -m pytest tests/matrix.py -rP --dist=load

lint: setup      ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup    ## apply style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: setup      ## resolve pyproject.toml into requirements/*.lock anew
	$(BIN)/pip install --quiet uv
	for kind in cpu gpu; do $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
	  --extra $$kind --extra notebooks --extra dev --upgrade \
	  --no-emit-index-url --no-annotate --no-header pyproject.toml -o requirements/$$kind.lock; done

platforms: setup ## ask whether every pinned package has a wheel for Windows, macOS and ARM
	$(BIN)/python requirements/check_platforms.py

lab: setup       ## open JupyterLab
	$(BIN)/jupyter lab notebooks

# PyTorch is what one benchmark compares with: in an environment of its own, 5.5 GB.
.venv-torch/done:
	$(PYTHON) -m venv .venv-torch
	.venv-torch/bin/pip install --quiet --disable-pip-version-check torch==2.14.1 torchvision==0.29.1
	touch $@

BENCHMARKS := end_to_end prediction engine share_of_peak

bench: setup .venv-torch/done  ## measure speed and memory, write benchmarks/results
	for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py || exit 1; done

clean:           ## remove .venv, report, caches and the synthetic set; keep results
	rm -rf .venv .venv-torch report data/cache data/synthetic *.egg-info .pytest_cache .ruff_cache .hypothesis
