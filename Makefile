# make demo: an environment, a short training run, edited pictures, scores and a report.
# make test: everything a change must pass.

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# The first of these that is Python 3.11 or newer makes the environment; `make PYTHON=...` decides.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell \
	$(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))

.DEFAULT_GOAL := help
.PHONY: help demo test exhaustive torture lint clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

demo: $(VENV)/.installed  ## train a small editor on this machine, edit, score; writes out/demo/report.html
	$(BIN)/rb-jax demo --out=out/demo

test: lint  ## lint, check types and run all tests but the slowest
	$(BIN)/pytest -n 2 --dist=worksteal

exhaustive: $(VENV)/.installed-dev  ## run the tests that test leaves out: every mesh, the whole model, a thousand damaged files
	$(BIN)/pytest -n 2 --dist=worksteal -m exhaustive

torture: $(VENV)/.installed-dev  ## kill, stop, damage and move training runs; prints a table (an hour; root, for small disks)
	$(BIN)/python -m tests.torture --json=out/torture.json

lint: $(VENV)/.installed-dev  ## check style and types only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:  ## remove the environment, outputs and caches
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps make a second run reuse the environment until the requirements change.
$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "rb_jax needs Python 3.11 or newer: install one, or name it with make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rb_jax needs Python 3.11 or newer: $(PYTHON) is not" >&2; exit 1; }
	@echo "Making $(VENV) with $$("$(PYTHON)" --version)"
	@"$(PYTHON)" -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml setup.py constraints.txt | $(VENV)/.made
	@echo "Installing the pinned requirements into $(VENV) (about a minute, once)"
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt | $(VENV)/.made
	@echo "Installing the pinned requirements and the checkers into $(VENV) (about a minute, once)"
	@$(PIP) install -c constraints.txt -e '.[dev,torch,plan,data,gcs,s3]'
	@touch $@ $(VENV)/.installed
