#!/usr/bin/env bash
# Real programs through a pair of sidecars: application -> outbound sidecar -> mutual TLS -> inbound sidecar -> application.
#
#   REMORA=target/release/remora tests/acceptance/run.sh [CHECK…]
#
# Prints a line for each check, and at the end how many passed and failed. With names, runs only the checks that contain one of them.
# setup.sh must have run. Everything that is started is ended by its process id, also after a failure or Ctrl-C.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${REMORA:?path of the binary remora}"
REMORA=$(realpath "$REMORA")
export REMORA
python=${ACCEPTANCE_DIR:-$here/../../target/acceptance}/apps/bin/python
[ -x "$python" ] || { echo "run $here/setup.sh first" >&2; exit 2; }
exec "$python" -B "$here/main.py" "$@"
