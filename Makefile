# Two commands do everything on a fresh machine with Python 3.11+, a C++ compiler and make:
#
#   make demo    set up, then the whole story on the embedded model
#   make test    set up, then all checks and tests

.PHONY: demo test check setup benchmarks clean

demo: setup
	scripts/demo

test: setup
	scripts/check
	scripts/test

check: setup
	scripts/check

setup:
	@scripts/setup

# Everything the README's table claims; takes some hours and an otherwise idle machine.
benchmarks: setup
	scripts/benchmarks

clean:
	rm -rf .venv demo build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
