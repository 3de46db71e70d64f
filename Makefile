# Copyright The BMDB Operator Authors.
# SPDX-License-Identifier: Apache-2.0

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := bin
# The version of a requirement in tools.mod.
tool-version = $(shell awk '$$1 == "$(1)" { print $$2 }' tools.mod)

CONTROLLER_GEN := $(BIN)/controller-gen-$(call tool-version,sigs.k8s.io/controller-tools)
SQLC := $(BIN)/sqlc-$(call tool-version,github.com/sqlc-dev/sqlc)
# golangci-lint with kube-api-linter inside.
GOLANGCI_LINT := $(BIN)/golangci-lint-$(call tool-version,sigs.k8s.io/kube-api-linter)

# Modules with tests of their own, beside the root; the fault suite has a target of its own.
MODULES := $(filter-out test/faults,$(patsubst %/go.mod,%,$(wildcard test/*/go.mod)))

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
IMAGE ?= bmdb-operator:$(VERSION)

# One package's tests must end in this time; the slowest take a few minutes on two cores.
TEST_TIMEOUT ?= 15m
# Packages tested at once. Each that needs a control plane takes half a gigabyte, so not as many as there are cores.
TEST_PARALLEL ?= $(shell n=$$(nproc); echo $$(( n > 4 ? 4 : n )))
# Faults that strike at once; each has some operators and a database of its own.
FAULTS_PARALLEL ?= 4
# Packages to test, and further flags, for a run of one's own: make test PACKAGES=./bmdb/... TESTFLAGS='-run Lease -v'
PACKAGES ?= ./...
TESTFLAGS ?=

##@ Use

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z][a-z-]*:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo

.PHONY: demo
demo: ## See a WorkClaim worked on: six SSH machines, two operators, a real control plane. CLUSTERS=2: two of them, one is destroyed. KEEP=1 leaves all of it running
	@hack/prerequisites.sh demo
	@$(MAKE) controlplane build
	@KEEP='$(KEEP)' CLUSTERS='$(CLUSTERS)' go run ./hack/demo

.PHONY: test
test: ## Run all tests, with all that they need
	@hack/prerequisites.sh test
	@$(MAKE) controlplane
	@echo "compiling what the image has (first time about 4 minutes)"
	@CGO_ENABLED=0 go build -trimpath -o /dev/null ./cmd/...
	@for arch in amd64 arm64; do CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -trimpath -o /dev/null ./cmd/bmdb-agent; done
	@echo "testing (the first time everything is compiled with the race detector, some 10 minutes until the first result)"
	@go run ./hack/testenv go test -race -timeout $(TEST_TIMEOUT) -p $(TEST_PARALLEL) $(TESTFLAGS) $(PACKAGES)
	@$(foreach module,$(if $(filter ./...,$(PACKAGES)),$(MODULES)),echo "module $(module)"; go -C $(module) test -count=1 -timeout $(TEST_TIMEOUT) ./...;)

# make bench QUICK=1 BENCH=P1,P4 DATABASE_URL=postgresql://... OUT=directory
BENCH ?=
OUT ?= $(BIN)/bench
comma := ,
# Without a control plane: what needs the library alone.
BENCH_OPERATOR := $(filter-out P1 P2 P3,$(if $(BENCH),$(subst $(comma), ,$(BENCH)),all))

.PHONY: bench
bench: ## Measure this machine's throughput, takeover and idle cost beside others, and hold them against test/bench/thresholds.yaml. QUICK=1, BENCH=P1,P4, DATABASE_URL=...
	@hack/prerequisites.sh bench
	@$(if $(BENCH_OPERATOR),$(MAKE) controlplane build)
	@echo "building the benchmarks (first time a few minutes)"
	@CGO_ENABLED=0 go -C test/bench build -ldflags '-X main.version=$(VERSION)' -o ../../$(BIN)/bmdb-bench .
	@exec $(BIN)/bmdb-bench --output '$(OUT)' --benchmarks '$(BENCH)' --quick=$(if $(QUICK),true,false) --database-url '$(DATABASE_URL)' --programs $(BIN)

.PHONY: test-faults
test-faults: ## Let operators, their database and their API server suffer every fault, and check what is promised. QUICK=1: minutes; FAULT=F3: one; SEED=n: again
	@hack/prerequisites.sh test
	@$(MAKE) controlplane
	@echo "compiling the operator with a witness at its machines, and the suite"
	@BMDB_FAULTS_QUICK='$(QUICK)' BMDB_FAULTS_SEED='$(SEED)' BMDB_FAULTS_DIR='$(FAULTS_DIR)' \
	  go -C test/faults test -count=1 -v -timeout $(if $(QUICK),15m,90m) -parallel $(FAULTS_PARALLEL) -run '$(if $(FAULT),^Test$(FAULT)($$|[^0-9]),.)' $(TESTFLAGS) .
	@$(if $(FAULT),:,go -C test/faults test -count=1 ./wire ./bmc)

##@ Change

.PHONY: build
build: ## Build the operator, and the agent for each architecture, into bin/
	@echo "building bmdb-operator and bmdb-agent (first time about 4 minutes)"
	@CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o $(BIN)/bmdb-operator ./cmd/bmdb-operator
	@for arch in amd64 arm64; do \
	  CGO_ENABLED=0 GOOS=linux GOARCH=$$arch go build -ldflags '$(LDFLAGS)' -o $(BIN)/bmdb-agent-linux-$$arch ./cmd/bmdb-agent; \
	done
	@ln -sf bmdb-agent-linux-$$(go env GOARCH) $(BIN)/bmdb-agent

.PHONY: generate
generate: $(CONTROLLER_GEN) $(SQLC) ## Write all generated files
	@CONTROLLER_GEN=$(abspath $(CONTROLLER_GEN)) hack/generate.sh
	@$(CONTROLLER_GEN) rbac:roleName=bmdb-operator paths=./controllers/... paths=./cmd/bmdb-operator/... output:rbac:dir=config/rbac
	@# Secrets are read with a right of its own, which config/pool gives in each pool.
	@$(CONTROLLER_GEN) rbac:roleName=bmdb-operator-pool,fileName=pool_role.yaml paths=./internal/drivers/... output:rbac:dir=config/rbac
	@$(SQLC) generate -f bmdb/sqlc.yaml
	@# docs/reference, and what tests compare the command line and the metrics with.
	@UPDATE_GOLDEN=1 go test -count=1 -run '(Golden|Generated)$$' ./internal/metrics ./cmd/bmdb-operator >/dev/null

.PHONY: lint
lint: $(GOLANGCI_LINT) $(SQLC) ## Check style, imports, sizes, the API's conventions, and that generated queries are up to date
	@hack/lint.sh
	@$(SQLC) diff -f bmdb/sqlc.yaml
	@$(GOLANGCI_LINT) run --timeout 20m

.PHONY: mutants
mutants: ## Break one line at a time and see that the named test fails
	@hack/prerequisites.sh test
	@$(MAKE) controlplane
	@go run ./hack/testenv hack/mutants.sh $(MUTANTS)

.PHONY: test-cockroach
test-cockroach: ## Run the library's tests against the server that BMDB_TEST_COCKROACH_URL names
	@[[ -n "$${BMDB_TEST_COCKROACH_URL:-}" ]] || { echo "set BMDB_TEST_COCKROACH_URL to the URL of a server whose user may create databases" >&2; exit 2; }
	@hack/prerequisites.sh test
	@# Of what the other tests need, the library's tests need no control plane.
	@BMDB_TEST_DATABASE_URL="$$BMDB_TEST_COCKROACH_URL" go test -race -timeout $(TEST_TIMEOUT) $(TESTFLAGS) ./bmdb/...

.PHONY: image
image: ## Build the container image
	docker build --build-arg VERSION=$(VERSION) -t $(IMAGE) .

.PHONY: clean
clean: ## Remove bin/
	rm -rf $(BIN)

##@ What the others need, built from Go modules into bin/ by version

.PHONY: controlplane
controlplane: ## Build etcd, kube-apiserver, kube-controller-manager and kubectl (first time about 12 minutes)
	@hack/controlplane/build.sh $(BIN)

.PHONY: tools
tools: $(CONTROLLER_GEN) $(SQLC) $(GOLANGCI_LINT) ## Build controller-gen, sqlc and golangci-lint (first time about 4 minutes)

# A tool's own script decides whether there is anything to do; the file's age says nothing.
build-tool = hack/build-once.sh $@ $(1) $(3) go build -modfile=tools.mod -o '{}' $(2)

$(CONTROLLER_GEN):
	@$(call build-tool,"about half a minute",sigs.k8s.io/controller-tools/cmd/controller-gen)

$(SQLC):
	@$(call build-tool,"about 90 seconds",github.com/sqlc-dev/sqlc/cmd/sqlc,env CGO_ENABLED=0)

$(GOLANGCI_LINT):
	@$(call build-tool,"about 2 minutes",sigs.k8s.io/kube-api-linter/cmd/golangci-lint-kube-api-linter)
