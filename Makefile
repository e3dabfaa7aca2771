# One door for developers; CI calls the same targets.
# The first interpreter that runs (a version manager's shim may not) and is new enough; or set PYTHON.
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.PHONY: demo test test-ray lint bench soak docs clean

demo: .venv/demo.stamp  ## from raw flights to a prediction that is proved, in about two minutes
	$(BIN)/macadam demo

test: .venv/dev.stamp  ## all tests
	$(BIN)/python -m pytest -n auto --dist loadfile

test-ray: .venv/dev.stamp .venv-ray/stamp  ## the executor of Ray on a real local cluster: 80 MB of wheels and 1.4 GB of memory, so not in `test`
	export PATH="$(CURDIR)/.venv-ray/bin:$$PATH"; \
	ray start --head --block --port=6391 --dashboard-port=8266 --num-cpus=4 --num-gpus=2 \
		--object-store-memory=80000000 --disable-usage-stats >.venv-ray/start.log 2>&1 & ray=$$!; \
	until grep -q 'Ray runtime started' .venv-ray/start.log; do \
		kill -0 $$ray || { tail -3 .venv-ray/start.log; exit 1; }; sleep 1; done; \
	MACADAM_TEST_RAY=http://127.0.0.1:8266 $(BIN)/python -m pytest -n 0 -k ray \
		tests/contract/test_executor.py tests/contract/test_ray_executor.py; code=$$?; kill $$ray; wait $$ray; exit $$code

lint: .venv/dev.stamp  ## ruff, mypy strict, the floors, no heavy import
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/dev.stamp  ## every benchmark, each against its named peer or floor
	$(BIN)/python -m benchmarks

soak: .venv/dev.stamp  ## the long runs of what `make test` runs briefly
	MACADAM_SOAK=1 $(BIN)/python -m pytest

docs: .venv/dev.stamp  ## write the reference pages from the code
	$(BIN)/macadam docs docs/reference

clean:  ## remove what the targets made
	rm -rf .venv .venv-ray .macadam demo-home

.venv/base.stamp: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Macadam needs Python 3.11 or newer. Next: install it, or say where it is with PYTHON=."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/demo.stamp: .venv/base.stamp
	$(BIN)/python -m pip install --quiet --group flights
	touch $@

.venv/dev.stamp: .venv/demo.stamp
	$(BIN)/python -m pip install --quiet --group dev
	touch $@

# Ray has an environment of its own: Macadam speaks to it over HTTP and shares none of its packages.
.venv-ray/stamp: pyproject.toml
	$(PYTHON) -m venv .venv-ray
	.venv-ray/bin/python -m pip install --quiet 'ray[default]>=2.50,<3'
	touch $@
