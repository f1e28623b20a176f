# Every target works on a fresh machine: it sets up what it needs first.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: setup run demo test check bench conformance mutants faults audit format clean

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "everturn needs Python 3.11 or newer")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing everturn and its tools into $(VENV) …"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable '.[postgres]' --group dev
	@touch $(READY)

run: $(READY)  ## server, worker and an example agent on one embedded store
	@$(BIN)/everturn dev examples/assistant.py

demo: $(READY)  ## a conversation whose worker is killed in the middle of an answer
	@$(BIN)/python examples/demo.py

test: $(READY)  ## the whole suite
	@sh tests/system_packages.sh
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

check: $(READY)  ## seconds: format, lint, types, import rules, unit tests
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	@$(BIN)/python -m pytest -q tests/unit

format: $(READY)
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(READY)  ## figures beside their limits; ROW=B-3 for one row
	@$(BIN)/python bench/run.py $(ROW)

conformance: $(READY)  ## write docs/conformance.md from the tests
	@$(BIN)/python tests/docs/conformance.py

mutants: $(READY)  ## break each guarantee in a copy of the tree; its tests must fail
	@$(BIN)/python tests/mutants/run.py $(NAME)

faults: $(READY)  ## single faults, simulations, deaths of processes: docs/faults.md; STAGES=deaths for one
	@$(BIN)/python tests/simulation/report.py $(if $(STAGES),--stages $(STAGES))

soak: $(READY)  ## 200 live conversations, random kills for 20 minutes; MINUTES=5 for less
	@$(BIN)/python tests/soak/soak.py $(if $(MINUTES),--minutes $(MINUTES))

audit: $(READY)  ## known vulnerabilities of what is installed; needs the network
	@$(PYTHON) -m venv $(VENV)/audit
	@$(VENV)/audit/bin/python -m pip install --quiet pip-audit
	@$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/audit/installed.txt
	@$(VENV)/audit/bin/pip-audit --requirement $(VENV)/audit/installed.txt --no-deps --disable-pip

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache
