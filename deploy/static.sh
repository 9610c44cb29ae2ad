#!/usr/bin/env bash
# Builds a program that needs no file but itself, and puts it, without symbols, into FOLDER.
#
#   deploy/static.sh remora|remora-proxy FOLDER
#
# PROFILE (default: release) is cargo's. glibc is linked in; only the last crate knows of it, so that whoever has built the
# ordinary program already waits for the linker alone.
set -euo pipefail
cd "$(dirname "$0")/.."
program=$1 folder=$2 profile=${PROFILE:-release}
case $program in
remora) crate=remora-control ;;
remora-proxy) crate=remora-proxy ;;
*) echo "no program $program: remora or remora-proxy" >&2; exit 2 ;;
esac
# The call, and not /dev/urandom: the crate getrandom looks for it in a shared library, and there is none.
export RUSTFLAGS='--cfg getrandom_backend="linux_getrandom"'
cargo rustc --locked --profile "$profile" -p $crate --bin "$program" -- -C target-feature=+crt-static
built=${CARGO_TARGET_DIR:-target}/${profile/#dev/debug}/$program
if readelf --program-headers "$built" | grep -q INTERP; then
    echo "$built asks for a dynamic linker" >&2
    exit 1
fi
mkdir -p "$folder"
strip -o "$folder/$program" "$built"
