#!/usr/bin/env bash
# Installs h2spec and httpwg into target/tools when they are missing, and runs them through the proxy.
# Needs go and cargo. REMORA_BIN names another binary to test.
set -euo pipefail
cd "$(dirname "$0")/.."
export REMORA_TOOLS="${REMORA_TOOLS:-$PWD/target/tools/bin}"
root="$(dirname "$REMORA_TOOLS")"
if [ ! -x "$REMORA_TOOLS/h2spec" ]; then
    GOBIN="$REMORA_TOOLS" go install github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible
fi
if [ ! -x "$REMORA_TOOLS/httpwg" ]; then
    # --locked: with newer dependencies it does not compile.
    cargo install --locked --debug httpwg-cli --version 0.2.5 --root "$root"
fi
cargo test --workspace --test conformance -- --ignored --nocapture --test-threads 1 "$@"
