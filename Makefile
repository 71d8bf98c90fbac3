# Every target works on a fresh machine: it makes .venv in the checkout when that is missing or out of date.

# The pins were taken with Python 3.11, so it is tried first.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
OTHERS := mlx-vlm trl readers
SOURCES := src tests docs $(wildcard benchmarks tools)

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# Processes on a small machine fight for cores when each of them starts one thread per core.
test check test-slow test-oldest test-newest interop: export OMP_NUM_THREADS := 1

.PHONY: demo test check fix docs test-slow test-gpu test-oldest test-newest bench bench-gpu interop audit setup clean

demo: $(READY)
	$(BIN)/phi3v demo

# Other programs are put into environments of their own; where one cannot be had, its tests say so.
test: $(READY)
	-$(BIN)/python tools/interop_env.py $(OTHERS)
	$(BIN)/python -m pytest -rs -m "not gpu"

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy src
	$(BIN)/lint-imports
	$(BIN)/python docs/generate_cli.py --check
	$(BIN)/python -m pytest

fix: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

docs: $(READY)
	$(BIN)/python docs/generate_cli.py

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

# The fast tests with other releases, which lie over the packages of .venv: torch is installed once.
test-oldest test-newest: test-%: $(READY)
	$(BIN)/python tools/version_env.py $*
	.venv-$*/bin/python -m pytest -q

# With vLLM too, which takes 3.4 GB.
interop: $(READY)
	$(BIN)/python tools/interop_env.py $(OTHERS) vllm
	$(BIN)/python -m pytest -rs -m interop

# A quarter of an hour of CPU time; one table, one JSON file, plots.
bench: $(READY)
	$(BIN)/python -m benchmarks --out output/bench

# Needs an NVIDIA GPU.
bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.gpu --out output/gpu

# Asks the advisory database on the web about all that is installed; an audit that cannot ask fails.
audit: $(READY)
	$(BIN)/python -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit==2.10.1
	.venv/audit/bin/pip-audit --strict --skip-editable --path \
		"$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" || \
		{ echo "audit: a package has a known fault, or the advisory database cannot be asked (see above)"; exit 1; }

# Hooks are a convenience: a checkout without git, or with a hooks path of its own, is set up without them.
setup: $(READY)
	@git rev-parse --git-dir >/dev/null 2>&1 && $(BIN)/pre-commit install || echo "git hooks not installed"

$(READY): requirements.txt requirements-extras.txt requirements-dev.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "phi3v needs Python 3.11, 3.12 or 3.13 with venv; name it: make PYTHON=..."; exit 1; }
	@echo "Setting up .venv with $(PYTHON); this takes a few minutes once."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-extras.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --no-deps -e .
	@touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find src tests docs -name __pycache__ -type d -prune -exec rm -rf {} +
