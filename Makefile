# Two commands do everything: `make demo` and `make test`. Both install what they need into .venv.

PYTHON ?= python3
VENV   ?= .venv
BIN     = $(VENV)/bin
EXTRAS ?= onnx,openvino,genai,coreml,jax,cluster,video,dev
STAMP   = $(VENV)/.installed

# The machine's cores are split between test processes; each library gets one.
JOBS   ?= 2
TESTENV = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1

.PHONY: setup demo test test-full mutation lint format types bench lock reference clean

setup: $(STAMP)

$(STAMP): pyproject.toml .constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e ".[$(EXTRAS)]"
	touch $@

demo: setup
	$(BIN)/exporter demo

# The real clients run in processes of their own: each brings native libraries, and not all of them bear
# every other one in one process. A worker that dies fails the run at once, instead of leaving it waiting.
test: setup
	$(TESTENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0 --ignore=tests/interop
	$(TESTENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --max-worker-restart=0 tests/interop

test-full: setup
	$(BIN)/python -m pytest -m "full or not full" --timeout=7200

mutation: setup
	$(BIN)/python -m tests.mutation

lint: setup
	$(BIN)/ruff check exporter tests
	$(BIN)/ruff format --check exporter tests
	$(BIN)/mypy exporter

format: setup
	$(BIN)/ruff check --fix exporter tests
	$(BIN)/ruff format exporter tests

bench: setup
	$(BIN)/python -m tests.benchmarks.export_vs_optimum

reference: setup
	$(BIN)/python -m exporter.cli.reference

# Needs uv (`pip install uv`). The local version suffix of CPU wheels is dropped: the constraint has to
# hold on machines with other wheels too.
lock:
	uv pip compile pyproject.toml --all-extras --no-header --no-annotate --no-emit-index-url \
	    --no-emit-find-links --python $(BIN)/python | sed 's/+cpu$$//' | grep -v '^[-#]' > .constraints.new
	{ head -1 .constraints.txt; cat .constraints.new; } > .constraints.txt.new
	mv .constraints.txt.new .constraints.txt && rm .constraints.new

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
