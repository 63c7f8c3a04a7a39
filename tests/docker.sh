#!/usr/bin/env bash
# Checks of docker/ that need no Docker engine.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

hadolint docker/Dockerfile

# The files that the image is built from are enough to build, with the manifest that it makes of them.
context="$work/context"
mkdir "$context"
cp -r Cargo.toml Cargo.lock .cargo src web "$context"
reduce=$(sed -n "s/^RUN \(sed -i '[^']*' Cargo.toml\)$/\1/p" docker/Dockerfile)
[[ $reduce ]] || { echo "docker/Dockerfile does not reduce Cargo.toml"; exit 1; }
(cd "$context" && sh -c "$reduce" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$OLDPWD/target}" cargo check --quiet --locked --bin x0-msg-server)

# The start script, with a `docker` that logs its arguments. It has the containers in CONTAINERS; the title in their images is TITLE.
mkdir "$work/bin"
cat >"$work/bin/docker" <<'FAKE'
#!/bin/sh
echo "docker $*" >>"$LOG"
case "$1 $2 $3" in
    "network inspect "*) [ "$CONTAINERS" ] ;;
    "container inspect --format") echo "$TITLE" ;;
    "container inspect "*) case " $CONTAINERS " in *" $3 "*) ;; *) exit 1 ;; esac ;;
esac
FAKE
chmod +x "$work/bin/docker"
start() {
    : >"$work/log"
    LOG="$work/log" CONTAINERS=$1 TITLE=$2 PATH="$work/bin:$PATH" docker/x0-start-msg-server.sh "${@:3}"
}
expect() { grep -qF -- "$1" "$work/log" || { echo "missing: $1"; cat "$work/log"; exit 1; }; }
never() { if grep -F -- "$1" "$work/log"; then echo "not wanted: $1"; exit 1; fi; }

[[ $(start '' '' --poll-timeout 20s) == 'x0-msg-server listens on 172.20.0.100:8080 and 127.0.0.1:8080' ]]
expect 'docker network create --subnet 172.20.0.0/24 x0-connect'
expect 'docker run --detach --name x0-msg-server --network x0-connect --ip 172.20.0.100 --publish 127.0.0.1:8080:8080'
expect '--volume x0-msg-data:/data x0-msg-server --poll-timeout 20s'
never 'docker stop'
# An earlier start.
X0_MSG_PUBLISH=0.0.0.0 start x0-msg-server x0-msg-server >/dev/null
expect 'docker stop --time 60 x0-msg-server'
expect 'docker rm x0-msg-server'
expect '--publish 0.0.0.0:8080:8080'
never 'network create'
never 'docker rename'
# The x0 message server, and back.
[[ $(start x0-msg-server '') == *'--rollback starts it again'* ]]
expect 'docker update --restart no x0-msg-server'
expect 'docker rename x0-msg-server x0-msg-server-x0'
never 'docker rm'
start 'x0-msg-server x0-msg-server-x0' '' --rollback >/dev/null
expect 'docker rm x0-msg-server'
expect 'docker rename x0-msg-server-x0 x0-msg-server'
expect 'docker start x0-msg-server'
never 'docker run'
if start x0-msg-server '' --rollback 2>/dev/null; then echo 'rolls back to nothing'; exit 1; fi
never 'docker rm'

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

# The compose files, by the schema, and by a client that reads them if there is one.
check-jsonschema --quiet --builtin-schema vendor.compose-spec docker/compose*.yaml
if docker compose version >/dev/null 2>&1; then
    export NATS_PASSWORD=secret
    for file in docker/compose.yaml "$cluster"; do
        docker compose -f "$file" config --quiet
        docker compose -f "$file" -f docker/compose.network.yaml config --quiet
    done
fi
# The objects of Kubernetes in the documentation.
awk '/^```/ { on = $0 == "```yaml"; wanted = 0; block = ""; next } on { block = block $0 "\n" } on && /^kind: StatefulSet$/ { wanted = 1 }
    wanted && on { text = block } END { printf "%s", text }' web/docs/operating.md >"$work/kubernetes.yaml"
grep -q '^kind: StatefulSet$' "$work/kubernetes.yaml"
kubernetes-validate --strict --quiet "$work/kubernetes.yaml"

echo "the docker files are valid"
