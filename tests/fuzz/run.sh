#!/usr/bin/env bash
# Fuzzes what reads bytes that strangers sent: tests/fuzz/run.sh [SECONDS [TARGET…]]. 30 seconds each unless told.
#
# libFuzzer by way of its crate. A finding ends with status 1 and the name of a file that `target/debug/TARGET FILE` runs again.
set -euo pipefail
cd "$(dirname "$(realpath "${BASH_SOURCE[0]}")")"
seconds=${1:-30}
shift || true
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(client_hello san path jwt dns)

target=$(realpath -m "${CARGO_TARGET_DIR:-../../target}")
out=$target/fuzz
CARGO_TARGET_DIR=$target RUSTC_WRAPPER=$PWD/rustc.sh cargo build --locked

failed=0
for name in "${targets[@]}"; do
    mkdir -p "$out/corpus/$name" "$out/findings/$name"
    echo "fuzzing $name for $seconds s"
    "$target/debug/$name" -max_total_time="$seconds" -max_len=4096 -timeout=10 -rss_limit_mb=2048 \
        -print_final_stats=1 -verbosity=0 -artifact_prefix="$out/findings/$name/" \
        "$out/corpus/$name" "seeds/$name" || failed=1
done
exit $failed
