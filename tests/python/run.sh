#!/usr/bin/env bash
# Runs the httpx programs of web/docs/http.md, in `open` mode and with an API key.
#
#   tests/python/run.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=tests/server.sh
. tests/server.sh

venv=$target/python
if [[ ! -d $venv/lib ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'httpx==0.28.1'
fi

start
"$venv/bin/python" -B tests/python/snippets.py "$url"
stop

# shellcheck disable=SC2119 # It needs no further settings.
start_guarded
pages=()
for page in lee:S7 mia:of-mia noa:of-noa; do
    made=$("$binary" token --key-file "$work/secret" --user "${page%:*}" --session "${page#*:}" --send topic:answers 2>/dev/null)
    pages+=(--page "${page%:*}=$made")
done
"$venv/bin/python" -B tests/python/snippets.py "$url" --key "$key" "${pages[@]}"
stop
