# Two commands: `make run` shows a distillation with its report, `make test` checks everything.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test torture bench-quick docs lint clean

# One thread: networks this small gain nothing from a second one, and wait for it when the machine is busy.
run: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/upcycle distill --config recipes/quickstart.yaml --resume

test: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n 2 --dist loadgroup

torture: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.torture

bench-quick: .venv/dev
	$(BIN)/python -m benchmarks.quick

docs: .venv/dev
	$(BIN)/pip install --quiet -e ".[docs]"
	$(BIN)/python -m scripts.docs
	$(BIN)/mkdocs build --strict

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/dev: .venv/bin/python pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@ .venv/installed

clean:
	rm -rf .venv runs site
