# make ablation   the default ablation: report in runs/quickstart/report.html
# make test       lint and pytest, in some minutes
# make thorough   the tests that `make test` leaves out: further cases, and tests that take long (tests/thorough.py)
# make fuzz       odd --set, run.json, metrics.jsonl and documents, 20,000 of each; JAXEFF_FUZZ=N for others; some minutes to an hour
# make shipped    what every mixer must do, once more on programs optimised as a user's are; some minutes
# make lint       formatting, ruff's checks, and whether docs/mixers.md is what docstrings say
# make format     puts the code into the one format
# make bench-env  .venv-bench with torch and transformers, the peers of `jaxeff bench`, and lm-eval
# make maxtext-env  .venv-maxtext with MaxText, the peer of `jaxeff bench maxtext`; MAXTEXT_PYTHON names a Python from 3.12 on
# make parity     published code run again by torch, other numbers than in tests/golden, and compared with ours; what jaxeff
#                 saves, loaded by Transformers
# make plan       tests of `jaxeff plan` that need the compiler for TPUs, which runs on any machine (in .cache/libtpu)
# make floor      a part of the tests that uses every dependency, each at its floor in setup.cfg (in .venv-floor)
# make audit      what pip-audit knows about the packages of .venv (in .venv-audit)
# make figures    every benchmark, one JSON file each in runs/figures; on a quiet machine, some minutes
# make docs       docs/mixers.md from docstrings, and the pages of docs/ as a site in site/
# make clean      removes environments, caches and builds; keeps runs/
#
# PYTHON=python3.12 chooses the interpreter; without it an existing .venv is used as it is, else python3.
# JAXEFF_ABLATION=reduced makes `make ablation` a check of minutes rather than a result.
# Nothing is written outside this folder but pip's own cache. Every path below is relative or quoted: folders may hold spaces.

SHELL := /bin/sh
.DELETE_ON_ERROR:
.PHONY: ablation test thorough shipped plan fuzz lint format env bench-env maxtext-env parity floor audit figures docs clean check-python

ifndef PYTHON
PYTHON := $(if $(wildcard .venv/stamp-*),.venv/bin/python,python3)
endif

# The stamp carries the version, so that another PYTHON makes a new environment and the same one reuses what is there.
VERSION := $(shell "$(PYTHON)" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null)
STAMP := .venv/stamp-$(VERSION)
VENV := .venv/bin/python

export JAXEFF_CACHE := $(CURDIR)/.cache
export MPLCONFIGDIR := $(CURDIR)/.cache/matplotlib
export TMPDIR := $(CURDIR)/.cache/tmp
export PIP_DISABLE_PIP_VERSION_CHECK := 1

WORKDIR ?= runs/quickstart
# Together they touch every dependency.
FLOOR := tests/test_floor.py tests/train/test_progress.py tests/data/test_pipeline.py tests/data/test_corpus.py \
  tests/data/test_public_tokenizer.py tests/interop/test_hf.py tests/interop/test_export.py tests/interop/test_haiku.py \
  tests/interop/test_equinox.py
TORCH ?= torch==2.13.0

ablation: $(STAMP)
	@$(VENV) -m jaxeff.cli ablate configs/ablations/quickstart.py --workdir "$(WORKDIR)"

test: lint
	@$(VENV) -m pytest $(if $(ARGS),,--quick) -n 2 --dist worksteal -q $(ARGS)

thorough: $(STAMP)
	@$(VENV) -m pytest --thorough -n 2 --dist worksteal -q $(ARGS)

shipped: $(STAMP)
	@$(VENV) -m pytest --shipped -n 2 --dist worksteal -q tests/contracts $(ARGS)

plan: .cache/libtpu/stamp
	@PYTHONPATH="$(CURDIR)/.cache/libtpu" $(VENV) -m pytest -q tests/plan $(ARGS)

.cache/libtpu/stamp: setup.cfg | $(STAMP)
	@mkdir -p "$$TMPDIR"
	@echo "fetching the compiler for TPUs into .cache/libtpu"
	@rm -rf .cache/libtpu
	@"$(PYTHON)" docs/install.py $(VENV) --target .cache/libtpu --no-deps 'libtpu>=0.0.42'
	@touch .cache/libtpu/stamp

fuzz: $(STAMP)
	@JAXEFF_FUZZ="$${JAXEFF_FUZZ:-20000}" $(VENV) -m pytest -n 2 -q tests/fuzz $(ARGS)

lint: $(STAMP)
	@$(VENV) -m ruff format --check --quiet . || { echo 'not formatted: make format' >&2; exit 1; }
	@$(VENV) -m ruff check .
	@$(VENV) docs/mixers.py --check

format: $(STAMP)
	@$(VENV) -m ruff format .
	@$(VENV) -m ruff check --fix .

env: $(STAMP)

# A stamp that is merely old (setup.cfg changed) upgrades in place; without one the environment is half made or another
# Python's, and starts afresh.
$(STAMP): setup.cfg pyproject.toml | check-python
	@mkdir -p "$$TMPDIR"
	@if [ -e "$(STAMP)" ]; then :; else echo "making .venv with Python $(VERSION)"; "$(PYTHON)" -m venv --clear .venv; fi
	@echo "installing jaxeff and what it needs into .venv (some minutes the first time)"
	@"$(PYTHON)" docs/install.py $(VENV) --editable ".[test]"
	@touch "$(STAMP)"

# The peers in an environment of their own: torch never enters jaxeff's. TORCH is what pip is asked for: a version, a wheel. Of
# flash-linear-attention plain recurrences and layers are read alone, which need none of what its kernels do.
bench-env: .venv-bench/stamp

.venv-bench/stamp: setup.cfg | check-python
	@mkdir -p "$$TMPDIR"
	@echo "making .venv-bench with torch and transformers"
	@"$(PYTHON)" -m venv --clear .venv-bench
	@"$(PYTHON)" docs/install.py .venv-bench/bin/python $(TORCH)
	@"$(PYTHON)" docs/install.py .venv-bench/bin/python transformers einops peft lm-eval
	@"$(PYTHON)" docs/install.py .venv-bench/bin/python --no-deps fla-core==0.6.0 flash-linear-attention==0.6.0
	@touch .venv-bench/stamp

maxtext-env: .venv-maxtext/stamp

# The versions that go with jax 0.10.2, and what compiling a step imports, without torch and tensorflow.
MAXTEXT_PYTHON ?= python3.12
.venv-maxtext/stamp: | check-python
	@mkdir -p "$$TMPDIR"
	@echo "making .venv-maxtext with MaxText"
	@"$(MAXTEXT_PYTHON)" -m venv --clear .venv-maxtext
	@"$(PYTHON)" docs/install.py .venv-maxtext/bin/python jax==0.10.2 jaxlib==0.10.2 flax==0.12.8 optax orbax-checkpoint absl-py \
	  einshape fastapi grain huggingface_hub immutabledict jaxtyping jinja2 omegaconf packaging pillow pydantic requests \
	  sentencepiece sympy tiktoken tqdm transformers typeguard==2.13.3 uvicorn xprof
	@"$(PYTHON)" docs/install.py .venv-maxtext/bin/python --no-deps maxtext==0.2.4 tokamax==0.0.12 aqtp==0.9.0 drjax==0.2.1 \
	  pathwaysutils==0.1.13 qwix==0.1.8
	@touch .venv-maxtext/stamp

parity: $(STAMP) .venv-bench/stamp
	@rm -rf .cache/parity .cache/parity.jsonl
	@set -e; for maker in tests/golden/make_*.py; do .venv-bench/bin/python "$$maker" .cache/parity 1 2>.cache/parity.log || { \
	  cat .cache/parity.log >&2; exit 1; }; done
	@JAXEFF_GOLDEN="$(CURDIR)/.cache/parity" JAXEFF_PARITY="$(CURDIR)/.cache/parity.jsonl" $(VENV) -m pytest -n 2 -q tests/golden
	@.venv-bench/bin/python tests/golden/check_hf.py .cache/parity 2>.cache/parity.log || { cat .cache/parity.log >&2; exit 1; }
	@.venv-bench/bin/python tests/golden/check_hf_rwkv7.py .cache/parity 2>.cache/parity.log || { cat .cache/parity.log >&2; exit 1; }
	@.venv-bench/bin/python tests/golden/check_hf_peft.py .cache/parity 2>.cache/parity.log || { cat .cache/parity.log >&2; exit 1; }
	@$(VENV) tests/golden/check_lm_eval.py .cache/parity .venv-bench 2>.cache/parity.log || { cat .cache/parity.log >&2; exit 1; }

# An ordinary environment that is at the floor already is taken as it is.
floor: $(STAMP)
	@set -e; python=$(VENV); $(VENV) docs/floor.py --check || { $(MAKE) --no-print-directory .venv-floor/stamp; \
	  python=.venv-floor/bin/python; $$python docs/floor.py --check; }; \
	$$python -m pytest -n 2 -q $(FLOOR); $$python -m mkdocs build --quiet --site-dir .cache/floor-site

.venv-floor/stamp: setup.cfg | check-python
	@mkdir -p "$$TMPDIR"
	@echo "making .venv-floor with every dependency at its floor"
	@"$(PYTHON)" -m venv --clear .venv-floor
	@"$(PYTHON)" docs/floor.py >.cache/floor.txt
	@"$(PYTHON)" docs/install.py .venv-floor/bin/python --constraint .cache/floor.txt --editable ".[test,docs,tensorboard]"
	@touch .venv-floor/stamp

audit: $(STAMP) .venv-audit/stamp
	@$(VENV) docs/audit.py .venv-audit/bin/python .venv

.venv-audit/stamp: | check-python
	@mkdir -p "$$TMPDIR"
	@echo "making .venv-audit with pip-audit"
	@"$(PYTHON)" -m venv --clear .venv-audit
	@"$(PYTHON)" docs/install.py .venv-audit/bin/python pip-audit && touch .venv-audit/stamp || echo "pip-audit cannot be installed"

figures: $(STAMP) .venv-bench/stamp
	@mkdir -p runs/figures
	@set -e; bench="$(VENV) -m jaxeff.cli bench"; \
	for name in attention-memory import data checkpoint generate compile; do $$bench $$name --json runs/figures/$$name.json; done; \
	for dtype in float32 bfloat16; do $$bench train --dtype $$dtype --json runs/figures/train-$$dtype.json; done; \
	$$bench train --d-model 256,1024 --sizes 256x4 --rounds 5 --json runs/figures/train-widths.json

docs: $(STAMP)
	@$(VENV) docs/install.py $(VENV) --editable ".[docs]"
	@$(VENV) docs/mixers.py
	@$(VENV) -m mkdocs build --quiet

check-python:
	@[ -n "$(VERSION)" ] || { echo "PYTHON=$(PYTHON) does not run; name one that does: make PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "jaxeff needs Python 3.11 or newer; $(PYTHON) is $(VERSION): make PYTHON=python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv module; install it (Debian, Ubuntu: apt install python3-venv) or name another PYTHON" >&2; exit 2; }

clean:
	rm -rf .venv .venv-bench .venv-maxtext .venv-floor .venv-audit
	rm -rf .cache .pytest_cache .ruff_cache .hypothesis build dist site *.egg-info
