#!/usr/bin/env bash
# Fuzzes everything that takes bytes from outside apart, each target for some seconds (by default 600):
#
#   tests/fuzz/run.sh [SECONDS [TARGET...]]
#
# It begins with the recordings and what is in tests/fuzz/corpus; what it finds on its way is kept below target/fuzz.
# Installs cargo-fuzz if it is not there. A finding ends it, and is kept as well.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-600}
targets=("${@:2}")
((${#targets[@]})) || targets=(native_frame legacy_body legacy_query token)

command -v cargo-fuzz >/dev/null || cargo install --quiet --locked cargo-fuzz
# Where the toolchain is a stable one, the coverage that a fuzzer needs has to be asked for.
export RUSTC_BOOTSTRAP=1
# Writes the seeds, as the tests use them.
X0_MSG_SEEDS="$PWD/target/fuzz/seeds" cargo test --quiet --locked --test it fuzz::

for target in "${targets[@]}"; do
    mkdir -p "target/fuzz/corpus/$target" "target/fuzz/findings/$target"
    cargo fuzz run --fuzz-dir tests/fuzz --target-dir target/fuzz/build --sanitizer none "$target" \
        "target/fuzz/corpus/$target" "target/fuzz/seeds/$target" "tests/fuzz/corpus/$target" -- \
        -max_total_time="$seconds" -max_len=16384 -timeout=10 -artifact_prefix="target/fuzz/findings/$target/" \
        -print_final_stats=1 -verbosity=1
done
