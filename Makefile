# Everything starts here. `make demo` and `make test` do all the set-up that a fresh machine needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=
export OMP_NUM_THREADS ?= 1
export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo airflow clean-demo results test check browser screenshots help

help:
	@echo "make demo        portal, object store, three hospitals and the reference experiment, running live"
	@echo "                 ARGS=--airflow: the hospitals are three real Airflow servers"
	@echo "make clean-demo  remove all that the demo made"
	@echo "make results     docs/results.md from fresh runs: federated against its baselines, three seeds (about an hour)"
	@echo "                 ARGS=--quick: the whole way in seconds; ARGS=--write-only: write down what is computed"
	@echo "make test        every test, those in a real browser too"
	@echo "make screenshots  the README's pictures, from a running demo"
	@echo "make check       the house checks: lint, format, imports, types, migrations, deployment"

$(VENV)/.runtime: requirements.txt trainer/requirements.txt requirements-demo.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedportal needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-demo.txt
	touch $@

$(VENV)/.results: $(VENV)/.runtime requirements-results.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-results.txt
	touch $@

$(VENV)/.dev: $(VENV)/.runtime $(VENV)/.results requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

# `make demo ARGS=--airflow` needs the servers of its hospitals, too.
demo: $(VENV)/.runtime $(if $(findstring --airflow,$(ARGS)),airflow)
	@$(BIN)/python -m fedportal.demo $(ARGS)

# A real Airflow 2.11 and a real Airflow 3, each in an environment of its own (uv: seconds instead of minutes).
airflow: .venv-airflow-2/.ready .venv-airflow-3/.ready

.venv-airflow-%/.ready: requirements-airflow%.txt
	test -x .venv-airflow-$*/bin/python || $(PYTHON) -m venv .venv-airflow-$*
	.venv-airflow-$*/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	.venv-airflow-$*/bin/uv pip install --quiet --python .venv-airflow-$*/bin/python -r $<
	rm -rf .venv-airflow-$*/template
	touch $@

clean-demo:
	@test ! -e .demo || $(BIN)/python -m fedportal.demo --remove
	@test ! -e .demo-airflow || $(BIN)/python -m fedportal.demo --remove --state .demo-airflow

# The browser tests drive a real Chromium; on Debian and its kin it is installed here when it is missing.
browser:
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	  { command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && apt-get update -qq && apt-get install -y -qq chromium; } || \
	  { echo "The browser tests need Chromium: install it, e.g. sudo apt-get install chromium" >&2; exit 1; }

results: $(VENV)/.results
	@$(BIN)/python -m fedportal.results $(ARGS)

test: $(VENV)/.dev browser airflow check
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	DEBUG=1 $(BIN)/python manage.py makemigrations --check --dry-run
	SECRET_KEY=$$($(BIN)/python -c 'import secrets; print(secrets.token_urlsafe(60))') FEDPORTAL_S3_SECRET_KEY=check \
	  FEDPORTAL_KEYS=$$($(BIN)/python -c 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())') \
	  $(BIN)/python manage.py check --deploy --fail-level WARNING

screenshots: $(VENV)/.dev browser
	$(BIN)/python tests/e2e/screenshots.py
