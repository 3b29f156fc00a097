# make demo   everything on a fresh machine: environment, weights, photographs cut into objects
# make test   everything that the tests need, and the whole suite
# Both work again without a network once things are here. Choose a Python: make PYTHON=python3.12

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo picture test lint types install clean
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c

VENV ?= .venv
PYTHON ?=
DEMO ?= demo
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
TEST_EXTRAS := onnx,tfds,cluster,video,notebooks,test

help:
	@sed -n 's/^# //p' Makefile

# The newest Python of at least 3.11 that can make an environment; pyenv's are looked at as well.
# A file that is the copy of pyproject.toml it was made from says that nothing is to be installed.
define environment
if ! $(BIN)/python -c 'import sys, pip' 2> /dev/null; then
	python=""
	for candidate in $(PYTHON) python3.{15,14,13,12,11} \
			$$HOME/.pyenv/versions/3.{15,14,13,12,11}*/bin/python3 python3; do
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
				2> /dev/null; then
			python="$$candidate"
			break
		fi
	done
	if [ -z "$$python" ]; then
		echo "make: no Python of at least 3.11 with venv is here; install one (Debian: apt-get install python3 python3-venv)" >&2
		exit 1
	fi
	echo "making $(VENV) with $$("$$python" --version)"
	"$$python" -m venv --clear $(VENV)
fi
if ! cmp -s pyproject.toml $(VENV)/installed-$(1); then
	echo "installing unseg_jax[$(2)] (once; takes minutes)"
	$(PIP) --editable '.[$(2)]'
	cp pyproject.toml $(VENV)/installed-$(1)
fi
endef

install:
	@$(call environment,demo,onnx)

demo:
	@$(call environment,demo,onnx)
	echo "weights: $$($(BIN)/unseg-jax weights get auto)"
	$(BIN)/python -m unseg_jax.demo --out $(DEMO)

# The picture in the README.
picture:
	@$(call environment,demo,onnx)
	$(BIN)/python -m unseg_jax.demo --out $(DEMO) --picture notebooks/images/demo.webp

test:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

lint:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/pyright

clean:
	rm -rf $(VENV) $(DEMO)
