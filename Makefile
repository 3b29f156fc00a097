# make demo   everything on a fresh machine: environment, weights, photographs cut into objects
# make test   everything that the tests need, and the whole suite
# make quick  the tests of what everything rests on, in under a minute
# make docs   the documentation site, in build/site
# make tpu-check   small programs compiled for a TPU that need not be here: 484 MB on disk, a minute
# The first two work again without a network once things are here. Choose a Python: make PYTHON=python3.12

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help environment demo picture test quick lowest lint types audit release docs tpu-check package install clean
.ONESHELL:
.SHELLFLAGS := -euo pipefail -c
# Where it is set, each process would compile all sources that it imports: JAX alone takes a second.
unexport PYTHONDONTWRITEBYTECODE

VENV ?= .venv
PYTHON ?=
DEMO ?= demo
# Processes of the suite: each compiles for itself and takes up to 4 GB. One that is done takes half
# of what another has left, so that none ends alone with a long file.
JOBS ?= 2
# Most of the suite's time is compiling, and this halves it. Comparisons with the published code run
# on code as it is optimised for users as well; see .ci/run.
TEST_XLA_FLAGS ?= --xla_backend_optimization_level=0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check
# Many times faster than pip, but without pip's settings: where it cannot, pip installs.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
LIBTPU := 'libtpu>=0.0.52'
LOWEST_TEST := pytest jaxtyping beartype pandas tifffile pycocotools shapely hypothesis
TEST_EXTRAS := onnx,tfds,cluster,video,imagej,notebooks,docs,app,test

help:
	@sed -n 's/^# //p' Makefile

# The newest Python of at least 3.11 that can make an environment; pyenv's are looked at as well.
# A copy of the pyproject.toml that was installed says that nothing is to be done; what is installed
# for the tests does for the demonstration too.
define environment
if ! $(BIN)/python -c 'import sys, pip' 2> /dev/null; then
	python="$(PYTHON)"
	newest=310
	for candidate in python3.{11..19} $$HOME/.pyenv/versions/3.*/bin/python3 python3; do
		[ -z "$(PYTHON)" ] || break
		version=$$("$$candidate" -c 'import sys, venv, ensurepip; print("%d%02d" % sys.version_info[:2] if sys.version_info[3] == "final" else 0)' 2> /dev/null) || continue
		if [ "$$version" -gt "$$newest" ]; then
			newest="$$version"
			python="$$candidate"
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
	echo "installing unseg_jax[$(2)] (once; takes a minute)"
	$(PIP) uv
	$(UV) --editable '.[$(2)]' || $(PIP) --editable '.[$(2)]'
	cp pyproject.toml $(VENV)/installed-demo
	cp pyproject.toml $(VENV)/installed-$(1)
fi
endef

install:
	@$(call environment,demo,onnx)

environment:
	@$(call environment,test,$(TEST_EXTRAS))

demo:
	@$(call environment,demo,onnx)
	$(BIN)/python -m unseg_jax.demo --out $(DEMO)

# The picture in the README.
picture:
	@$(call environment,demo,onnx)
	$(BIN)/python -m unseg_jax.demo --out $(DEMO) --picture notebooks/images/demo.webp

test:
	@$(call environment,test,$(TEST_EXTRAS))
	XLA_FLAGS="$${XLA_FLAGS:-} $(TEST_XLA_FLAGS)" $(BIN)/python -m pytest --numprocesses $(JOBS) --dist worksteal $(PYTEST_FLAGS)

quick:
	@$(call environment,test,$(TEST_EXTRAS))
	XLA_FLAGS="$${XLA_FLAGS:-} $(TEST_XLA_FLAGS)" $(BIN)/python -m pytest -m quick --quiet $(PYTEST_FLAGS)

# A part of the suite with the lowest versions that pyproject.toml allows, on Python 3.11.
lowest:
	@$(call environment,test,$(TEST_EXTRAS))
	export UV_PYTHON_DOWNLOADS=never
	$(BIN)/uv venv --quiet --clear --python 3.11 build/lowest
	$(BIN)/uv pip compile --quiet --python 3.11 --resolution lowest-direct \
		--extra onnx --extra video --extra imagej \
		--output-file build/lowest.txt pyproject.toml
	$(BIN)/uv pip install --quiet --python build/lowest --requirement build/lowest.txt \
		--constraint build/lowest.txt $(LOWEST_TEST)
	$(BIN)/uv pip install --quiet --python build/lowest --no-deps --editable .
	# Old releases of dependencies may use what newer ones of others deprecate.
	build/lowest/bin/python -m pytest -W ignore::DeprecationWarning tests/test_imports.py tests/test_segmenter.py \
		tests/backbones tests/clustering tests/cli tests/data tests/export $(PYTEST_FLAGS)

lint:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation, in build/site; any warning is an error.
docs:
	@$(call environment,test,$(TEST_EXTRAS))
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	echo "open build/site/index.html"

# The wheel and the sdist, in build/package/dist, run where nothing but their dependencies is.
package:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/python .ci/package.py

# Known vulnerabilities of what is installed; says so where the advisories cannot be reached.
audit:
	@$(call environment,test,$(TEST_EXTRAS))
	$(BIN)/python .ci/audit.py

# Builds and checks a release and tags it here; the tag is yours to push.
release: package
	version=$$($(BIN)/python -c 'import unseg_jax; print(unseg_jax.__version__)')
	if [ -n "$$(git status --porcelain)" ]; then
		echo "make: the working tree has changes; commit them first" >&2
		exit 1
	fi
	if ! grep -qF "## [$$version]" CHANGELOG.md; then
		echo "make: CHANGELOG.md has no section [$$version]; rename Unreleased" >&2
		exit 1
	fi
	$(BIN)/python -m twine check --strict build/package/dist/*
	git tag --annotate "v$$version" --message "Version $$version"
	echo "tagged v$$version; push the tag to release: the workflow Release uploads it to PyPI"

# In a folder of its own, so that nothing else takes this machine for one with a TPU.
.tpu/libtpu/libtpu.so:
	@$(call environment,test,$(TEST_EXTRAS))
	$(PIP) --no-deps --target .tpu $(LIBTPU)

tpu-check: .tpu/libtpu/libtpu.so
	@$(call environment,test,$(TEST_EXTRAS))
	du -sh .tpu
	$(BIN)/python -m benchmarks compiled --quick

clean:
	rm -rf $(VENV) $(DEMO) .tpu build
