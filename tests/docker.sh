#!/usr/bin/env bash
# Checks of docker/ that need no Docker engine.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The files that the image is built from are enough to build.
context="$work/context"
mkdir -p "$context/tests/it" "$context/tests/bench"
cp -r Cargo.toml Cargo.lock src web "$context"
for stub in tests/it/main.rs tests/bench/{abandoned,durable,idle,latency,store}.rs; do
    grep -q "$stub" docker/Dockerfile || { echo "docker/Dockerfile does not stub $stub"; exit 1; }
    echo 'fn main() {}' >"$context/$stub"
done
(cd "$context" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OLDPWD/target}" cargo check --quiet --locked --bin x0-msg-server)

# The start script, with a `docker` that logs its arguments.
mkdir "$work/bin"
cat >"$work/bin/docker" <<'FAKE'
#!/bin/sh
echo "docker $*" >>"$LOG"
case "$1 $2" in
    "network inspect" | "container inspect") exit "$EXISTS" ;;
esac
FAKE
chmod +x "$work/bin/docker"
start() { LOG="$work/log" EXISTS="$1" PATH="$work/bin:$PATH" docker/x0-start-msg-server.sh "${@:2}"; }
expect() { grep -qF -- "$1" "$work/log" || { echo "missing: $1"; cat "$work/log"; exit 1; }; }

start 1 --poll-timeout 20s | grep -qx 'x0-msg-server listens on 172.20.0.100:8080'
expect 'docker network create --subnet 172.20.0.0/24 x0-connect'
expect 'docker run --detach --name x0-msg-server --network x0-connect --ip 172.20.0.100'
expect '--volume x0-msg-data:/data x0-msg-server --poll-timeout 20s'
if grep -q 'docker stop' "$work/log"; then echo 'stops a container that does not exist'; exit 1; fi
: >"$work/log"
start 0 >/dev/null
expect 'docker stop --time 15 x0-msg-server'
expect 'docker rm x0-msg-server'
if grep -q 'network create' "$work/log"; then echo 'creates a network that exists'; exit 1; fi

# The compose file, if there is a client that reads it.
if docker compose version >/dev/null 2>&1; then
    docker compose -f docker/compose.yaml config --quiet
fi
echo "the docker files are valid"
