#!/usr/bin/env bash
# Builds everything in release mode and runs the side-by-side benchmark; arguments go to bench-compare, e.g.
#   benches/compare.sh --only h1 --proxies haproxy,remora --rounds 1 --seconds 3
# With REMORA=PATH that data plane is measured, and none is built.
# The rivals come from benches/setup.sh, which is run once if they are missing and BENCH_SETUP is not 0.
set -euo pipefail
cd "$(dirname "$0")/.."

target="${CARGO_TARGET_DIR:-target}"
venv="${BENCH_VENV:-$target/bench-venv}"
PATH="$PATH:/usr/sbin"
if [ "${BENCH_SETUP:-1}" != 0 ]; then
    if ! command -v haproxy >/dev/null || ! command -v nginx >/dev/null || [ ! -x "$venv/bin/python" ]; then
        benches/setup.sh
    fi
fi
if [ -n "${REMORA:-}" ]; then
    cargo build --release -p remora-benches
    set -- --remora "$REMORA" "$@"
else
    cargo build --release -p remora-benches -p remora-proxy
fi
exec "$target/release/bench-compare" "$@"
