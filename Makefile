# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
DEMO ?= demo
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test check slow peers fuzz format clean

help:
	@echo "make demo    fetch real models, extract, analyse, write the report to $(DEMO)/report/index.html"
	@echo "make test    run the tests"
	@echo "make check   ruff, mypy --strict, import rules"
	@echo "make peers   the readers against the frameworks that wrote the files, each in an environment of its own"
	@echo "make fuzz    damaged files against every reader, guided by coverage (RUNS=100000, FORMAT=onnx)"
	@echo "make slow    the tests that need minutes (kill -9 in random places, every demo model)"

# pip only brings uv, into a folder of its own: this works without the venv module and on systems
# whose Python refuses to be changed.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "filterdb needs Python 3.11 or newer; say make PYTHON=python3.12 …")'
	test -d $(VENV)/uv || $(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target $(VENV)/uv uv
	test -x $(PY) || PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv pip install --quiet --python $(PY) --constraints constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.ready
	$(VENV)/bin/filterdb demo --out $(DEMO)

test: $(VENV)/.ready
	$(PY) -m pytest -q -n auto --dist loadfile -m "not slow and not peers and not fuzz"

slow: $(VENV)/.ready
	$(PY) -m pytest -q -n auto --dist loadfile -m "slow and not peers and not fuzz"

# One environment a peer: their requirements exclude one another. Nothing of ours is installed there.
PEERS := $(patsubst tests/peers/%.txt,.peers/%/.ready,$(wildcard tests/peers/*.txt))

.peers/%/.ready: tests/peers/%.txt | $(VENV)/.ready
	PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv venv --quiet --allow-existing --python $(PYTHON) .peers/$*
	PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv pip install --quiet --python .peers/$*/bin/python --only-binary :all: -r $<
	touch $@

peers: $(VENV)/.ready $(PEERS)
	$(PY) -m pytest -q -m peers

# What guides the fuzzing has wheels for few systems, so only this command installs it.
$(VENV)/.fuzz: tests/fuzz/requirements.txt | $(VENV)/.ready
	PYTHONPATH=$(VENV)/uv $(PYTHON) -m uv pip install --quiet --python $(PY) -r $<
	touch $@

RUNS ?= 100000
fuzz: $(VENV)/.fuzz
	$(PY) -m tests.fuzz.campaign --runs $(RUNS) $(addprefix --format ,$(FORMAT))

check: $(VENV)/.ready
	$(VENV)/bin/ruff check filterdb pipelines tests
	$(VENV)/bin/ruff format --check filterdb pipelines tests
	$(VENV)/bin/mypy
	$(PY) -m pytest -q tests/test_architecture.py

format: $(VENV)/.ready
	$(VENV)/bin/ruff check --fix filterdb pipelines tests
	$(VENV)/bin/ruff format filterdb pipelines tests

clean:
	rm -rf $(VENV) $(DEMO) build dist
