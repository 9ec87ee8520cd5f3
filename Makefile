# Everything that is done with the source: make help.

PREFIX     = /usr/local
DESTDIR    =
BIN        = bin
FUZZTIME   = 5m
BENCHFLAGS =
TESTS      = ./...
export TELL = TestModes|TestConfinement|TestFaultMatrix|TestCycles|TestChurn|TestAdoptWithoutASeam|TestKernel|TestPains|TestMulticast|TestTrust|TestFilterStorm|TestLearnedAddresses|TestHostAccess|TestPinnedGuest|TestParentComesBack|TestAttach|TestUnit/files

SHELL       = /bin/bash
.SHELLFLAGS = -o pipefail -ec

ifneq ($(filter-out help install uninstall clean,$(MAKECMDGOALS)),)
ifeq ($(shell command -v go),)
$(error go is missing, and the one in Debian 12 is too old: https://go.dev/dl)
endif
endif

# systemd looks in /usr/local/lib and in /usr/lib, and not elsewhere for a PREFIX
# of its own (systemd.unit(5), systemd.generator(7)): then set SYSTEMD.
SYSTEMD = $(PREFIX)/lib/systemd

# The version is git's word; without git the binary says what Go knows of it.
VERSION := $(shell [ -e .git ] && git describe --tags --always --dirty 2>/dev/null)

# Go's own stamp is left out: where another user owns the checkout, git refuses
# to speak and go build fails over it.
export GOFLAGS += -buildvcs=false

GOBUILD = CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

# Which prints completions: where BIN is another machine's, one of this machine's.
NATIVE  = $(BIN)/vmrun
DEBARCH ?= $(shell go env GOHOSTARCH)
ROOT   := $(filter 0,$(shell id -u))

# What a test or the demonstration calls, and the Debian package that has it.
TEST_PACKAGES = qemu-system-x86_64=qemu-system-x86 qemu-img=qemu-utils ip=iproute2 \
	gcc=gcc /usr/include/stdlib.h=libc6-dev dpkg=dpkg dnsmasq=dnsmasq-base sysctl=procps ping=iputils-ping \
	systemd-nspawn=systemd-container /usr/share/OVMF/OVMF_CODE_4M.fd=ovmf \
	man=man-db groff=groff-base mandoc=mandoc zsh=zsh fish=fish \
	/usr/share/bash-completion/bash_completion=bash-completion \
	/usr/lib/python3/dist-packages/prometheus_client=python3-prometheus-client \
	swtpm=swtpm /usr/lib/qemu/virtiofsd=qemu-system-common \
	/usr/lib/systemd/system/dbus.service=dbus /usr/share/pam-configs/systemd=libpam-systemd
# What make test-all needs beside: to make the image of a Debian guest, for example.
TEST_ALL_PACKAGES = mmdebstrap=mmdebstrap mkfs.ext4=e2fsprogs mkfs.vfat=dosfstools mcopy=mtools sfdisk=fdisk \
	qemu-system-aarch64=qemu-system-arm /usr/share/AAVMF/AAVMF_CODE.fd=qemu-efi-aarch64 \
	xorriso=xorriso /usr/lib/ISOLINUX/isolinux.bin=isolinux \
	/usr/lib/debian-installer/images/12=debian-installer-12-netboot-amd64 \
	lintian=lintian shellcheck=shellcheck
# vmrun's peers in make bench.
BENCH_PACKAGES = libvirtd=libvirt-daemon virsh=libvirt-clients \
	/usr/lib/x86_64-linux-gnu/libvirt/connection-driver/libvirt_driver_qemu.so=libvirt-daemon-driver-qemu
# What make test measures, to tell what has moved; it fails by no figure.
BENCH_CHECK = -n 5 -cases life,death,children
DEMO_PACKAGES = qemu-system-x86_64=qemu-system-x86 ip=iproute2 ping=iputils-ping

# As guesttest.CacheDir has it.
CACHE = $(or $(VMRUN_TEST_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/vmrun)

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  \1\t/p' $(MAKEFILE_LIST) | expand -t 14
	@echo "variables: PREFIX=$(PREFIX) DESTDIR= FUZZTIME=$(FUZZTIME) BENCHFLAGS= TESTS=$(TESTS)"

build: ## build bin/vmrun, static
	$(GOBUILD) -o $(BIN)/vmrun ./cmd/vmrun

$(BIN)/vmrun:
	$(GOBUILD) -o $@ ./cmd/vmrun

install: $(BIN)/vmrun ## install what was built, with systemd's units, the manual, completions and the schema
	install -D -m 755 $(BIN)/vmrun '$(DESTDIR)$(PREFIX)/bin/vmrun'
	install -d '$(DESTDIR)$(SYSTEMD)/system' '$(DESTDIR)$(SYSTEMD)/system-generators'
	sed 's|^\(Exec[A-Za-z]*=[-+!:@]*\)vmrun |\1$(PREFIX)/bin/vmrun |' 'configs/systemd/vmrun@.service' \
		>'$(DESTDIR)$(SYSTEMD)/system/vmrun@.service'
	install -m 644 configs/systemd/vmrun.target '$(DESTDIR)$(SYSTEMD)/system/vmrun.target'
	ln -sfr '$(DESTDIR)$(PREFIX)/bin/vmrun' '$(DESTDIR)$(SYSTEMD)/system-generators/vmrun-generator'
	install -D -m 644 configs/systemd/vmrun.sysusers '$(DESTDIR)$(PREFIX)/lib/sysusers.d/vmrun.conf'
	install -D -m 644 configs/systemd/vmrun.tmpfiles '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/vmrun.conf'
	install -d '$(DESTDIR)$(PREFIX)/share/bash-completion/completions' \
		'$(DESTDIR)$(PREFIX)/share/zsh/site-functions' \
		'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d'
	$(NATIVE) completion bash >'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmrun'
	$(NATIVE) completion zsh >'$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmrun'
	$(NATIVE) completion fish >'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmrun.fish'
	install -d '$(DESTDIR)$(PREFIX)/share/man/man1' '$(DESTDIR)$(PREFIX)/share/man/man5' \
		'$(DESTDIR)$(PREFIX)/share/vmrun' '$(DESTDIR)$(PREFIX)/share/doc/vmrun/examples'
	install -m 644 cmd/vmrun/man/*.1 '$(DESTDIR)$(PREFIX)/share/man/man1'
	install -m 644 cmd/vmrun/man/*.5 '$(DESTDIR)$(PREFIX)/share/man/man5'
	install -m 644 configs/vmrun.schema.json '$(DESTDIR)$(PREFIX)/share/vmrun'
	install -m 644 configs/examples/*.toml '$(DESTDIR)$(PREFIX)/share/doc/vmrun/examples'
	install -m 644 LICENSE '$(DESTDIR)$(PREFIX)/share/doc/vmrun'

uninstall: ## remove what make install has put in place, unless guests run
	@guests=$$('$(DESTDIR)$(PREFIX)/bin/vmrun' ps 2>/dev/null | awk 'NR > 1 { print $$1 }' | xargs) || true; \
	[ -z "$$guests" ] || { echo "guests are running, and would be left with nobody to stop them: vmrun stop $$guests" >&2; exit 1; }
	rm -f '$(DESTDIR)$(PREFIX)/bin/vmrun' '$(DESTDIR)$(SYSTEMD)/system/vmrun@.service' '$(DESTDIR)$(SYSTEMD)/system/vmrun.target' \
		'$(DESTDIR)$(SYSTEMD)/system-generators/vmrun-generator' \
		'$(DESTDIR)$(PREFIX)/lib/sysusers.d/vmrun.conf' '$(DESTDIR)$(PREFIX)/lib/tmpfiles.d/vmrun.conf' \
		'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/vmrun' '$(DESTDIR)$(PREFIX)/share/zsh/site-functions/_vmrun' \
		'$(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/vmrun.fish' \
		'$(DESTDIR)$(PREFIX)'/share/man/man1/vmrun{,-*}.1 '$(DESTDIR)$(PREFIX)/share/man/man5/vmrun.toml.5'
	rm -rf '$(DESTDIR)$(PREFIX)/share/vmrun' '$(DESTDIR)$(PREFIX)/share/doc/vmrun'

deb: build ## build a Debian package in bin, reproducibly; DEBARCH=arm64 for the other architecture
	GOARCH=$(DEBARCH) $(GOBUILD) -o $(BIN)/vmrun-linux-$(DEBARCH) ./cmd/vmrun
	configs/debian/build '$(DEBARCH)' '$(VERSION)' '$(BIN)/vmrun-linux-$(DEBARCH)' '$(BIN)/vmrun'

ifdef ROOT
test: packages kernel lint cross ## lint, build and test everything; as root nothing is left out
	VMRUN_TEST_REQUIRE=1 CGO_ENABLED=1 .ci/gotest -race -count=1 -timeout=30m $(TESTS)
	@[ '$(TESTS)' != ./... ] || $(MAKE) --no-print-directory bench-check

test-all: packages all-packages kernel kernel-arm64 image lint cross ## everything of test, and what boots Debian guests: an hour and more
	VMRUN_TEST_ALL=1 VMRUN_TEST_REQUIRE=1 TIMEOUT=120m CGO_ENABLED=1 .ci/gotest -race -count=1 -timeout=110m $(TESTS)

test-kernel: packages kernel ## of these, run what needs Debian's kernel, in a guest
	VMRUN_TEST_REQUIRE=1 .ci/gotest -count=1 -timeout=10m -run '^TestKernel$$' ./launcher/guesttest

soak: packages kernel ## run what takes long: 1,000 starts, 10 minutes of churn, 5,000 pings under kills, a fleet of 30
	VMRUN_SOAK=1 VMRUN_TEST_REQUIRE=1 TIMEOUT=60m .ci/gotest -count=1 -timeout=55m \
		-run '^(TestCycles|TestChurn|TestAdoptWithoutASeam|TestFleet)$$' ./launcher ./cmd/vmrun

packages:
	@.ci/packages $(TEST_PACKAGES)

all-packages:
	@.ci/packages $(TEST_ALL_PACKAGES)

image: all-packages
	@launcher/guesttest/build-image.sh '$(CACHE)'

kernel-arm64:
	@launcher/guesttest/fetch-kernel.sh '$(CACHE)' arm64

kernel:
	@launcher/guesttest/fetch-kernel.sh '$(CACHE)'
	@launcher/guesttest/fetch-agent.sh '$(CACHE)'
else
test: lint cross
	@echo 'Not root: tests that need network namespaces are skipped, nothing is'
	@echo 'installed or fetched, and races are not looked for. For all of it: sudo make test'
	.ci/gotest -count=1 -timeout=30m $(TESTS)

test-kernel test-all soak:
	@echo 'needs root: sudo make $@' >&2; exit 1
endif

lint: ## gofmt, go vet, staticcheck, and govulncheck where GOVULNDB names its database
	@unformatted=$$(gofmt -l .); [ -z "$$unformatted" ] || { echo "gofmt -w $$unformatted"; exit 1; }
	go vet ./...
	go tool staticcheck ./...
ifdef GOVULNDB
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 -db '$(GOVULNDB)' ./...
else
	@echo 'govulncheck: not run: no database'
endif

cross: ## build for amd64 and arm64, static
	GOARCH=amd64 $(GOBUILD) -o bin/vmrun-linux-amd64 ./cmd/vmrun
	GOARCH=arm64 $(GOBUILD) -o bin/vmrun-linux-arm64 ./cmd/vmrun

fuzz: ## run each fuzz test for FUZZTIME
	@go test -list '^Fuzz' ./... | awk '/^Fuzz/ { names = names " " $$1 } /^ok/ { split(names, n, " "); \
		for (i in n) print $$2, n[i]; names = "" }' | while read -r package name; do \
		echo "$$package $$name"; \
		go test -run '^$$' -fuzz "^$$name\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 5s "$$package" </dev/null || exit 1; \
	done

docs: ## write anew what is made of the verbs and of complete.toml: manual pages, schema
	go test -count=1 -run '^TestSchema$$' ./configs -update
	go test -count=1 -run '^TestManual$$' ./cmd/vmrun -update

bench: packages bench-packages kernel ## measure beside libvirt and a script: most of an hour; BENCHFLAGS=-quick for 5 minutes
	go run ./launcher/bench $(or $(BENCHFLAGS),-keep launcher/bench)

bench-check: packages bench-packages kernel # is part of make test
	go run ./launcher/bench $(BENCH_CHECK) -check launcher/bench/figures.json

bench-packages:
	@.ci/packages $(BENCH_PACKAGES)
	@go mod download # the bench builds in a network namespace of its own

demo: build ## set up a lab and show two guests at work in it; needs root
	@.ci/packages $(DEMO_PACKAGES)
	@launcher/guesttest/fetch-kernel.sh '$(CACHE)'
	@launcher/guesttest/demo.sh bin/vmrun

clean: ## remove what was built
	rm -rf bin

.PHONY: help build install uninstall deb test test-all test-kernel packages all-packages kernel kernel-arm64 image lint cross soak fuzz docs bench bench-check bench-packages demo clean
