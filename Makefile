# Everything from nothing but python3, make and a package index.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test coverage check docs format install clean

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

install: .venv/installed

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf .venv demo site
