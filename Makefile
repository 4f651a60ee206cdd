# Targets are few; `make help` lists them.
.DEFAULT_GOAL := help
.PHONY: help build test lint demo bench-p2p bench-chunkfmt bench-coldstart bench-lazymount generate

GO    ?= go
TOOL   = $(GO) tool -modfile=tools/go.mod

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/supernode, bin/dfdaemon, bin/snapshotter and bin/dfctl
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/ ./cmd/supernode ./cmd/dfdaemon ./cmd/snapshotter ./cmd/dfctl

test: ## run all tests with the race detector; those that need root or a missing program are skipped
	DAMSELFLY_INTEGRATION=1 $(GO) test -race $(ARGS) ./...

lint: ## check the code against .golangci.yml (the first run builds the linter)
	$(TOOL) golangci-lint run $(ARGS) ./...

# The image is taken from the environment by the shell, never pasted into a command.
export IMAGE
demo: ## pull an image through a small cluster on this machine: make demo [IMAGE=HOST/REPO:TAG]
	$(GO) run ./perf/demo $${IMAGE:+-image "$$IMAGE"} $(ARGS)

NODES ?= 50
RATE  ?= 1gbit
SIZE  ?= 1GiB
bench-p2p: ## measure distribution to many nodes: make bench-p2p [NODES=50] [RATE=1gbit] [SIZE=1GiB]
	$(GO) run ./perf/p2p -nodes $(NODES) -rate $(RATE) -size $(SIZE) $(ARGS)

IMAGES ?= golang
bench-chunkfmt: ## measure the image format: make bench-chunkfmt [IMAGES=golang,node] [ARGS='-peer ctr-remote -plots plots']
	$(GO) run ./perf/chunkfmt -images $(IMAGES) $(ARGS)

export PEER_STARGZ
bench-coldstart: ## measure pulls and starts of containers: make bench-coldstart [IMAGES=golang,node] [PEER_STARGZ=containerd-stargz-grpc] [ARGS='-plots plots']
	$(GO) run ./perf/coldstart -images $(IMAGES) $${PEER_STARGZ:+-stargz "$$PEER_STARGZ"} $(ARGS)

MODES ?= complete,throughput,latency,containers,mounts,second
bench-lazymount: ## measure lazy mounts beside other files: make bench-lazymount [MODES=complete,latency] [ARGS='-image node -repeat 3']
	$(GO) run ./perf/lazymount -mode $(MODES) $(ARGS)

generate: ## regenerate api/v1/*.pb.go (needs protoc: apt install protobuf-compiler)
	protoc \
		--plugin=protoc-gen-go="$$($(TOOL) -n protoc-gen-go)" \
		--plugin=protoc-gen-go-grpc="$$($(TOOL) -n protoc-gen-go-grpc)" \
		--go_out=. --go_opt=paths=source_relative \
		--go-grpc_out=. --go-grpc_opt=paths=source_relative \
		api/v1/*.proto
