#!/usr/bin/env bash
# Installs the programs that run in the pods of tests/tests/pods, unmodified: Debian packages by name, and Python packages in the
# virtual environment that the acceptance checks have, too. Idempotent and quiet; runs as root on Debian or Ubuntu. Starts no service.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${ACCEPTANCE_DIR:-$root/target/acceptance}
mkdir -p "$target"
. "$root/tests/install.sh"
packages python3-venv nginx-light redis-server redis-tools mariadb-server mariadb-client curl tcpdump ca-certificates \
    nftables iproute2 util-linux procps
apps
