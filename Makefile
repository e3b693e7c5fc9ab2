# The checks that CI runs. `make check` runs all of them.
.PHONY: check test lint types layers format

check: test lint types layers

test:
	pytest

lint:
	ruff check .
	ruff format --check .

types:
	pyright

layers:
	lint-imports

format:
	ruff format .
	ruff check --fix .
