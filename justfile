# The verbs of this repository. `just` lists them; .ci/run is their sum.

# Every listing of the workspace uses the same features, so that nothing is compiled twice.
export CARGO_TERM_COLOR := env("CARGO_TERM_COLOR", "auto")

_default:
    @just --list --unsorted

# Type-check everything
check:
    cargo check --workspace --all-targets

# Format and clippy, as CI wants them
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# Every test that needs no other program and no root
test *ARGS:
    cargo test --workspace {{ARGS}}

# Tests in network namespaces (need root)
test-root:
    cargo test --workspace --test interception --test pods --test cni

# Six pods on three nodes with real programs, in network namespaces, until Ctrl-C (needs root)
pods:
    tests/pods/setup.sh
    tests/pods/up.sh

# Every order in which threads can meet in shared state (loom)
models:
    .ci/run models

# The fault matrix with what it measures (docs/reference/faults.md)
faults *ARGS:
    cargo test --workspace --test faults -- --nocapture {{ARGS}}

# Retry storm, rolling restarts, a slow endpoint, overload: minutes each; curves go to docs/experiments
experiments:
    .ci/run experiments

# Side by side with HAProxy, nginx and Envoy (docs/benchmarks.md)
bench *ARGS:
    benches/setup.sh
    benches/compare.sh {{ARGS}}

# Licences, banned crates, sources
deny:
    .ci/run deny

# The documentation of the code
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# h2spec and httpwg through the proxy
conformance:
    .ci/run conformance

# The same files and requests through Envoy and Remora
oracle:
    .ci/run oracle

# Envoy and gRPC driven by our control plane, our proxy by another one, a thousand edits under traffic
xds *ARGS:
    .ci/run release
    tests/xds/setup.sh
    REMORA=target/release/remora tests/xds/run.sh {{ARGS}}

# Real programs through a pair of sidecars; installs packages, so run as root
acceptance *ARGS:
    .ci/run release
    tests/acceptance/setup.sh
    REMORA=target/release/remora tests/acceptance/run.sh {{ARGS}}

# The program as it is shipped: an empty root, a root with nft, the Debian package; run as root
deploy:
    .ci/run deploy

# `remora control --kubernetes` at a real API server, and the Gateway API's mesh conformance cases; builds Kubernetes the first time (15 minutes of CPU)
test-kube:
    .ci/run kube

# The Helm chart against the manifests, with a helm that is built the first time (minutes of CPU)
test-chart:
    .ci/run chart

# Everything that CI runs; or only some sections
ci *SECTIONS:
    .ci/run {{SECTIONS}}
