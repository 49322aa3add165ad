# Two commands: `make demo` and `make test`. Each sets up everything it needs.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
PHOTOS ?=
# "yes" if Docker Compose and its daemon answer.
WITH_DOCKER := $(if $(filter up,$(MAKECMDGOALS)),$(shell docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 && echo yes))
AS_ROOT := $(shell [ "$$(id -u)" = 0 ] || command -v sudo)

.PHONY: demo up test slow test-cluster cluster-faults lint docs bench experiments setup browser clean

demo: setup
	$(BIN)/id2 demo --out $(OUT)/demo

# A local nightly scan in Prefect's UI: in containers if Docker Compose works, else as processes. Ctrl-C ends it.
up: $(if $(WITH_DOCKER),infra/.env,setup)
ifdef WITH_DOCKER
	docker compose --file infra/compose.yaml up --build
else
	@echo "Docker Compose does not work here: server and worker start as processes, on SQLite and without an emulator."
	$(BIN)/python infra/up.py --out $(OUT)/up --home $(OUT)/prefect
endif

infra/.env:
	umask 077 && $(PYTHON) -c "import secrets; print('ID2_POSTGRES_PASSWORD=' + secrets.token_hex(24))" > $@

# Three processes for two cores: some tests wait for a server.
test: setup browser lint
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Longer forms of some tests. They take minutes.
slow: setup
	$(BIN)/python -m pytest -m "slow and not cluster"

# Tests on real engines, which they start. They need Java 17.
# Flink: two hosts in network namespaces, so run as root. FLINK_JOB_SERVER names the jar of Beam's job server for
# Flink 1.19. Without it, Beam downloads the jar.
# Spark: only if SPARK_JOB_SERVER names a file that lists the jars of Beam's job server for Spark 3. The jars are in
# lib/ beside that file.
# If something is missing, the tests name it and are skipped. With CI=true, Flink's tests then fail.
test-cluster: setup .venv-flink/.installed $(if $(SPARK_JOB_SERVER),.venv-flink/.spark)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "cluster and not slow" tests/cluster

# Each fault of test-cluster, TIMES times (10). Takes an hour or more.
cluster-faults: setup .venv-flink/.installed
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests.cluster.loop --times $(or $(TIMES),10)

.venv-flink/.installed:
	$(PYTHON) -m venv .venv-flink
	.venv-flink/bin/python -m pip install --quiet --disable-pip-version-check 'setuptools<81' wheel
	.venv-flink/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps \
		apache-flink-libraries==1.19.3
	touch $@

.venv-flink/.spark: .venv-flink/.installed
	.venv-flink/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps pyspark==3.5.0
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Generate docs/options.md, docs/schemas/, and the SQL of infra/sql/ from the code.
docs: setup
	$(BIN)/python -m factory.option_tables
	$(BIN)/python -m factory.sql_views
	$(BIN)/python -m factory.estimate_page

bench: setup
	$(BIN)/python -m benchmarks.run $(if $(PHOTOS),--photos $(PHOTOS))

# The paper's tables on a small OriPID, which the bundled models make from photos. Takes hours on two cores.
experiments: setup
	$(BIN)/id2 experiment data --photos $(or $(PHOTOS),$(error give PHOTOS=DIR)) --data $(OUT)/bench
	$(BIN)/id2 experiment data --photos $(PHOTOS) --data $(OUT)/bench --encoder pdq --name pdq
	$(BIN)/id2 experiment data --photos $(PHOTOS) --data $(OUT)/bench --encoder id2core/data/mini-b/vae --name mini-b
	for loss in cosface circle; do \
		$(BIN)/id2 finetune --originals $(OUT)/bench/photos/train --translations $(OUT)/bench/translations/train-mini-a \
			--backbone resnet-scratch --loss $$loss --steps 2250 --per-class 2 --lr 1e-3 --warmup 100 \
			--out $(OUT)/bench/tuned/$$loss && \
		$(BIN)/id2 experiment data --photos $(PHOTOS) --data $(OUT)/bench \
			--encoder $(OUT)/bench/tuned/$$loss/resnet-scratch-$$loss --name tuned-resnet-scratch-$$loss || exit 1; \
	done
	$(BIN)/id2 experiment all --data $(OUT)/bench --out docs/results --page docs/results.md

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

# The report is tested in a real browser.
browser:
	@command -v chromium >/dev/null || { $(AS_ROOT) apt-get update -qq && \
		$(AS_ROOT) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

clean:
	rm -rf $(VENV) $(OUT)
