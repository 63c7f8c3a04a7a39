#!/usr/bin/env bash
# Generates a Python client from the /openapi.json of the running server with openapi-python-client, and sends, polls
# and acknowledges with it, blocking and with asyncio: in `open` mode, and with a token and an API key.
#
#   tests/generated_client.sh [BINARY]
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tests/server.sh
. tests/server.sh

venv=$target/generated-client
if [[ ! -x $venv/bin/openapi-python-client ]]; then
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check 'openapi-python-client==0.29.1'
fi

# Generates the package `broker`. A warning is about a part of the description that the client would lack.
generate() {
    # The code is not formatted.
    echo "post_hooks: []" >"$work/generator.yaml"
    rm -rf "$work/broker"
    (cd "$work" && "$venv/bin/openapi-python-client" generate --url "${url}openapi.json" --meta none \
        --output-path broker --fail-on-warning --config generator.yaml) >"$work/report" 2>&1 || { cat "$work/report"; exit 1; }
}

use() { PYTHONPATH=$work "$venv/bin/python" -B tests/generated_client.py "$url" "$@"; }

start
generate
use
stop
start
use --asyncio
stop

# shellcheck disable=SC2119 # It needs no further settings.
start_guarded
generate
use --token "$token" --key "$key"
stop
# shellcheck disable=SC2119
start_guarded
use --asyncio --token "$token" --key "$key"
stop
echo "a generated client sends, polls and acknowledges"
