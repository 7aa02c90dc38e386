# Everything a newcomer needs. Each target sets up what it uses, in .venv.
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test lint clean

demo: .venv/ready  ## the main job, on the checkpoint shipped in examples/
	$(BIN)/python examples/digits.py
	$(BIN)/edgekit build examples/digits.yaml --output demo

test: .venv/ready  ## every test, on all cores
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

lint: .venv/ready  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf .venv demo examples/digits build *.egg-info
