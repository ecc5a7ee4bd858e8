# `make app` and `make test` do everything on a machine that has git and a Python with pip.
.DEFAULT_GOAL := help
.PHONY: help app test install install-dev check browser postgres lock clean

SHELL := /bin/bash
PYTHON ?= python3
UV_VERSION := 0.13.9
UV := .tools/bin/uv
BIN := .venv/bin
PORT ?= 8501
# TORCH=cpu leaves the CUDA libraries out (1 GB instead of 6 GB on Linux); the default is the pinned PyPI build.
TORCH ?= default
# How a packaging tool downloads over slow lines: one value for every step below.
export UV_HTTP_TIMEOUT ?= 300

ifeq ($(TORCH),cpu)
REQUIREMENTS := .tools/requirements-cpu.txt
TORCH_FLAGS := --torch-backend cpu
else
REQUIREMENTS := requirements.txt
TORCH_FLAGS :=
endif

help:
	@echo "make app      install what is needed and open the app in the browser"
	@echo "make test     install what is needed and run the tests"
	@echo "make install  the environment alone (.venv); TORCH=cpu leaves CUDA out"
	@echo "make check    lint, types, import directions"
	@echo "make browser  the headless browser for the browser tests (Debian, needs root)"
	@echo "make postgres the server for the tests of several machines (Debian, needs root)"
	@echo "make lock     compile requirements*.txt anew from pyproject.toml"

app: install
	$(BIN)/fdcore app --port $(PORT)

test: install-dev
	$(BIN)/python -m pytest

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile

install: .venv/.installed
install-dev: .venv/.installed-dev

# pip --target needs neither venv nor root, and leaves the machine's Python as it was.
$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv==$(UV_VERSION)

.venv/bin/python: | $(UV)
	$(UV) venv --quiet --python 3.12 .venv

.tools/requirements-cpu.txt: requirements.txt | $(UV)
	grep -vE '^(nvidia-|cuda-|triton)' requirements.txt > $@

.venv/.installed: pyproject.toml $(REQUIREMENTS) | .venv/bin/python
	# Bytecode now, or the first start of the app compiles all of torch.
	$(UV) pip install --compile-bytecode --python $(BIN)/python $(TORCH_FLAGS) -r $(REQUIREMENTS)
	$(UV) pip install --python $(BIN)/python --no-deps -e .
	touch $@

.venv/.installed-dev: requirements-dev.txt .venv/.installed
	$(UV) pip install --python $(BIN)/python -r requirements-dev.txt
	touch $@

browser:
	apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core

postgres:
	apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql

lock: | $(UV)
	$(UV) pip compile --quiet --universal --python-version 3.12 pyproject.toml -o requirements.txt
	# What torch brings is in the file above, or left out with TORCH=cpu.
	$(UV) pip compile --quiet --universal --python-version 3.12 --no-annotate --group dev -c requirements.txt -o requirements-dev.txt
	sed -i -E '/^(nvidia-[^m]|cuda-|triton)/d' requirements-dev.txt
	cd fdcore/models/envs/mace && $(CURDIR)/$(UV) pip compile --quiet --universal --python-version 3.11 requirements.in -o requirements.txt
	cd fdcore/models/envs/eqv2 && $(CURDIR)/$(UV) pip compile --quiet --universal --python-version 3.11 requirements.in --override overrides.txt -o requirements.txt
	cd fdcore/models/envs/gpaw && $(CURDIR)/$(UV) pip compile --quiet --universal --python-version 3.12 --no-annotate requirements.in -o requirements.txt

clean:
	rm -rf .venv .tools
