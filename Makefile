# `make demo` shows the service at work, `make check` checks what is quick and `make test` everything.
# They need only Python 3.11 with pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := client server protos tests deploy
BY_ROOM := $(addprefix tests/,client front_end model tasks settings packaging/test_rooms.py packaging/test_documents.py)
PROCESSES := 2
TEST = $(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder
# The tests start hundreds of processes, each of which would compile all that it imports.
unexport PYTHONDONTWRITEBYTECODE
define CHECKS
$(BIN)/ruff check $(SOURCES)
$(BIN)/ruff format --check $(SOURCES)
$(BIN)/lint-imports --no-cache
endef
# Tests, and the types beside the first of them, which take more time than the types do
BESIDE_TYPES = $(BIN)/mypy & types=$$!; $(1); tests=$$?; wait $$types || { echo 'mypy found errors, printed above'; exit 1; }; exit $$tests
# The server and nothing else, for the bill of materials.
SERVER_VENV := .venv-server

.PHONY: demo check test rooms benchmark gpu verify architectures notebooks screenshots docs soak load format audit release clean

demo: $(VENV)/server-installed
	deploy/demo.sh $(BIN)/neuron-attribution

# For every save: style, types, import contracts, and the tests that start no process and load no whole model
check: PROCESSES := 3
check: $(VENV)/test-installed
	$(CHECKS)
	$(call BESIDE_TYPES,QUICK=1 $(TEST) --quiet -m 'not process and not patient' $(BY_ROOM))

# Everything that must hold
test: $(VENV)/test-installed
	$(CHECKS)
	$(call BESIDE_TYPES,$(TEST))

# BENCHMARK takes options: make benchmark BENCHMARK='--quick --output quick.md'
benchmark: $(VENV)/benchmark-installed
	PYTHONPATH=tests $(BIN)/python -m benchmarks $(BENCHMARK)

# docs/benchmarks-gpu.md and the tests of a GPU, in under ten minutes and without a network, from a Python that has torch.
# WHEELS is a folder with what it lacks: make gpu PYTHON=python3 WHEELS=wheels GPU='--seconds 300'
# Without a GPU only what can be counted is written: make gpu PYTHON=.venv/bin/python
GPU_PACKAGES := $(CURDIR)/.gpu-packages
gpu:
	$(PYTHON) tests/benchmarks/gpu/prepare.py $(GPU_PACKAGES) $(WHEELS)
	PYTHONPATH=$(GPU_PACKAGES):$(CURDIR)/client:$(CURDIR)/server:$(CURDIR)/tests:$$PYTHONPATH \
		$(PYTHON) -m benchmarks.gpu $(GPU)

# The rooms of the packages, with their files and lines
rooms: $(VENV)/test-installed
	@PYTHONPATH=tests $(BIN)/python -m rooms

# The bounded top-k against brute force, about ten minutes; VERIFY takes options: make verify VERIFY='--model gemma --prompts 4'
verify: $(VENV)/server-installed
	PYTHONPATH=tests $(BIN)/python -m verify $(VERIFY)

# docs/architectures.md, from a run of every supported family
architectures: $(VENV)/test-installed
	PYTHONPATH=tests $(BIN)/python -m families_page

# docs/notebooks.md and the pictures in docs/images, from a run of client/examples/notebooks.py
notebooks: $(VENV)/test-installed
	PYTHONPATH=tests $(BIN)/python -m notebook_page

# site/: the documentation with the reference of the Python client, for any web server; `make docs DOCS=serve` to write it
DOCS ?= build --strict
docs: $(VENV)/docs-installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(DOCS)

# docs/images, from the demo model; needs Chromium
screenshots: $(VENV)/test-installed
	PYTHONPATH=tests $(BIN)/python -m browser.screenshot docs/images

# Long runs against a real server: make soak SOAK='mixed --minutes 20', SOAK=kill_worker, SOAK=overload, SOAK=fuzz,
# SOAK=predictions or SOAK=hostile
SOAK ?= mixed
soak: $(VENV)/test-installed
	cd tests && ../$(BIN)/python -m soak.$(SOAK)

# What callers see under load, and how much a server can take: make load LOAD='--rate 5 --seconds 60 --plot load.svg'
load: $(VENV)/test-installed
	PYTHONPATH=tests $(BIN)/python -m load $(LOAD)

format: $(VENV)/test-installed
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# Known vulnerabilities of every pinned package, as PyPI tells them; one it cannot tell of is a failure.
audit: $(VENV)/release-installed
	$(BIN)/pip-audit --strict --no-deps --disable-pip --progress-spinner off --requirement constraints.txt $(AUDIT)

# dist/: the packages, checked; a bill of materials (CycloneDX) of what comes with the server; checksums of all of it.
# The packages bear the time of the last commit, so that it gives the same bytes whenever and wherever they are built.
release: export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
release: $(VENV)/release-installed $(SERVER_VENV)/server-installed
	@test -z "$$TAG" || grep -qxF "version = \"$${TAG#v}\"" pyproject.toml || \
		{ echo "The tag $$TAG does not name the version in pyproject.toml." >&2; exit 1; }
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file dist/sbom.cdx.json \
		$(SERVER_VENV)
	cd dist && sha256sum *.tar.gz *.whl *.json >SHA256SUMS

# FOLDER/EXTRA-installed: a virtual environment that holds this project with one of its extras.
%-installed: pyproject.toml constraints.txt protos/neuron_attribution/v1/neuron_attribution.proto
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[$(*F)]'
	touch $@

clean:
	rm -rf $(VENV) $(SERVER_VENV) $(GPU_PACKAGES) dist client/neuron_attribution/v1
