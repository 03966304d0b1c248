# Entry points of the project. `make` alone shows them.
#
# Everything is built in the release profile and for the whole workspace: so dependencies (librdkafka above all) are compiled
# once, and serve the gateway, its unit tests, clippy and the tests from outside.

CARGO   := cargo
PROFILE := --release --locked
TARGET  := $(or $(CARGO_TARGET_DIR),target)
KATEWAY := $(TARGET)/release/kateway

# Draws flame graphs; a tool under target/, no part of the workspace.
INFERNO := 0.12.8

# Options of the gateway for `make run`, e.g. make run ARGS='--store kafka --brokers localhost:9092'.
ARGS ?= --store memory --set drain.notice_s=0
# Other arguments of the benchmark, e.g. make bench BENCH='--rounds 2 --no-result', make bench-peers BENCH=--keep.
BENCH ?=
# Seconds for each target of `make fuzz`.
FUZZ_S ?= 60
# Filter of `make test`, e.g. make test ONLY=long_poll.
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help run build check test unit suite fuzz soak bench bench-scale bench-compare bench-tools bench-peers bench-quick flame instructions syscalls config kafka-jars tools clean

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: build ## Build and start the gateway on the embedded store (ARGS= for other options); ctrl-c stops it
	@printf '%s\n' \
	  'kateway answers here once it says ready (publish 9191, subscribe 9192, manage 9193); try in another terminal:' \
	  '' \
	  "  curl -i -H 'Appid: app1' --data-binary 'hello' 'http://127.0.0.1:9191/v1/msgs/greetings/v1'" \
	  "  curl -i -H 'Appid: app2' 'http://127.0.0.1:9192/v1/msgs/app1/greetings/v1?group=g1'" \
	  "  curl -s 'http://127.0.0.1:9193/v1/status'" \
	  ''
	@exec $(KATEWAY) run $(ARGS)

build: ## Build target/release/kateway
	@.ci/tools build
	$(CARGO) build $(PROFILE)

check: ## Look without starting the gateway: format, lints, unit tests, house rules (and licences, if cargo-deny is installed)
	@.ci/tools build
	$(CARGO) fmt --all --check
	$(CARGO) clippy $(PROFILE) --workspace --all-targets -- -D warnings
	$(MAKE) --no-print-directory unit
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --locked check; else echo 'cargo-deny is not installed: licences and advisories not checked'; fi

test: unit suite ## Test everything, with a real ZooKeeper and a real 3-broker Kafka (ONLY= to select)

unit: ## Run the unit tests and the house rules
	@.ci/tools build
	$(CARGO) test $(PROFILE) --workspace --lib --test tidy
	$(CARGO) test $(PROFILE) -p kateway-load

suite: ## Run the tests from outside against the built binary (ONLY= to select)
	@.ci/tools build test
	$(CARGO) build $(PROFILE) --workspace --exclude kateway-direct --bins
	KATEWAY_BIN=$(abspath $(KATEWAY)) $(CARGO) test $(PROFILE) --workspace --test suite -- $(ONLY)

fuzz: ## Feed the parsers what a fuzzer makes, each for FUZZ_S seconds (60); inputs that crash one are kept under target/fuzz
	@.ci/tools build
	tests/fuzz/run $(FUZZ_S)

soak: ## A reader that stalls for ten minutes on a real Kafka, and ZooKeeper away for a minute under load; prints what was lost and how memory went
	@.ci/tools build test
	$(CARGO) build $(PROFILE) --workspace --exclude kateway-direct --bins
	KATEWAY_STREAM_S=600 KATEWAY_BIN=$(abspath $(KATEWAY)) $(CARGO) test $(PROFILE) --workspace --test suite -- streams::stalling_reader_soak
	KATEWAY_ZOOKEEPER_S=60 KATEWAY_BIN=$(abspath $(KATEWAY)) $(CARGO) test $(PROFILE) --workspace --test suite -- discovery::

bench: bench-tools ## Measure the target table, side by side, in 20 minutes at most; writes perf/results/
	perf/bench --suite targets $(BENCH)

bench-scale: bench-tools ## Measure cost against shards, connections, topics, message size and groups; writes perf/results/
	perf/bench --suite scale --rounds 3 --name scale $(BENCH)

bench-compare: bench-tools ## Measure commit A= against commit B= (SCENARIO= names of perf/scenarios), alternately; writes perf/results/
	@test -n '$(A)' -a -n '$(B)' || { echo 'say which commits: make bench-compare A=<commit> B=<commit>' >&2; exit 64; }
	perf/compare $(A) $(B) $(foreach name,$(or $(SCENARIO),publish-local),--scenario $(name)) $(BENCH)

bench-tools:
	@.ci/tools build test bench
	$(CARGO) build $(PROFILE) --workspace --bins
	python3 -m unittest discover -q -s perf

bench-quick: ## Measure publishing on Kafka, on the null store, and nginx beside them, in under two minutes
	@.ci/tools build test bench
	$(CARGO) build $(PROFILE) --workspace --bins
	perf/bench-quick --gateway $(KATEWAY) --testbed '$(abspath $(TARGET)/release/testbed) --brokers 1'

bench-peers: ## Measure kateway beside its peers and its limits, on one broker, in some six minutes (BENCH= for options)
	@.ci/tools build test bench peers
	$(CARGO) build $(PROFILE) --workspace --bins
	perf/peers/run --gateway $(KATEWAY) --load $(TARGET)/release/load --direct $(TARGET)/release/direct \
	  --testbed '$(abspath $(TARGET)/release/testbed) --brokers 1' $(BENCH)

flame: ## Record where the CPU time goes, publishing and subscribing on Kafka, into flamegraphs/ (BENCH='--scenario publish-ws')
	@.ci/tools build test bench
	$(CARGO) build $(PROFILE) --workspace --bins
	$(CARGO) install --quiet --locked --version $(INFERNO) --root $(TARGET)/tools inferno
	perf/flame $(BENCH)

instructions: build ## Count instructions, allocations and copies per request, by valgrind; the same on a busy machine (BENCH= for options)
	@.ci/tools build instructions
	perf/instructions --gateway $(KATEWAY) $(BENCH)

syscalls: bench-tools ## Count system calls per request, by thread, with perf (BENCH= for options; wants root)
	perf/syscalls $(BENCH)

config: build ## Write config/kateway.toml and config/error-codes.md anew from the source
	$(KATEWAY) check --sample > config/kateway.toml
	$(KATEWAY) check --codes > config/error-codes.md

kafka-jars: ## Fetch the Kafka that the tests start (they do it themselves when it is missing)
	@.ci/tools test
	mvn --batch-mode --quiet -f tests/harness/kafka/pom.xml dependency:copy-dependencies \
	  -DoutputDirectory=$(CURDIR)/tests/.cache/kafka-3.9.1

tools: ## Install what build, tests and benchmarks need (apt-get, as root or with sudo)
	@.ci/tools build test bench instructions

clean: ## Remove what was built; fetched jars and benchmark results stay
	$(CARGO) clean
	rm -rf tests/.cache/runs
