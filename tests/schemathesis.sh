#!/usr/bin/env bash
# Checks the running server against its /openapi.json with schemathesis, all checks: in `open` mode, and with tokens,
# once as a backend and once as a client. An event stream does not end, so other tests cover it.
#
#   tests/schemathesis.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}
binary=${1:-$target/debug/x0-msg-server}
work=$(mktemp -d)
server=
stop() {
    if [[ -n $server ]]; then
        kill "$server"
        cat <&"$log" >/dev/null
        server=
    fi
}
trap 'stop; rm -rf "$work"' EXIT

venv=$target/schemathesis
if [[ ! -x $venv/bin/st ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'schemathesis==4.32.5'
fi

# Starts a server with these settings; sets `url`. It forgets ids at once: the requests use the same ones for other payloads.
start() {
    exec {log}< <(exec "$binary" --listen 127.0.0.1:0 --durability memory --poll-timeout 1s --dedup-window 1ms "$@" 2>&1)
    server=$!
    url=
    while [[ -z $url ]] && read -r -u "$log" line; do
        url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' <<<"$line")
        [[ -n $url ]] || echo "$line"
    done
    [[ -n $url ]]
}

try() {
    (cd "$work" && "$venv/bin/st" --config-file "$root/tests/schemathesis.toml" run "${url}openapi.json" --checks all --exclude-path /v1/events \
        --max-examples 60 --seed 4711 --continue-on-failure --generation-database none --no-color "$@") >"$work/report" 2>&1 ||
        { cut -c 1-2000 "$work/report"; exit 1; }
    grep -E '^ *[0-9]+ generated' "$work/report"
}

start
try
stop

key=a-key-of-a-backend-0123456789abcdef
printf '[[key]]\nname = "backend"\nkey = "%s"\n' "$key" >"$work/keys.toml"
"$binary" token --key-file "$work/secret" --new-key --user ann --session A --topic '*' --send '*' >"$work/token" 2>/dev/null
start --auth token --token-key-file "$work/secret" --api-key-file "$work/keys.toml" --send-rate 0
try --header "Authorization: Bearer $key"
try --header "Authorization: Bearer $(cat "$work/token")"
stop
echo "the HTTP calls match their description"
