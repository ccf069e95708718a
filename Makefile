# `make demo` and `make test` need only Python 3.11 or newer and make: they
# make .venv and install what they use.

PYTHON ?= python3
# Extras on top of those that the demo and the tests use: EXTRAS=cuda or tpu.
EXTRAS ?=
SEEDS ?= 0
# Test processes; each takes a core and about 2 GB.
JOBS ?= 2

VENV := .venv
BIN := $(VENV)/bin
comma := ,
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
STAMP := $(VENV)/installed-$(VERSION)-$(subst $(comma),-,$(EXTRAS))

.PHONY: demo test test-slow stress lint docs install clean

install: $(STAMP)

$(STAMP): setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is not Python 3.11 or newer;" \
	    "name one that is: make PYTHON=python3.13" >&2; exit 2; }
	rm -rf $(VENV)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet \
	  --editable '.[train,figures,test$(if $(EXTRAS),$(comma)$(EXTRAS))]'
	@touch $@

demo: $(STAMP)
	$(BIN)/python -m scripts.demo --seeds=$(SEEDS)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not slow' -q

# They compute more than they compile, so they are compiled as for users.
test-slow: $(STAMP)
	XLA_FLAGS= $(BIN)/python -m pytest -n $(JOBS) -m slow -q

# Kills a run at 50 random moments and compares its end; some minutes.
stress: $(STAMP)
	$(BIN)/python -m tests.helpers.stress

lint: $(STAMP)
	$(BIN)/ruff check .

# The documentation, into build/docs; a dead link is an error.
docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -c docs . build/docs

clean:
	rm -rf $(VENV) build dist *.egg-info
