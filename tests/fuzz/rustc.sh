#!/usr/bin/env bash
# Cargo's RUSTC_WRAPPER of `run.sh`: our own code is instrumented for libFuzzer, what it is built on is not, and is then the same
# as in every other build.
#
# The instrumentation is LLVM's, and rustc on stable passes it on; no sanitizer is needed for code without `unsafe`.
set -euo pipefail
case " $* " in
    *" --crate-name remora_proxy "* | *" --crate-name client_hello "* | *" --crate-name san "* | *" --crate-name path "* | \
        *" --crate-name jwt "*)
        coverage=(-sanitizer-coverage-{level=4,inline-8bit-counters,pc-table,trace-compares})
        exec "$@" --cfg fuzzing -Cpasses=sancov-module "${coverage[@]/#/-Cllvm-args=}"
        ;;
esac
exec "$@"
