# sockeye: `make run` and `make test` do all their set-up on a fresh Debian machine.

CARGO ?= cargo
BIN := target/release
PREFIX ?= /usr/local
SECONDS ?= 60
# What `make run` gives the agent: it prints flows, into a file or a pipe as well.
ARGS ?= -v
ROOT := $(shell id -u)

BUILD_PACKAGES := clang-14 gcc make pkg-config libelf-dev zlib1g-dev libzmq3-dev
TEST_PACKAGES := conntrack dnsmasq-base bind9-dnsutils curl openssl tshark bpftool iproute2 nftables util-linux procps python3 python3-jsonschema python3-zmq nginx-light redis-server redis-tools prometheus docker.io containernetworking-plugins podman runc busybox-static python3-yaml tmux
PERF_PACKAGES := dnsmasq-base iproute2 nftables util-linux bpftrace libbpf-tools bpfcc-tools softflowd conntrack
LINT_PACKAGES := clang-format-14
KERNEL_PACKAGES := busybox-static kmod cpio bc xz-utils

.PHONY: run build test test-unit test-e2e test-kernels test-deb lint fuzz asan tsan bench perf install pages deb rpm image clean build-packages lint-packages test-packages perf-packages kernel-packages

run: build ## build, and run the agent on this host until Ctrl-C
	@if [ "$(ROOT)" = 0 ]; then exec $(BIN)/sockeye $(ARGS); else exec sudo $(BIN)/sockeye $(ARGS); fi

build: build-packages
	$(CARGO) build --release --bins

test: test-unit test-e2e ## everything; the end-to-end part needs root

test-unit: build-packages lint
	ci/unit

test-e2e: build test-packages
	ci/e2e

test-kernels: build test-packages kernel-packages ## the core of the end-to-end tests on other kernels, in QEMU (minutes)
	ci/kernels

test-deb: deb ## the Debian package on a systemd of its own: installed, killed, upgraded, purged (minutes); SUITE (bookworm)
	ci/packages

lint: build-packages lint-packages
	ci/fmt
	ci/clippy
	ci/doc

fuzz: build-packages ## each reader of input from outside, SECONDS (60) each; needs a nightly Rust and cargo-fuzz
	cd tests/fuzz && for target in $$(basename -s .rs fuzz_targets/*.rs); do \
	  mkdir -p target/corpus/$$target && \
	  $(CARGO) +nightly fuzz run --fuzz-dir . $$target target/corpus/$$target corpus/$$target -- \
	    -max_total_time=$(SECONDS) -timeout=10 -rss_limit_mb=1024 -print_final_stats=1 || exit 1; \
	done

asan: build-packages test-packages ## unit tests and some end-to-end tests with AddressSanitizer (half an hour); needs a nightly Rust
	ci/sanitize address

tsan: build-packages ## unit tests with ThreadSanitizer; needs a nightly Rust
	ci/sanitize thread

bench: build-packages ## every stage of the data path alone (minutes)
	$(CARGO) bench -p sockeye-benches

perf: build perf-packages ## most measurements of SPECIFICATION.md in short, on this host, as root (about 20 minutes): perf-report.html
	$(BIN)/perf report

install: build ## PREFIX (/usr/local) and DESTDIR say where
	install -D -m 755 $(BIN)/sockeye $(DESTDIR)$(PREFIX)/sbin/sockeye
	install -D -m 755 $(BIN)/ctl $(DESTDIR)$(PREFIX)/bin/sockeyectl
	install -D -m 755 $(BIN)/perf $(DESTDIR)$(PREFIX)/bin/sockeye-perf
	[ -e $(DESTDIR)/etc/sockeye/sockeye.toml ] || install -D -m 644 packaging/sockeye.toml $(DESTDIR)/etc/sockeye/sockeye.toml

pages: build ## manual pages and completions, in target/pages
	rm -rf target/pages
	for program in sockeye ctl perf; do $(BIN)/$$program --generate-pages target/pages || exit 1; done

deb: pages ## target/debian/sockeye_*.deb; needs cargo-deb
	@$(CARGO) deb --version >/dev/null 2>&1 || { echo "cargo-deb is missing: run 'cargo install --locked cargo-deb'" >&2; exit 1; }
	$(CARGO) deb --no-build --strip -p sockeye

rpm: pages ## target/generate-rpm/sockeye-*.rpm; needs cargo-generate-rpm
	@$(CARGO) generate-rpm --version >/dev/null 2>&1 || { echo "cargo-generate-rpm is missing: run 'cargo install --locked cargo-generate-rpm'" >&2; exit 1; }
	mkdir -p target/stripped
	for program in sockeye ctl perf; do strip -o target/stripped/$$program $(BIN)/$$program || exit 1; done
	$(CARGO) generate-rpm -p dataplane

image: build ## sockeye:VERSION, by the Docker of this host
	packaging/container/build sockeye:$$($(BIN)/sockeye --version | cut -d' ' -f2)

clean:
	$(CARGO) clean

# Installs what is missing, and only then needs root and the network.
define install
	@missing=$$(for p in $(1); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	  echo "installing: $$missing"; \
	  if [ "$(ROOT)" = 0 ]; then sudo=; else sudo=sudo; fi; \
	  $$sudo apt-get update -q && $$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $$missing; \
	fi
endef

build-packages:
	$(call install,$(BUILD_PACKAGES))

lint-packages:
	$(call install,$(LINT_PACKAGES))

test-packages:
	$(call install,$(TEST_PACKAGES))

perf-packages:
	$(call install,$(PERF_PACKAGES))

kernel-packages:
	$(call install,$(KERNEL_PACKAGES))
