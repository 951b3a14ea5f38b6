# Two commands do everything on a fresh machine with Python 3.11+, a C++ compiler and make:
#
#   make demo    set up, then the whole story on the embedded model
#   make test    set up, then all checks and tests
#
# and, for makers: docs, dist, dist-check, benchmarks, paper

.PHONY: demo test check setup docs dist dist-check benchmarks paper clean

demo: setup
	scripts/demo

test: setup
	scripts/check
	scripts/test

check: setup
	scripts/check

setup:
	@scripts/setup

# The site, in site/index.html.  Generated pages are brought up to date first; no network.
docs: setup
	.venv/bin/python -m scripts.pages
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict --quiet

# Wheel and sdist, in dist/.
dist: setup
	.venv/bin/python -m build --no-isolation

# The wheel as a stranger uses it: a new virtual environment, an empty home, the tutorial's commands.  Takes minutes.
dist-check: dist
	scripts/dist-check

# Every claim, and docs/benchmarks.md; takes most of a day and an otherwise idle machine.  Goes on where it was.
benchmarks: setup
	scripts/benchmarks

# Only what repeats the papers' tables.  `scripts/benchmarks --papers --trial` goes the same ways in minutes.
paper: setup
	scripts/benchmarks --papers

clean:
	rm -rf .venv demo build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
