#!/usr/bin/env bash
# Fuzzes the parsers of outside bytes, each target for some seconds (by default 600):
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# It begins with the recordings and tests/fuzz/corpus, and keeps new inputs below target/fuzz. It installs cargo-fuzz if
# it is missing. A finding ends the run, and is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-600}
targets=("${@:2}")
((${#targets[@]})) || targets=(native_frame legacy_body legacy_query token websocket http1)

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
# A stable toolchain has the coverage that a fuzzer needs only with this.
export RUSTC_BOOTSTRAP=1
# Writes the seeds of the tests.
X0_MSG_SEEDS="$PWD/target/fuzz/seeds" cargo test --quiet --locked --test it fuzz::

for target in "${targets[@]}"; do
    mkdir -p "target/fuzz/corpus/$target" "target/fuzz/findings/$target"
    cargo fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz/build --sanitizer none "$target" \
        "target/fuzz/corpus/$target" "target/fuzz/seeds/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=10 -artifact_prefix="target/fuzz/findings/$target/" \
        -print_final_stats=1 -verbosity=1
done
