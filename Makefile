# Everything from nothing but python3, make and a package index.
PYTHON ?= python3
BIN := .venv/bin
# The lock of the oldest Python, or that of all newer ones.
LOCK := $(shell $(PYTHON) -c 'import sys; print("requirements.txt" if sys.version_info < (3, 12) else "requirements-newest.txt")')

.PHONY: demo test coverage check docs format package install clean

demo: install
	$(BIN)/deconfound compare demo --out demo

test: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

coverage: install
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal --cov

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest tests/guards
	$(MAKE) docs

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

package: install
	$(BIN)/python -c 'from setuptools import build_meta as made; made.build_sdist("dist"); made.build_wheel("dist")'

install: .venv/installed

.venv/installed: $(LOCK) pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement $(LOCK)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv build demo dist site
