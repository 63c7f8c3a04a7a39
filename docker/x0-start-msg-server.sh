#!/bin/sh
# Starts x0-msg-server in place of the x0 message server: same container name, network, address and port.
#
#   x0-start-msg-server.sh [ARGUMENT OF x0-msg-server...]
#   x0-start-msg-server.sh --rollback     starts the x0 message server again, which the first start has kept
#
# X0_MSG_PUBLISH is the address of this machine at which port 8080 is reached: 127.0.0.1, or 0.0.0.0 for other machines.
# X0_MSG_IMAGE chooses another image than x0-msg-server, X0_MSG_VOLUME another volume (or directory) than
# x0-msg-data for the stored messages, which outlive the container.
set -eu

NAME=x0-msg-server
# The container of the x0 message server, after this one has taken its place.
OLD=x0-msg-server-x0
NETWORK=x0-connect
SUBNET=172.20.0.0/24
ADDRESS=172.20.0.100
IMAGE=${X0_MSG_IMAGE:-x0-msg-server}
VOLUME=${X0_MSG_VOLUME:-x0-msg-data}
PUBLISH=${X0_MSG_PUBLISH:-127.0.0.1}

exists() { docker container inspect "$1" >/dev/null 2>&1; }
# Stopped in order, so that waiting polls are answered: within --drain-timeout (10 s), and 30 s more if the disk does not answer.
stop() { docker stop --time 60 "$1" >/dev/null; }

if [ "${1-}" = --rollback ]; then
    exists "$OLD" || {
        echo "there is no container $OLD: the x0 message server was not kept; start it with x0's own script" >&2
        exit 1
    }
    if exists "$NAME"; then
        stop "$NAME"
        docker rm "$NAME" >/dev/null
    fi
    docker rename "$OLD" "$NAME"
    docker start "$NAME" >/dev/null
    echo "the x0 message server runs again; messages that wait in the volume $VOLUME stay there"
    exit
fi

docker network inspect "$NETWORK" >/dev/null 2>&1 || docker network create --subnet "$SUBNET" "$NETWORK" >/dev/null

# A container of that name, running or not: one of an earlier start, or the x0 message server.
if exists "$NAME"; then
    title=$(docker container inspect --format '{{index .Config.Labels "org.opencontainers.image.title"}}' "$NAME")
    stop "$NAME"
    if [ "$title" = x0-msg-server ]; then
        docker rm "$NAME" >/dev/null
    elif exists "$NAME"; then # else it was started with --rm
        docker update --restart no "$NAME" >/dev/null
        docker rename "$NAME" "$OLD"
        echo "the container that had the name $NAME is kept as $OLD; $0 --rollback starts it again"
    fi
fi

docker run --detach --name "$NAME" --network "$NETWORK" --ip "$ADDRESS" --publish "$PUBLISH:8080:8080" \
    --restart unless-stopped --read-only --cap-drop ALL --security-opt no-new-privileges --stop-timeout 60 \
    --volume "$VOLUME:/data" \
    "$IMAGE" "$@" >/dev/null

echo "$NAME listens on $ADDRESS:8080 and $PUBLISH:8080"
