#!/usr/bin/env bash
# Cargo's RUSTC_WRAPPER of `run.sh`: the targets and the crate that they are about are instrumented for libFuzzer. What that is built on is
# not, and is then the same as in every other build. Cargo does not see a change of this file: `cargo clean -p remora-proxy -p remora-fuzz`.
#
# The instrumentation is LLVM's, and rustc on stable passes it on; no sanitizer is needed for code without `unsafe`.
set -euo pipefail
if [ -n "${CARGO_PRIMARY_PACKAGE-}" ] || [ "${CARGO_CRATE_NAME-}" = remora_proxy ]; then
    coverage=(-sanitizer-coverage-{level=4,inline-8bit-counters,pc-table,trace-compares})
    set -- "$@" --cfg fuzzing -Cpasses=sancov-module "${coverage[@]/#/-Cllvm-args=}"
fi
exec "$@"
