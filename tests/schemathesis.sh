#!/usr/bin/env bash
# Checks the running server against its /openapi.json with schemathesis, all checks: in `open` mode, and with tokens,
# once as a backend and once as a client. An event stream does not end, so other tests cover it.
#
#   tests/schemathesis.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/server.sh
. tests/server.sh

venv=$target/schemathesis
if [[ ! -x $venv/bin/st ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'schemathesis==4.32.5'
fi

try() {
    (cd "$work" && PYTHONPATH=$root/tests PYTHONDONTWRITEBYTECODE=1 SCHEMATHESIS_HOOKS=schemathesis_hooks "$venv/bin/st" --config-file "$root/tests/schemathesis.toml" run "${url}openapi.json" --checks all --exclude-path /v1/events \
        --max-examples 60 --seed 4711 --continue-on-failure --generation-database none --no-color "$@") >"$work/report" 2>&1 ||
        { cut -c 1-2000 "$work/report"; exit 1; }
    grep -E '^ *[0-9]+ generated' "$work/report"
}

# The broker forgets ids at once: the requests use the same ones for other payloads.
start --dedup-window 1ms
try
stop

start_guarded --dedup-window 1ms
# Without a proof an array of polls is answered with 200 and an error for each, and many wrong proofs with 429: other tests cover proofs.
try --exclude-checks ignored_auth,missing_required_header --header "Authorization: Bearer $key"
try --exclude-checks ignored_auth,missing_required_header --header "Authorization: Bearer $token"
stop
echo "the HTTP calls match their description"
