# `make demo` shows the service at work, `make test` checks everything. Both need only Python 3.11 with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := client server protos tests

.PHONY: demo test benchmark verify architectures soak format clean

demo: $(VENV)/server-installed
	deploy/demo.sh $(BIN)/neuron-attribution

test: $(VENV)/test-installed
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/pytest

# BENCHMARK takes options: make benchmark BENCHMARK='--quick --output quick.md'
benchmark: $(VENV)/benchmark-installed
	PYTHONPATH=tests $(BIN)/python -m benchmarks $(BENCHMARK)

# The bounded top-k against brute force, about ten minutes; VERIFY takes options: make verify VERIFY='--prompts 2'
verify: $(VENV)/server-installed
	PYTHONPATH=tests $(BIN)/python -m verify $(VERIFY)

# docs/architectures.md, from a run of every supported family
architectures: $(VENV)/test-installed
	PYTHONPATH=tests $(BIN)/python -m families_page

# Long runs against a real server: make soak SOAK='mixed --minutes 20', SOAK=kill_worker, SOAK=overload or SOAK=fuzz
SOAK ?= mixed
soak: $(VENV)/test-installed
	cd tests && ../$(BIN)/python -m soak.$(SOAK)

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

$(VENV)/%-installed: pyproject.toml constraints.txt protos/neuron_attribution/v1/neuron_attribution.proto
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) client/neuron_attribution/v1
