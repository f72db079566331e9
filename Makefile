# SPDX-License-Identifier: Apache-2.0
# Every target installs what it needs, and costs nothing when that is already there.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV := .venv
PY := $(VENV)/bin/python
STAMPS := .stamps
PIP := $(PY) -m pip --disable-pip-version-check --quiet
OPENSTACK := .venv-openstack
PYTEST := $(PY) -m pytest
CODE := nova_enlightened $(wildcard lab bench)

# pbr takes the version from git tags. A checkout without history, or one that git declines to
# read (another owner), still has to install.
ifndef PBR_VERSION
ifeq ($(shell git describe --tags --abbrev=0 2>/dev/null),)
export PBR_VERSION := 0.1.0.dev$(shell git rev-list --count HEAD 2>/dev/null || echo 0)
endif
endif

SHALLOW := $(filter true,$(shell git rev-parse --is-shallow-repository 2>/dev/null || echo true))

# What the lab's second floor needs: a whole OpenStack.
CLOUD := $(STAMPS)/debian-openstack $(STAMPS)/openstack

# For the lab and for real-QEMU tests: they enter namespaces and start libvirtd.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo -E)

.PHONY: help
help: ## show this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# --- what the rest needs -----------------------------------------------------------------------

.PHONY: venv
venv: $(STAMPS)/venv ## make .venv with this package and all tools in it
	@:

# One stamp for each profile of bindep.txt.
$(STAMPS)/debian-%: bindep.txt tools/install-debian-packages.sh
	@tools/install-debian-packages.sh $*
	@mkdir -p $(STAMPS) && touch $@

$(PY): | $(STAMPS)/debian-build
	@echo "Making $(VENV)"
	@tools/create-venv.sh $(VENV)

# The stamps of the environment live in it: whoever deletes it deletes them.
$(VENV)/.requirements: requirements.txt test-requirements.txt constraints.txt | $(PY)
	@echo "Installing Python packages"
	@$(PIP) install -c constraints.txt pip setuptools wheel pbr
	@$(PIP) install -c constraints.txt -r requirements.txt -r test-requirements.txt
	@touch $@

$(STAMPS)/venv: $(VENV)/.requirements setup.py setup.cfg pyproject.toml
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@mkdir -p $(STAMPS) && touch $@

# Nova, and what it cannot do without, in an environment of its own: its pins are its own too.
.PHONY: openstack
openstack: $(STAMPS)/openstack ## make .venv-openstack: Nova with this package beside it
	@:

$(OPENSTACK)/.requirements: lab/openstack/requirements.txt requirements.txt | $(STAMPS)/debian-build
	@echo "Installing OpenStack in $(OPENSTACK)"
	@tools/create-venv.sh $(OPENSTACK)
	@$(OPENSTACK)/bin/pip --disable-pip-version-check -q install wheel pbr -r lab/openstack/requirements.txt
	@$(OPENSTACK)/bin/pip --disable-pip-version-check -q install --no-build-isolation -r requirements.txt 'libvirt-python>=9.0'
	@touch $@

$(STAMPS)/openstack: $(OPENSTACK)/.requirements setup.py setup.cfg pyproject.toml
	@$(OPENSTACK)/bin/pip --disable-pip-version-check -q install --no-deps --no-build-isolation --editable .
	@mkdir -p $(STAMPS) && touch $@

# --- checks ------------------------------------------------------------------------------------

.PHONY: lint
lint: venv $(STAMPS)/debian-lint ## style, import order, OpenStack checks, shell scripts
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m flake8
	git ls-files -z '*.sh' .ci/run devstack/settings | xargs -0 shellcheck
	$(if $(SHALLOW),: reno reads the whole history,$(VENV)/bin/reno -q lint)

.PHONY: format
format: venv ## rewrite the code the way lint wants it
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: sample
sample: venv ## rewrite the sample configuration file from the options
	$(VENV)/bin/oslo-config-generator --config-file etc/nova_enlightened/config-generator.conf

.PHONY: types
types: venv ## mypy --strict
	$(PY) -m mypy --strict $(CODE)

.PHONY: unit
unit: venv ## tests with nothing but Python
	$(PYTEST) tests/unit

.PHONY: functional
functional: venv ## tests with real sockets and processes
	$(PYTEST) tests/functional

# Nova's fixtures are testtools', which pytest does not run; two workers take half the time. What
# failed is named last and tried once more, as pytest does.
STESTR := $(OPENSTACK)/bin/stestr --test-path tests/functional_nova --top-dir . \
  --repo-url $(CURDIR)/$(STAMPS)/stestr
.PHONY: functional-nova
functional-nova: openstack ## tests on Nova's own fixtures, with Nova in this process
	@mkdir -p $(STAMPS)/stestr
	$(STESTR) run --concurrency 2 --suppress-attachments || { \
	  echo "Failed, tried once more:"; $(STESTR) failing --list; \
	  $(STESTR) run --failing --suppress-attachments; }

.PHONY: integration
integration: venv $(STAMPS)/debian-lab $(CLOUD) ## tests with real QEMU and libvirt (root)
	$(AS_ROOT) $(PYTEST) tests/integration

.PHONY: coverage
coverage: venv ## unit and functional tests, with the lines they miss
	$(PYTEST) --cov --cov-report=term tests/unit tests/functional

# All pages each time: oslo.config's extension forgets the options of pages that have not changed.
.PHONY: docs
docs: venv ## HTML documents in doc/build/html
	$(PY) -m sphinx -q -E -W --keep-going -b html doc/source doc/build/html

# One run of pytest, so that its closing line counts everything; it runs, and is last, also when
# a check before it failed.
.PHONY: test
test: venv $(STAMPS)/debian-lint $(STAMPS)/debian-lab $(CLOUD) ## every check above: what CI runs
	@status=0; \
	$(MAKE) --keep-going lint types docs functional-nova || status=1; \
	$(AS_ROOT) $(PYTEST) tests/unit tests/functional tests/integration || status=1; \
	if [ $$status -ne 0 ]; then echo "make test: something above failed" >&2; fi; \
	exit $$status

# --- to see it work ----------------------------------------------------------------------------

.PHONY: demo
demo: venv $(STAMPS)/debian-lab $(CLOUD) ## a real Nova relieves a contended host by itself: a picture
	$(AS_ROOT) $(PY) -m lab.openstack.story

.PHONY: demo-hosts
demo-hosts: venv $(STAMPS)/debian-lab ## the same without OpenStack, on two libvirt hosts
	$(AS_ROOT) $(PY) -m lab.demo

.PHONY: demo-streaming
demo-streaming: venv $(STAMPS)/debian-lab ## a stored server behind a slow link starts in seconds: a picture
	$(AS_ROOT) $(PY) -m lab.demo_streaming

.PHONY: bench
bench: venv $(STAMPS)/debian-lab $(CLOUD) ## all measurements; QUICK=1 for few runs, ONLY=id,id for a part
	$(AS_ROOT) $(PY) -m bench $(if $(QUICK),--quick) $(if $(ONLY),--only $(ONLY))

.PHONY: fuzz
fuzz: venv ## fuzz every parser, 2 million executions each; ARGS="TARGET --executions N --workers 2"
	$(PY) -m tests.fuzz $(ARGS)

.PHONY: soak
soak: venv $(STAMPS)/debian-lab ## evictions to and fro with faults at random; MINUTES=60
	$(AS_ROOT) $(PY) -m lab.soak $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

.PHONY: simulate
simulate: venv ## compare ordering policies on a recorded fault trace; ARGS="..."
	$(VENV)/bin/nova-enlightened-simulate $(ARGS)

.PHONY: clean
clean: ## remove what the other targets made, but not the lab's cached images
	rm -rf $(VENV) $(OPENSTACK) $(STAMPS) build dist doc/build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
