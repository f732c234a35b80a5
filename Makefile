# safer_ray: 'make help' lists what can be made. Everything runs in .venv, made from requirements/cpu.lock.
PYTHON ?= python3
TORCH_INDEX ?=
BIN := .venv/bin
TIERS := unit contract golden local_ray e2e
# ninja, which compiles DeepSpeed's extension, lies in .venv/bin and is looked for on PATH.
# What is imported is compiled once and kept, also for those who keep Python from it elsewhere.
export PYTHONDONTWRITEBYTECODE :=
WITH_PATH := PATH="$(CURDIR)/$(BIN):$$PATH"

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help install demo soak test check format wheel audit clean bench bench-gpu $(TIERS:%=test-%)

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## make .venv from the lock file, if it is missing or the lock has changed
	@PYTHON='$(PYTHON)' TORCH_INDEX='$(TORCH_INDEX)' bash scripts/bootstrap.sh

demo: install ## the main job on the embedded model, 20 to 35 minutes on 2 cores; ends with runs/demo/report.html
	$(WITH_PATH) $(BIN)/safer-ray run jobs/demo_cpu.yaml --run-dir runs/demo --overwrite

test: $(TIERS:%=test-%) ## all tests; one tier alone: make test-unit, test-contract, test-golden, test-local_ray, test-e2e

# Unit tests run in one process per core; the other tiers use all cores in each test.
UNIT := -n logical --maxprocesses 8 --dist loadfile

$(TIERS:%=test-%): test-%: install
	$(WITH_PATH) $(BIN)/python -m pytest $(if $(filter unit,$*),$(UNIT)) tests/$*

check: install ## format, lint, types and unit tests; under 2 minutes
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q $(UNIT) tests/unit

.PHONY: fuzz laws chaos
laws: install ## the laws of the unit tests on 1,000 examples each instead of 100
	SAFER_RAY_LAWS=thorough $(BIN)/python -m pytest -q $(UNIT) tests/unit

fuzz: install ## 100,000 made-up inputs for every reader of foreign text (needs: pip install --no-deps atheris)
	$(BIN)/python -m benchmarks.fuzz

chaos: install ## break 100 runs on fakes and 4 on the real stack on purpose; about half an hour on 2 cores
	$(WITH_PATH) $(BIN)/python -m benchmarks.chaos

format: install ## format the code and mend what the linter can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: install ## the driver against 1,000 simulated samplers, then 48 on Ray for 10 minutes: benchmarks/results/soak.json
	$(BIN)/python -m benchmarks.soak alone
	$(WITH_PATH) $(BIN)/python -m benchmarks.soak ray
	[ ! -f runs/demo/journal.jsonl ] || $(BIN)/python -m benchmarks.soak journal --run runs/demo

bench: install ## every benchmark, ours beside the reference, on all cores; allow 90 minutes; BENCH=--quick for a few
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements/bench.lock
	$(WITH_PATH) $(BIN)/python -m benchmarks.run $(BENCH)

bench-gpu: install ## the learner on one CUDA device: tokens per second, share of peak, memory; says so where there is none
	$(WITH_PATH) $(BIN)/python -m benchmarks.gpu
audit: install ## measure judges, rules, teachers and traces against their goals; writes benchmarks/results/judges.json
	$(BIN)/python -m benchmarks.audit

wheel: install ## build dist/safer_ray-*.whl, which holds the rule packs and job files
	$(BIN)/python -m hatchling build -t wheel

clean: ## remove caches and build results; .venv and runs/ stay
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
