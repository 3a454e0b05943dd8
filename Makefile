# Two commands do everything on a machine that has only Python (3.11 to 3.13) and make.
PYTHON ?= python3
BIN := $(CURDIR)/.venv/bin
export PATH := $(BIN):$(PATH)
export JUPYTER_PREFER_ENV_PATH := 1

.PHONY: help install walkthrough figures lab site test tidy lock clean

help:
	@echo "make walkthrough   the whole study on painted portraits; results in out/walkthrough"
	@echo "make figures       figures/ again from the records in data/results"
	@echo "make lab           JupyterLab at the first chapter of the course"
	@echo "make site          the notebooks as pages with search: out/site/index.html"
	@echo "make test          package, notebooks and tests"
	@echo "make install       .venv with everything in it (the two above do this first)"
	@echo "make tidy          after a change: cells formatted, package and README.md exported, notebooks cleaned"
	@echo "make lock          requirements.lock anew, with the newest versions that fit together"
	@echo "make clean         remove .venv and caches; results stay"

install:
	@$(PYTHON) tools/install.py

walkthrough: install
	natrig walkthrough --out out/walkthrough

figures: install
	python tools/figures.py

lab: install
	jupyter lab nbs/learn/00_a_smile_opens_the_door.ipynb

site: install
	python -m pip install --quiet --editable ".[docs]"
	python tools/pages.py

# One thread a worker: with the default number, workers and threads fight for the processors.
test: export OMP_NUM_THREADS := 1
test: export HF_HUB_OFFLINE := 1
test: install
	python tools/check.py
	ruff check natrig_nb
	nbdev_test --n_workers 2 --timing
	python -m pytest -rs -n 2 --dist loadfile --no-loadscope-reorder --durations 12 tests

tidy: install
	python tools/format.py
	nbdev_export
	python tools/readme.py
	python tools/check.py --fix

# torch and what it brings stay free: each machine takes the build that suits it.
lock: install
	uv pip compile --quiet --refresh-package natrig_nb setup.py --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links --output-file .venv/lock
	sed 's/+cpu//' .venv/lock | grep -vE '^(torch|triton|nvidia|cuda)' > requirements.lock

clean:
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
	find natrig_nb nbs tests tools -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
