#!/usr/bin/env bash
# Fuzzes what reads bytes that strangers sent: tests/fuzz/run.sh [SECONDS [TARGET…]]. 30 seconds each unless told.
#
# libFuzzer by way of its crate. The instrumentation is LLVM's, and rustc on stable passes it on; no sanitizer is needed for code without
# `unsafe`. A finding ends with status 1 and the name of a file that `target/fuzz/…/TARGET FILE` runs again.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")"
seconds=${1:-30}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(client_hello san path jwt)

host=$(rustc -vV | sed -n 's/^host: //p')
out=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/fuzz
flags="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
flags+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
flags+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
# With --target the flags are for what is run, and not for build scripts.
CARGO_TARGET_DIR=$out RUSTFLAGS=$flags cargo build --release --locked --target "$host"

failed=0
for target in "${targets[@]}"; do
    mkdir -p "$out/corpus/$target" "$out/findings/$target"
    echo "fuzzing $target for $seconds s"
    "$out/$host/release/$target" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="$out/findings/$target/" \
        "$out/corpus/$target" "seeds/$target" || failed=1
done
exit $failed
