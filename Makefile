# make setup   environment in .venv (idempotent)       make demo   whole pipeline on MovieLens-100K x Wikidata
# make test    every check, the notebooks included      make lab    JupyterLab on notebooks/
# make check   the quick part of make test: lint, types, stripped notebooks, unit tests
# make bench   speed and memory, beside a floor
# make gpu     does a GPU compute the same, and how fast (under 10 minutes); without one, a dry run: make gpu DEVICE=cpu
# make browser the notebooks in a real JupyterLab in Chromium (installed where it can be; part of make test)
# make llm     profiles by a real, small language model on this machine (compiles its server: a few minutes)
PYTHON ?= python3
# Tested versions; `make setup CONSTRAINTS=` takes the newest ones instead.
CONSTRAINTS ?= .ci/constraints.txt
BIN := .venv/bin
SMALL := ml-100k-small
# Compiled modules are kept wherever Python would keep them: the tests start many processes.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo lab bench gpu llm test check lint types notebooks-clean pipeline unit notebooks browser format clean

setup:
	@PYTHON=$(PYTHON) .ci/setup "$(CONSTRAINTS)"

demo: setup
	$(BIN)/spike-kit demo

lab: setup
	JUPYTER_CONFIG_PATH=$(CURDIR)/.jupyter $(BIN)/jupyter lab notebooks

bench: setup
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.profiles
	$(BIN)/python -m benchmarks.train
	$(BIN)/python -m benchmarks.train --synthetic 10000,50000,200000

# Installs nothing: a machine with a GPU may have no network, but a Python with torch.
gpu: DEVICE ?= cuda
gpu: REPORT ?= gpu.json
gpu:
	$(if $(filter cpu,$(DEVICE)),OMP_NUM_THREADS=1) PYTHONPATH=$(CURDIR) \
	$(firstword $(wildcard $(BIN)/python) $(PYTHON)) -m benchmarks.gpu --device $(DEVICE) $(if $(filter cpu,$(DEVICE)),--quick) --out $(REPORT)

llm: setup
	@PYTHON=$(PYTHON) .ci/setup-llm
	SPIKE_KIT_LLM_PYTHON=$(CURDIR)/.venv-llm/bin/python $(BIN)/pytest tests/profiles/test_local_llm.py

test: check pipeline notebooks browser

# The types are checked beside the tests, which leave part of a core idle.
check: lint notebooks-clean
	@$(MAKE) --no-print-directory -j 2 types unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

notebooks-clean: setup
	$(BIN)/nbstripout --verify notebooks/*.ipynb

# One process per core, each with one thread: torch processes with several threads on the same cores stall each other.
unit: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -p no:nbmake -m 'not browser and not pipeline'

pipeline: setup
	$(BIN)/spike-kit fetch ml-100k
	$(BIN)/spike-kit build ml-100k --name $(SMALL) --max-users 200
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --maxprocesses 4 -p no:nbmake -m pipeline tests/golden tests/experiments tests/results tests/benchmarks tests/test_distributed.py tests/test_extras.py
	$(BIN)/spike-kit demo $(SMALL) --max-users 200 --epochs 60 --no-notebooks

notebooks: pipeline
	OMP_NUM_THREADS=1 SPIKE_KIT_DATASET=$(SMALL) $(BIN)/pytest -n 2 --nbmake --nbmake-timeout=900 notebooks

browser: pipeline
	@.ci/browser
	SPIKE_KIT_DATASET=$(SMALL) $(BIN)/pytest -m browser tests/browser

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-llm .pytest_cache .ruff_cache .hypothesis spike_kit.egg-info
