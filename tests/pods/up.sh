#!/usr/bin/env bash
# Builds the mesh of six pods and keeps it until Ctrl-C (as root; `tests/pods/setup.sh` installs its programs).
set -euo pipefail
cd "$(dirname "$0")/../.."
cargo test --quiet --workspace --test pods --no-run
exec "${CARGO_TARGET_DIR:-target}/debug/mesh-of-pods"
