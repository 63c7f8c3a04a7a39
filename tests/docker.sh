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

# A cluster. X0_MSG_NATS_SERVER names a `nats-server`.
cluster=docker/compose.cluster.yaml
while read -r name; do
    grep -q "^ .*$name: " "$cluster" || { echo "$cluster does not set $name, which docker/nats.conf takes"; exit 1; }
done < <(grep -v '^#' docker/nats.conf | grep -o 'NATS_[A-Z_0-9]*' | sort -u)
while read -r server; do
    grep -q "^  $server:" "$cluster" || { echo "$cluster has no service $server, which docker/haproxy.cfg names"; exit 1; }
done < <(sed -n 's/^    server [^ ]* \([^ :]*\):8080$/\1/p' docker/haproxy.cfg | sort -u)
NATS_NAME=nats1 NATS_LISTEN=0.0.0.0:4222 NATS_ROUTE_LISTEN=0.0.0.0:6222 NATS_MONITOR=127.0.0.1:8222 NATS_STORE=$work \
    NATS_ROUTE_1=nats://nats1:6222 NATS_ROUTE_2=nats://nats2:6222 NATS_ROUTE_3=nats://nats3:6222 NATS_PASSWORD="'1k'" \
    "${X0_MSG_NATS_SERVER:-nats-server}" -t -c docker/nats.conf
# The names of its servers are known in the network of the containers only.
sed 's/ node[12]:8080$/ 127.0.0.1:8080/' docker/haproxy.cfg >"$work/haproxy.cfg"
haproxy -c -f "$work/haproxy.cfg"

# The compose files, if there is a client that reads them.
if docker compose version >/dev/null 2>&1; then
    docker compose -f docker/compose.yaml config --quiet
    NATS_PASSWORD=secret docker compose -f "$cluster" config --quiet
fi
echo "the docker files are valid"
