# make demo | check | test | coverage | lab | docs | sweep SWEEP=experiments/sweeps/NAME.yaml | readme
# Every target first makes a virtual environment in .venv (once; again when pyproject.toml or constraints.txt change).
# PYTHON=/path/to/python3 chooses the interpreter, EXTRAS=dev,bench what is installed, SWEEP_FLAGS what `refine-nb sweep` gets besides.
# TORCH_INDEX=URL names a package index for torch alone, such as https://download.pytorch.org/whl/cpu.

SHELL := /bin/sh
VENV ?= .venv
EXTRAS ?= dev
PYTHON ?=
TORCH_INDEX ?=
BIN := $(VENV)/bin
READY := $(VENV)/.ready-$(EXTRAS)

# One thread a process: two kernels with two threads each are twenty times slower on two cores than with one each.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMEXPR_NUM_THREADS=1

.DEFAULT_GOAL := help
.PHONY: help setup demo check test coverage lab docs readme sweep clean

help:
	@sed -n 's/^# //p' Makefile | head -4

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  py="$$(PYTHON='$(PYTHON)' sh tools/find_python.sh)" || exit 1; \
	  echo "making $(VENV) with $$py"; "$$py" -m venv --clear $(VENV); }
	@$(BIN)/python -m pip --version | awk '{ split($$2, v, "."); exit v[1] < 23 }' || $(BIN)/python -m pip install --quiet "pip>=23"
	@echo "installing refine_nb[$(EXTRAS)] with constraints.txt (the first time a few minutes: torch is large)"
	@test -z "$(TORCH_INDEX)" || $(BIN)/python -m pip install --quiet --timeout 15 --retries 1 --no-deps -c constraints.txt \
	  --index-url "$(TORCH_INDEX)" torch || { echo "torch did not come from TORCH_INDEX=$(TORCH_INDEX); try again without it" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[$(EXTRAS)]"
	@$(BIN)/python -m ipykernel install --sys-prefix --name python3 --display-name "Python 3 (refine_nb)" >/dev/null
	@touch $@

demo: $(READY)
	@$(THREADS) $(BIN)/python tools/demo.py

test: $(READY)
	@$(THREADS) $(BIN)/python tools/check.py $(STEPS)

# The inner loop: what the changes since COMMIT reach, as much as fits in a minute.
COMMIT ?= HEAD
check: $(READY)
	@$(THREADS) $(BIN)/python tools/check.py --changed $(COMMIT)

coverage: $(READY)
	@$(THREADS) $(BIN)/python -m pytest tests -q -n 2 --dist worksteal -p no:cacheprovider --cov=refine_nb --cov-report=term:skip-covered --cov-fail-under=85

lab: $(READY)
	@$(THREADS) $(BIN)/jupyter lab --notebook-dir=. --ContentsManager.pre_save_hook=nbdev.clean.clean_jupyter nbs/index.ipynb

docs: $(READY)
	@$(THREADS) $(BIN)/python tools/pages.py --render

readme: $(READY)
	@$(BIN)/python tools/readme.py

sweep: $(READY)
	@test -n "$(SWEEP)" || { echo "which sweep? make sweep SWEEP=experiments/sweeps/NAME.yaml; there are:" >&2; ls experiments/sweeps/*.yaml >&2; exit 2; }
	@$(THREADS) $(BIN)/refine-nb sweep $(SWEEP) $(SWEEP_FLAGS)

clean:
	rm -rf build _proc _docs nbs/nbdev.yml nbs/sidebar.yml
