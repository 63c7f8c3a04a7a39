#!/usr/bin/env bash
# Runs every check and test of this repository, and installs what they need first (Debian or Ubuntu, as root or
# with sudo; elsewhere install Chromium and Node.js yourself).
#
#   tests/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }

missing=()
command -v chromium >/dev/null || missing+=(chromium)
command -v node >/dev/null || missing+=(nodejs npm)
command -v shellcheck >/dev/null || missing+=(shellcheck)
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    step "install ${missing[*]}"
    as_root() { if ((EUID)); then sudo "$@"; else "$@"; fi; }
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi

step "format, lints, documentation"
cargo fmt --check
cargo clippy --quiet --locked --all-targets --all-features -- -D warnings
RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps

step "docker files"
tests/docker.sh

step "unit and integration tests"
cargo test --quiet --locked

step "web: types"
(cd tests/browser && npm ci --silent --no-fund --no-audit && npm run --silent types)

cargo build --quiet --locked
step "HTTP calls: as they are described"
tests/schemathesis.sh

step "web: in a real browser"
(cd tests/browser && npm run --silent test)

step "all passed"
