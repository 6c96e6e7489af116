# make demo       set up and segment a real photograph
# make test       set up, lint and test
# make help       everything else

PYTHON ?= python3
TORCH  ?= torch==2.13.0
VENV   := .venv
BIN    := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help install demo test test-all lint format lock audit gpu models models-smoke clean
.DEFAULT_GOAL := help

help:
	@echo "make install   virtual environment with everything, development tools too"
	@echo "make demo      segment the fundus photograph that scikit-image ships; pictures in demo/"
	@echo "make test      lint and all tests but the slow ones"
	@echo "make test-all  the slow ones too"
	@echo "make lint      ruff and mypy"
	@echo "make format    let ruff format and mend what it can"
	@echo "make lock      resolve requirements.lock anew from pyproject.toml"
	@echo "make audit     known vulnerabilities of what is installed (needs the network)"
	@echo "make models    rebuild all shipped models from DATA (a folder with splits.csv) in build/models; hours"
	@echo "make models-smoke  the same recipes at tiny size on drawn photographs"
	@echo "make gpu       build mamba-ssm's CUDA kernel (needs nvcc)"
	@echo "make clean     remove the virtual environment and caches"

install: $(VENV)/.installed

# torch first and by pip alone: the index decides between CPU and CUDA builds.
$(VENV)/.torch:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; say which: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(TORCH)
	touch $@

$(VENV)/.locked: requirements.lock $(VENV)/.torch
	$(BIN)/pip install --quiet -r requirements.lock
	touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.locked
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

demo: install
	$(BIN)/python -m service.demo --out demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow" --cov

test-all: lint
	$(BIN)/pytest --cov

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: install
	$(BIN)/pip-compile --quiet --extra s3 --extra dicom --extra demo --extra dev --strip-extras --no-annotate \
		--no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host -o requirements.lock pyproject.toml
	sed -i 's/+cpu//' requirements.lock

audit: install
	$(BIN)/python -m tests.audit

# A plain install of mamba-ssm ships no scan kernel since 2.3.2; this builds it.
gpu: install
	MAMBA_KEEP_CUDA_BUILD=TRUE $(BIN)/pip install --no-build-isolation "mamba-ssm>=2.2" \
		|| { echo "mamba-ssm could not be built (it needs nvcc of torch's CUDA version)."; \
		     echo "Everything works without it: on CUDA tensors the scan is then made of torch operations."; exit 1; }

# Stopped, it goes on where it was. See docs/recipes.md for the table and for rebuilding one model alone.
models: install
	test -f "$(DATA)/splits.csv" || { echo "say where the data are: make models DATA=folder (it has splits.csv)"; exit 1; }
	$(BIN)/python -m recipes.models --data "$(DATA)" --work build/models

models-smoke: install
	rm -rf build/smoke
	$(BIN)/python -m recipes.models --smoke --work build/smoke

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .coverage demo
