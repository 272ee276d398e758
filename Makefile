# One command each, the same on a laptop and in CI. Needs make and python3 >= 3.11; everything else is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := $(VENV)/.demo
INSTALLED := $(VENV)/.dev
PEERS := bench/peers
DESK := demo/static/demo/desk.js
NODE_IS_NEW_ENOUGH := command -v npm > /dev/null && node -e '\
	const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 19) ? 0 : 1)'
NEXTJS := client/examples/nextjs
ASYNCAPI := tests/asyncapi
LOCK := .run/lock/bin/uv pip compile --quiet --generate-hashes --no-annotate --python-version 3.13 \
	--python-platform linux --custom-compile-command "make lock"

# The tests start hundreds of interpreters: each would compile everything anew.
export PYTHONDONTWRITEBYTECODE :=

# Four processes on two cores: most tests wait for other processes.
PROCESSES := --numprocesses 4 --dist loadfile --no-loadscope-reorder --no-header
PYTEST := $(BIN)/python -m pytest $(PROCESSES)
FAST := -m "not slow and not needs_browser and not needs_tools and not needs_postgresql and not faults"
SLOW := -m "slow or needs_browser or needs_tools or needs_postgresql or faults"
# Not for test-all, which runs the fast tests on two more sets of versions instead: it costs half as much CPU time again.
COVERAGE := --cov --cov-report term:skip-covered --cov-fail-under 95

.DEFAULT_GOAL := help
.PHONY: help run desk test test-all coverage test-versions test-client asyncapi nextjs adopt bench bench-check bench-flames soak attack audit lint lock docs messages format clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 22

run: ## run everything in the foreground: Redis, sockets, bridge, recorder, outbox, web
	@$(MAKE) --no-print-directory --jobs 2 $(DEMO) desk
	@$(BIN)/python -m dev.run

desk: ## build the demo's page, if Node is installed
	@if $(NODE_IS_NEW_ENOUGH); then \
		$(MAKE) --no-print-directory --silent $(DESK) || echo "The demo's page could not be built; everything else works without it." >&2; \
	else \
		echo "The demo's page needs Node 20.19 or newer and npm; everything else works without it." >&2; \
	fi

test: lint ## run the checks that every change must pass
	@$(PYTEST) $(FAST)

test-all: lint test-client asyncapi $(DESK) nextjs adopt test-versions ## run these and all slower checks, which need more than Python (README, "Testing")
	@$(PYTEST) $(SLOW)
	@echo "Running the tests that use a database on PostgreSQL ..."
	@$(BIN)/python -m tests.postgresql $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --no-header --quiet -m django_db

coverage: $(INSTALLED) $(DESK) nextjs ## run all tests once and measure what they cover; less than 95 % fails
	@$(PYTEST) $(COVERAGE)

test-versions: .run/versions/uv/.installed ## run what `make test` runs on the lowest and the newest supported versions
	@$(PYTHON) -m dev.versions $(PROCESSES) --quiet $(FAST)

test-client: client/node_modules/.installed ## check types, tests, size and package of the TypeScript client
	@npm run --prefix client --silent check
	@npm test --prefix client --silent
	@npm run --prefix client --silent package
	@npm run --prefix client --silent size

asyncapi: $(INSTALLED) $(ASYNCAPI)/node_modules/.installed ## validate the AsyncAPI document with AsyncAPI's own parser
	@$(BIN)/python manage.py generateasyncapi | node $(ASYNCAPI)/validate.mjs

nextjs: $(NEXTJS)/node_modules/.installed ## build the client's Next.js example, which the tests start
	@output=$$(NEXT_TELEMETRY_DISABLED=1 npm run --prefix $(NEXTJS) --silent build 2>&1) || { echo "$$output"; exit 1; }

adopt: $(INSTALLED) client/node_modules/.installed ## adopt the built package in a new project, as docs/adopting.md tells it
	@$(BIN)/python -m tests.adopt

bench: $(INSTALLED) $(PEERS)/node_modules/.installed $(PEERS)/.venv/.installed $(PEERS)/centrifuge/server ## measure this project and its peers, side by side (docs/benchmark.md)
	@$(BIN)/python -m bench $(BENCH_ARGUMENTS)

bench-check: $(INSTALLED) ## compare the cost of the working tree with that of BASE, the newest tag by default (docs/benchmark.md)
	@$(BIN)/python -m bench.check $(if $(BASE),--base "$(BASE)") $(BENCH_ARGUMENTS)

bench-flames: $(INSTALLED) .run/flames/.installed ## draw flame graphs of b, c and d into bench/results (docs/benchmark.md)
	@PATH="$(CURDIR)/.run/flames/bin:$$PATH" $(BIN)/python -m bench --flames --peers ours --runs 1 \
		--scenarios "$(or $(BENCH_SCENARIOS),b,c,d)" $(BENCH_ARGUMENTS)

soak: $(INSTALLED) ## run two thousand clients under continuous faults, for MINUTES (docs/reliability.md)
	@$(BIN)/python -m tests.faults.soak --minutes $(or $(MINUTES),30)

attack: $(INSTALLED) ## flood a running system with 200 ordinary clients, for MINUTES (docs/security.md)
	@$(BIN)/python -m tests.faults.attack --minutes "$(or $(MINUTES),3)"

lint: $(INSTALLED) ## check style, types, direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { $(BIN)/ruff format --check .; exit 1; }
	@$(BIN)/mypy realtime hub portal presence demo dev
	@$(BIN)/lint-imports

audit: $(INSTALLED) ## ask the registries for known vulnerabilities
	@$(PYTHON) -m venv .run/audit
	@.run/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit
	@.run/audit/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip
	@npm audit --prefix $(PEERS)

lock: ## rewrite requirements/, the hashed packages of the images
	@$(PYTHON) -m venv .run/lock
	@.run/lock/bin/python -m pip install --quiet --disable-pip-version-check uv
	@mkdir -p requirements
	@echo 'setuptools>=77' | $(LOCK) --output-file requirements/build.txt -
	@$(LOCK) --constraints constraints.txt --output-file requirements/sockets.txt --extra server pyproject.toml
	@$(LOCK) --constraints constraints.txt --output-file requirements/web.txt --extra web pyproject.toml

docs: $(INSTALLED) ## regenerate docs/events.md and client/src/events.ts from the catalogue
	@$(BIN)/python manage.py documentevents > docs/events.md
	@$(BIN)/python manage.py generateclient --all > client/src/events.ts

messages: $(INSTALLED) ## collect translatable texts and compile the translations; needs gettext
	@command -v xgettext > /dev/null || { echo "xgettext is not installed (Debian: apt-get install gettext)." >&2; exit 1; }
	@for folder in presence realtime/outbox; do (cd $$folder && export DEBUG=1 SECRET_KEY=none \
		&& $(CURDIR)/$(BIN)/python $(CURDIR)/manage.py makemessages --locale pt_BR --no-obsolete --add-location file \
		&& $(CURDIR)/$(BIN)/python $(CURDIR)/manage.py compilemessages --locale pt_BR) || exit 1; done

format: $(INSTALLED) ## reformat the code with ruff and apply its fixes
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .

clean: ## remove everything that was installed or generated
	@rm -rf $(VENV) .run build static htmlcov .coverage* *.egg-info \
		.mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis \
		bench/results bench/peers/node_modules bench/peers/.venv bench/peers/centrifuge/server client/node_modules client/dist \
		demo/frontend/node_modules demo/static $(ASYNCAPI)/node_modules \
		$(NEXTJS)/node_modules $(NEXTJS)/.next $(NEXTJS)/next-env.d.ts

# The packages of an extra: $(DEMO) for `make run`, $(INSTALLED) for everything else.
$(VENV)/.%: pyproject.toml constraints.txt
	@command -v $(PYTHON) > /dev/null || { echo "$(PYTHON) is not installed; Python 3.11 or newer is needed." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -c 'import platform; print(platform.python_version())')." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2> /dev/null || { \
		echo "$(PYTHON) cannot create virtual environments: install its venv module (Debian: apt-get install python3-venv)." >&2; exit 1; }
	@echo "Setting up $(VENV): installing packages, less than a minute the first time ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[$*]'
	@touch $@ $(DEMO)  # [dev] holds [demo]
	@echo "$(VENV) is ready."

.run/versions/uv/.installed:
	@mkdir -p .run && chmod 700 .run
	@$(PYTHON) -m venv .run/versions/uv
	@.run/versions/uv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@touch $@

.run/flames/.installed:
	@mkdir -p .run && chmod 700 .run
	@$(PYTHON) -m venv .run/flames
	@.run/flames/bin/python -m pip install --quiet --disable-pip-version-check py-spy
	@touch $@

client/node_modules/.installed: client/package.json client/package-lock.json
	@command -v npm > /dev/null || { echo "npm is not installed; the TypeScript client needs Node 20 or newer." >&2; exit 1; }
	@# Not "npm ci", which requires the packages of every other platform in the lock file.
	@npm install --prefix client --no-save --no-audit --no-fund --loglevel=error
	@touch $@

demo/frontend/node_modules/.installed: demo/frontend/package.json demo/frontend/package-lock.json
	@npm install --prefix demo/frontend --no-save --no-audit --no-fund --loglevel=error
	@touch $@

$(DESK): demo/frontend/node_modules/.installed $(wildcard demo/frontend/*.ts demo/frontend/*.json demo/frontend/src/* client/src/*)
	@echo "Building the demo's page ..."
	@npm run --prefix demo/frontend --silent build

client/dist/index.js: client/node_modules/.installed client/tsconfig.build.json client/build.mjs $(wildcard client/src/*)
	@npm run --prefix client --silent build

$(NEXTJS)/node_modules/.installed: $(NEXTJS)/package.json $(NEXTJS)/package-lock.json client/dist/index.js
	@rm -rf $(NEXTJS)/node_modules/realtime-sockets  # npm does not replace a package of the same version
	@npm install --prefix $(NEXTJS) --no-save --no-audit --no-fund --loglevel=error
	@touch $@

$(ASYNCAPI)/node_modules/.installed: $(ASYNCAPI)/package.json $(ASYNCAPI)/package-lock.json
	@npm install --prefix $(ASYNCAPI) --no-save --no-audit --no-fund --loglevel=error
	@touch $@

$(PEERS)/node_modules/.installed: $(PEERS)/package.json $(PEERS)/package-lock.json
	@command -v npm > /dev/null || { echo "npm is not installed; the benchmark of Socket.IO needs Node 20 or newer." >&2; exit 1; }
	@npm ci --prefix $(PEERS) --no-audit --no-fund --loglevel=error
	@touch $@

$(PEERS)/centrifuge/server: $(wildcard $(PEERS)/centrifuge/*.go $(PEERS)/centrifuge/go.*)
	@command -v go > /dev/null && (cd $(@D) && go build -buildvcs=false -o $(@F) .) || \
		echo "Centrifuge is left out: it could not be built, which needs Go 1.26 or newer." >&2

$(PEERS)/.venv/.installed: $(PEERS)/requirements.txt $(INSTALLED)
	@$(PYTHON) -m venv $(PEERS)/.venv
	@$(PEERS)/.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@
