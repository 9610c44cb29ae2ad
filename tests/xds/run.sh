#!/usr/bin/env bash
# xDS and mTLS between programs of different makers:
#
#   envoy-…, grpcio, grpc-js    Envoy and gRPC's own clients (C++ by Python, JavaScript), driven by `remora control` with mesh documents
#   foreign-peers               openssl, curl and Envoy at a sidecar of `remora run`, with and without certificates of our CA
#   workload-api                a client of SPIFFE's Workload API, and Envoy's SDS, at the identity socket of a sidecar
#   agent-…                     a SPIFFE agent made of go-spiffe issues to `remora proxy`, alone and under `remora control`
#   spire-…                     the same with SPIRE 1.13, if SPIRE names the directory of its two programs
#   go-control-plane-…          `remora proxy`, driven by go-control-plane
#   random-edits                `remora control` and `remora proxy`: a thousand edits under traffic, then compared with a fresh start
#
#   REMORA=target/release/remora tests/xds/run.sh [CHECK…]
#   SEED=1234 tests/xds/run.sh random-edits        the same edits again
#
# A CHECK is a part of a name. setup.sh must have run. Prints a line for each check; the exit status is 0 when all passed.
# Everything that is started is ended by its process id, also after a failure.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${REMORA:?path of the binary remora}"
target=${ACCEPTANCE_DIR:-$here/../../target/acceptance}
ENVOY=$(find "$target/envoy" -path '*/envoy/_bin/envoy' -type f | head -n 1)
GO_CONTROL_PLANE=$(realpath "$target/go-control-plane")
WORKLOAD_API=$(realpath "$target/workload-api")
SPIFFE=$(realpath "$target")/spiffe/bin/python
for program in "$ENVOY" "$target/xds/bin/python" "$SPIFFE" "$GO_CONTROL_PLANE" "$WORKLOAD_API"; do
    [ -x "$program" ] || { echo "run $here/setup.sh first" >&2; exit 2; }
done
REMORA=$(realpath "$REMORA")
NODE_PATH=$(realpath "$target/grpc-js/node_modules")
export REMORA ENVOY NODE_PATH GO_CONTROL_PLANE SPIFFE WORKLOAD_API
exec "$target/xds/bin/python" -B "$here/main.py" "$@"
