# Five stages make an experiment; `python -m driftbook` knows their order and skips what still holds. `make help` lists all.
# A machine with an NVIDIA GPU wants PyTorch's CUDA build: make setup TORCH="torch==2.13.0 --index-url <PyTorch's CUDA wheel index>"
# and one without, whose package index has only the CUDA build, the CPU one: TORCH="torch==2.13.0 --index-url <its CPU wheel index>".
# In a conda environment (environment.yml): make setup VENV=$CONDA_PREFIX

PYTHON ?= python3.11
VENV   ?= .venv
TORCH  ?= torch==2.13.0
EXP    ?= quickstart
ALLOW  ?= params/allow.yml

STAGES    = traits capture decode cluster validate
BIN       = $(VENV)/bin
DRIFTBOOK = $(BIN)/python -m driftbook
STAMP     = $(VENV)/.driftbook-setup
NUMERIC   = $(shell grep -l pytest.mark.numeric tests/test_*.py)
BENCHES   = $(patsubst params/bench/%.yml,%,$(wildcard params/bench/*.yml))

.DEFAULT_GOAL = help
.DELETE_ON_ERROR:
.PHONY: help setup demo run $(STAGES) lab plan why label judge-check index compare check verify render docs test test-portable house lint bench proof gpu-check cache clean

help: ## list the targets
	@grep -hE '^[$$a-z()_A-Z-]+:.*## ' $(MAKEFILE_LIST) | sed -e 's/^$$(STAGES)/<stage>/' -e 's/:.*## /\t/' | expand -t 12
	@echo "EXP is a file of params/ without .yml: $(filter-out allow,$(patsubst params/%.yml,%,$(wildcard params/*.yml)))"

setup: $(STAMP) ## create the environment: .venv, PyTorch, the locked packages, driftbook itself

# PyTorch first and by exact version: resolved together with the rest, pip takes a CUDA build of several GB.
$(STAMP): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

demo: setup ## the quickstart on a bundled model, a few minutes on two cores
	$(DRIFTBOOK) run quickstart
	@echo "Open outputs/quickstart/index.html in a browser."

run: $(EXP:%=run/%) ## run experiments or series, EXP="a b"; with -j side by side
$(EXP:%=run/%): run/%: setup
	$(DRIFTBOOK) run $*

$(STAGES): setup ## one stage and what it needs: traits, capture, decode, cluster, validate
	$(DRIFTBOOK) run $(EXP) --stage $@

lab: setup ## open the notebooks in JupyterLab
	$(BIN)/jupyter lab --notebook-dir=. --LabApp.default_url=/lab/tree/notebooks/start.ipynb

plan: setup ## dry run of EXP: texts, tokens, time, memory, money
	$(DRIFTBOOK) plan $(EXP)

why: setup ## which stages of EXP would run, and what changed
	$(DRIFTBOOK) why $(EXP)

index: setup ## draw outputs/index.html, the list of all experiments
	$(DRIFTBOOK) index

label: setup ## a page on which people label answers of EXP, CLAIM= one claim
	$(DRIFTBOOK) label $(EXP) $(if $(CLAIM),--claim "$(CLAIM)")

judge-check: setup ## hold the judges of EXP against the labels of people, LABELS=
	$(DRIFTBOOK) judge-check $(EXP) --labels $(LABELS)

compare: setup ## what differs between two experiments, or two changes of a series, A= B=
	$(DRIFTBOOK) compare $(A) $(B)

check: setup ## hold what changed in EXP against rules, ALLOW=params/allow.yml; fails where one is broken
	$(DRIFTBOOK) check $(EXP) --allow $(ALLOW)

verify: setup ## hash the outputs of EXP again
	$(DRIFTBOOK) verify $(EXP)

render: setup ## draw the reports of EXP again
	$(DRIFTBOOK) render $(EXP)

docs: setup ## make the example report and the story of the start notebook in docs again
	$(DRIFTBOOK) run quickstart
	$(DRIFTBOOK) example quickstart docs/example/index.html
	$(BIN)/python -m driftbench.story docs/start.md

# Files go out in their own order: sorted by how many tests they hold, as xdist would, the long ones of few tests come last
# and one core waits for the other.
test: setup lint ## all tests, offline
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# An older processor, or one of another maker, has other kernels for the same products, and their sums run in another
# order; so they do with another number of threads. A pass sets both, and two passes meet each value once. Processors
# that are not x86-64 ignore the names of these kernels.
test-portable: setup ## tests of numbers under the kernels of other processors: default and one thread, avx2 and two
	for pass in "default SSE4_2 1" "avx2 AVX2 2"; do set -- $$pass; \
	  echo "kernels: $$1, threads: $$3"; \
	  ATEN_CPU_CAPABILITY=$$1 MKL_ENABLE_INSTRUCTIONS=$$2 ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=$$3 \
	  OPENBLAS_CORETYPE=$${OPENBLAS_CORETYPE:-Haswell} \
	  $(BIN)/python -m pytest $(NUMERIC) -m numeric -n 2 --dist loadfile --no-loadscope-reorder || exit 1; \
	done

house: setup ## how the code stands: lines, packages, imports upward and in circles, long functions
	$(BIN)/python tests/house.py

lint: setup ## ruff
	$(BIN)/ruff check lib tests

bench: $(BENCHES) ## all benchmarks; one of them: make bench-<name>
bench-%: setup
	$(DRIFTBOOK) run bench-$*

gpu-check: setup ## four minutes on a machine with one GPU: decoding, capture, replay, screen, parity with the CPU
	$(BIN)/python -m driftbench.gpu_check

cache: setup ## sizes of the shared caches; `driftbook cache evict` makes room, `cache explain` tells why a text is embedded again
	$(DRIFTBOOK) cache

proof: bench-proof ## planted changes: what the old way and driftbook find, and what each takes (about an hour)

clean: ## remove failed and abandoned runs and tool caches; outputs of finished runs stay
	-test ! -x $(BIN)/python || $(DRIFTBOOK) clean
	rm -rf .pytest_cache .ruff_cache build lib/*.egg-info
	find lib tests -name __pycache__ -type d -prune -exec rm -rf {} +
