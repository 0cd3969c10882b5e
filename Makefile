# Needs Python 3.11 to 3.13 with the venv module, and make. Everything else is installed into .venv.
#
#   make demo         trains a small VideoMAE V2 on generated videos and shows what it learned
#   make test         the default test set          make test-slow    the rest
#   make lint         ruff                          make format       lets ruff rewrite
#   make demo-smoke   the demo in seconds, for CI   make lock         re-pins requirements/
#   make clean        removes .venv, runs/ and caches
#
# ACCEL=cpu|cuda|cuda12|tpu picks the JAX wheel (cpu: the hash-pinned lock). PYTHON=... picks the interpreter.

ACCEL ?= cpu
PYTHON ?=
WORKERS ?= 2
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
# One stamp per choice of wheel, so that a change of ACCEL installs again and nothing else does.
STAMP := $(VENV)/.installed-$(ACCEL)
# Twice quiet: errors only.
PIP := $(PY) -m pip --disable-pip-version-check --quiet --quiet
VERSIONS := 3.11 3.12 3.13
PYTHON_OK := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

ifeq ($(filter $(ACCEL),cpu cuda cuda12 tpu),)
$(error ACCEL=$(ACCEL) is not known; choose one of cpu, cuda, cuda12, tpu)
endif

# The tests bring the TPU compiler; without this, JAX would look for a TPU and say that there is none.
ifeq ($(ACCEL),cpu)
export JAX_PLATFORMS ?= cpu
endif

.PHONY: help install demo demo-smoke test test-slow lint format lock clean
.DEFAULT_GOAL := help

help:
	@sed -n '3,9s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(PY):
	@set -e; \
	for candidate in $(or $(PYTHON),python3 python3.13 python3.12 python3.11); do \
	    if $$candidate -c '$(PYTHON_OK)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "make: no usable Python among: $(or $(PYTHON),python3 python3.13 python3.12 python3.11)." >&2; \
	    echo "vmae_jax needs Python 3.11, 3.12 or 3.13 with its venv and ensurepip modules (on Debian and" >&2; \
	    echo "Ubuntu: apt install python3-venv). Name another one with: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Creating $(VENV) with $$($$found --version)"; \
	$$found -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(STAMP): setup.py $(VERSIONS:%=requirements/cpu-py%.txt) | $(PY)
	@set -e; \
	lock=requirements/cpu-py$$($(PY) -c 'import sys; print("%d.%d" % sys.version_info[:2])').txt; \
	test -f $$lock || { echo "make: no $$lock; remove $(VENV) and use Python 3.11 to 3.13." >&2; exit 1; }; \
	rm -f $(VENV)/.installed-*; \
	echo "Installing $$lock into $(VENV); the first time takes a few minutes"; \
	$(PIP) install --require-hashes -r $$lock; \
	if [ "$(ACCEL)" = cpu ]; then \
	    $(PIP) install --no-deps --no-build-isolation -e .; \
	else \
	    echo "Installing the wheels of ACCEL=$(ACCEL)"; \
	    sed -n 's/^\([A-Za-z0-9._-]*==[^ ]*\).*/\1/p' $$lock >$(VENV)/constraints.txt; \
	    $(PIP) install --no-build-isolation -c $(VENV)/constraints.txt -e '.[$(ACCEL)]'; \
	fi; \
	touch $@

DEMO_VIDEOS := runs/demo_videos
DEMO_RUN := runs/demo
SMOKE_VIDEOS := runs/smoke_videos
SMOKE_RUN := runs/smoke

# $(call run_demo,VIDEOS FOLDER,WORKDIR,CONFIG,ARGUMENTS OF THE GENERATOR)
define run_demo
$(PY) -m vmae_jax.data.synthetic --out=$(1) $(4)
$(PY) -m vmae_jax.main --config=$(3) --config.data.manifest=$(1)/train.csv \
    --config.data.root=$(1) --workdir=$(2)
$(PY) -m vmae_jax.tools.reconstruct --workdir=$(2) --manifest=$(1)/val.csv --out=$(2)/pictures
@echo "Pictures: $(2)/pictures"
endef

demo: $(STAMP)
	$(call run_demo,$(DEMO_VIDEOS),$(DEMO_RUN),configs/demo.py,)

demo-smoke: $(STAMP)
	rm -rf $(SMOKE_RUN) $(SMOKE_VIDEOS)
	$(call run_demo,$(SMOKE_VIDEOS),$(SMOKE_RUN),configs/demo.py:smoke,--videos=20)

test: $(STAMP)
	$(PY) -m pytest -m "not slow" -n $(WORKERS) $(PYTEST_ARGS)

test-slow: $(STAMP)
	$(PY) -m pytest -m slow $(PYTEST_ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Keeps the pins that still fit; `make lock UPGRADE=--upgrade` moves to the newest releases within setup.py's bounds.
lock: | $(PY)
	@$(PY) -m venv $(VENV)/lock-tools
	@$(VENV)/lock-tools/bin/pip --disable-pip-version-check install --quiet 'uv>=0.8'
	@for version in $(VERSIONS); do \
	    $(VENV)/lock-tools/bin/uv pip compile setup.py requirements/build.in --extra test --quiet \
	        --python-version $$version --universal --generate-hashes \
	        --no-emit-index-url --no-emit-find-links --custom-compile-command 'make lock' $(UPGRADE) \
	        -o requirements/cpu-py$$version.txt || exit 1; \
	    echo "requirements/cpu-py$$version.txt"; \
	done

clean:
	rm -rf $(VENV) runs build dist .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
