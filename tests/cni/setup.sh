#!/usr/bin/env bash
# Builds cnitool, the reference implementation of container runtimes' side of CNI, from its Go module, kept in a cache directory and built
# once a version. Needs go. Prints the path of the program.
set -euo pipefail
version=1.3.1
into=${CNI_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/remora/cnitool-$version}

if [ ! -x "$into/cnitool" ]; then
    mkdir -p "$into/new"
    GOBIN=$into/new nice -n 15 go install -trimpath -ldflags "-s -w" "github.com/containernetworking/cni/cnitool@v$version" >&2
    mv "$into/new/cnitool" "$into/cnitool"
    rmdir "$into/new"
fi
echo "$into/cnitool"
