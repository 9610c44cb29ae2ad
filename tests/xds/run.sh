#!/usr/bin/env bash
# Envoy and gRPC's own clients (C++ by Python, JavaScript), driven by `remora control` with mesh documents.
#
#   REMORA=target/release/remora tests/xds/run.sh [CHECK…]
#
# setup.sh must have run. Prints a line for each check; the exit status is 0 when all passed. Everything that is started is ended by its
# process id, also after a failure.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${REMORA:?path of the binary remora}"
target=${ACCEPTANCE_DIR:-$here/../../target/acceptance}
ENVOY=$(find "$target/envoy" -path '*/envoy/_bin/envoy' -type f | head -n 1)
[ -x "$ENVOY" ] && [ -x "$target/xds/bin/python" ] || { echo "run $here/setup.sh first" >&2; exit 2; }
REMORA=$(realpath "$REMORA")
NODE_PATH=$(realpath "$target/grpc-js/node_modules")
export REMORA ENVOY NODE_PATH
exec "$target/xds/bin/python" -B "$here/main.py" "$@"
