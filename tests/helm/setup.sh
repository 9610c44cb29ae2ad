#!/usr/bin/env bash
# Builds helm from its Go module, kept in a cache directory and built once a version. Needs go. Prints the path of the program.
set -euo pipefail
version=4.3.1
into=${HELM_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/remora/helm-$version}

if [ ! -x "$into/helm" ]; then
    mkdir -p "$into/new"
    GOBIN=$into/new nice -n 15 go install -trimpath -ldflags "-s -w" "helm.sh/helm/v4/cmd/helm@v$version" >&2
    mv "$into/new/helm" "$into/helm"
    rmdir "$into/new"
fi
echo "$into/helm"
