# For scripts that test a running server: their first argument, or the debug build. They run in the directory of the
# project, and have the directory `work` for files. At their end the server is stopped and `work` removed.
# shellcheck shell=bash disable=SC2034

root=$PWD
target=${CARGO_TARGET_DIR:-$root/target}
binary=${1:-$target/debug/x0-msg-server}
work=$(mktemp -d)
server=
trap 'stop; rm -rf "$work"' EXIT

# Starts a server with these settings; sets `url`.
start() {
    exec {log}< <(exec "$binary" --listen 127.0.0.1:0 --durability memory --poll-timeout 1s "$@" 2>&1)
    server=$!
    url=
    local line said=
    while [[ -z $url ]] && read -r -u "$log" line; do
        url=$(sed -n 's/.*"url":"\([^"]*\)".*/\1/p' <<<"$line")
        said+=$line$'\n'
    done
    [[ -n $url ]] || { echo "the server did not start: $said"; return 1; }
}

# Stops it.
stop() {
    if [[ -n $server ]]; then
        kill "$server"
        cat <&"$log" >/dev/null
        server=
    fi
}

# Starts a server that wants credentials; sets `key` to an API key, and `token` to a token of user ann and session A.
# The files are in the directory `work`. It has these settings too.
start_guarded() {
    key=a-key-of-a-backend-0123456789abcdef
    printf '[[key]]\nname = "backend"\nkey = "%s"\n' "$key" >"$work/keys.toml"
    token=$("$binary" token --key-file "$work/secret" --new-key --user ann --session A --topic '*' --presence '*' --send '*' 2>/dev/null)
    start --auth token --token-key-file "$work/secret" --api-key-file "$work/keys.toml" --send-rate 0 "$@"
}
