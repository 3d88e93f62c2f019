# Two commands on a fresh machine: `make demo` and `make test`. They write only to .venv and runs/.
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test test-slow faults test-oldest bench-check bench-growth lint install install-cpu lock clean

demo: install
	$(VENV)/bin/his2lip demo

# Two test processes. The tests of one file run in one process, because they share its Ray and its servers. A process
# that dies ends the run: a replacement would wait for ever for files that are handed out by the file.
TEST := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0
test: lint
	$(PY) -m pytest $(TEST)

# The result of each test is written into docs/slow_tests.md.
test-slow: install
	HIS2LIP_SLOW_PAGE=docs/slow_tests.md $(PY) -m pytest -m slow

# Seeded faults: mutated configs, odd addresses, damaged files. The results are written into docs/reliability.md.
faults: install
	HIS2LIP_FAULTS_PAGE=docs/reliability.md $(PY) -m pytest -m faults tests/faults

# The unit tests on the oldest versions of the direct dependencies that pyproject.toml allows. Golden records are left
# out, because their keys name the versions of libraries; so are lint and the integration tests.
OLDEST := .venv-oldest
test-oldest: install
	test -x $(OLDEST)/bin/python || python3 -m venv $(OLDEST)
	UV=$$(command -v uv || echo $(VENV)/bin/uv); \
	  $$UV pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest $(TEST) \
	  --ignore tests/golden --ignore tests/integration

# Counts the work of the hot paths (valgrind's callgrind; torch's own counters) and fails where one is 10 % over the
# committed counts. UPDATE=--update commits to new ones.
bench-check: install
	$(PY) benchmarks/speed/bench_check.py $(UPDATE)

# How time and memory grow with the number of patches, pairs, grid cells and trials: the small end of docs/scale.md.
bench-growth: install
	$(PY) benchmarks/speed/growth.py --out runs/growth.json --repeats 3 \
	  --patches 1000 10000 --pairs 4096 8192 --cells 10 100 --trials 10 50

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

install: $(STAMP)

# Uses uv if it is installed, else installs it into the environment. Nothing is installed outside this folder.
$(STAMP): requirements.lock requirements-dev.lock pyproject.toml
	@test -x $(PY) || python3 -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	@UV=$$(command -v uv || echo $(VENV)/bin/uv); \
	  $$UV pip install --python $(PY) --compile-bytecode --require-hashes \
	    -r requirements.lock -r requirements-dev.lock && \
	  $$UV pip install --python $(PY) --no-deps --editable .
	@touch $@

# The same for a machine without a GPU: torch's build for the CPU, without 3 GB of CUDA libraries. It comes from
# download.pytorch.org, whose files have other hashes than the lock files; the versions are those of the lock files.
install-cpu:
	@test -x $(PY) || python3 -m venv $(VENV)
	@command -v uv >/dev/null 2>&1 || test -x $(VENV)/bin/uv || $(PY) -m pip install --quiet uv
	@UV=$$(command -v uv || echo $(VENV)/bin/uv); \
	  $$UV pip install --python $(PY) --compile-bytecode --torch-backend cpu --no-verify-hashes \
	    -c requirements.lock -c requirements-dev.lock --editable '.[dev]'
	@touch $(STAMP)

# requirements.lock has what a cluster node installs; requirements-dev.lock has only what tests and lint add to it.
# Versions that are in these files are kept; add UPGRADE=--upgrade to take newer ones.
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-header --quiet $(UPGRADE)
lock:
	$(LOCK) -o requirements.lock
	$(LOCK) -o requirements-dev.lock --extra dev -c requirements.lock \
	  $$(sed -n 's/^\([a-z0-9._-]*\)==.*/--no-emit-package \1/p' requirements.lock)

clean:
	rm -rf $(VENV) $(OLDEST) runs .pytest_cache .mypy_cache .ruff_cache
