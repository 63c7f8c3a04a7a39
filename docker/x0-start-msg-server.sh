#!/bin/sh
# Starts x0-msg-server in place of the x0 message server: same container name, network, address and port.
#
# Further arguments go to the server, like: x0-start-msg-server.sh --poll-timeout 20s
# X0_MSG_IMAGE chooses another image than x0-msg-server, X0_MSG_VOLUME another volume (or directory) than
# x0-msg-data for the stored messages, which outlive the container.
set -eu

NAME=x0-msg-server
NETWORK=x0-connect
SUBNET=172.20.0.0/24
ADDRESS=172.20.0.100
IMAGE=${X0_MSG_IMAGE:-x0-msg-server}
VOLUME=${X0_MSG_VOLUME:-x0-msg-data}

if ! docker network inspect "$NETWORK" >/dev/null 2>&1; then
    docker network create --subnet "$SUBNET" "$NETWORK" >/dev/null
fi

# A container of an earlier start, running or not: stopped in order, so that waiting polls are answered.
if docker container inspect "$NAME" >/dev/null 2>&1; then
    docker stop --time 15 "$NAME" >/dev/null
    docker rm "$NAME" >/dev/null
fi

docker run --detach --name "$NAME" --network "$NETWORK" --ip "$ADDRESS" \
    --restart unless-stopped --read-only --cap-drop ALL --security-opt no-new-privileges \
    --volume "$VOLUME:/data" \
    "$IMAGE" "$@" >/dev/null

echo "$NAME listens on $ADDRESS:8080"
