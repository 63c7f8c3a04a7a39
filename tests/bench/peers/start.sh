#!/bin/bash
# start.sh PEER RUNDIR : starts one peer on loopback, pinned to core $CORE (default 0),
# waits for its port, prints the pid to measure (its children count with it). Stop: kill that pid.
# Flags are words of a variable:
# shellcheck disable=SC2086
set -eu
here=$(cd "$(dirname "$0")" && pwd)
peer=$1; run=$2; core=${CORE:-0}
load=${LOAD:-$here/../load/target/release/load}
node_modules=${NODE_MODULES:-$here/node_modules}
x0=${X0:-x0-msg-server}
ulimit -n "$(ulimit -Hn)"
rm -rf "$run"; mkdir -p "$run"
pin="taskset -c $core"
nchan_port=${NCHAN_PORT:-9101}
fill() { sed -e "s#@RUN@#$run#g" -e "s#127.0.0.1:9101#127.0.0.1:$nchan_port#" -e "s#@BUFLEN@#${BUFLEN:-100}#" -e "s#@BUFTTL@#${BUFTTL:-60s}#" -e "s#@TUNED@#${TUNED:-}#" -e "s#@JS@#${JS:-}#" -e "s#@PERSIST@#${PERSIST:-persistence false}#" "$here/etc/$1.in" >"$run/$1"; }
up() { # port pid
  for _ in $(seq 600); do
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then return 0; fi
    kill -0 "$2" 2>/dev/null || { echo "$peer died: $(tail -n 3 "$run"/log 2>/dev/null)" >&2; exit 1; }
    sleep 0.1
  done
  kill "$2"; echo "$peer: port $1 never opened" >&2; exit 1
}
x0_of() { case $1 in *-b) echo "${X0_B:?the binary to compare with}" ;; *) echo "$x0" ;; esac; }
bg() { setsid $pin "$@" >"$run/log" 2>&1 </dev/null & pid=$!; }
case $peer in
nchan)        fill nginx-nchan.conf; bg nginx -p "$run" -c "$run/nginx-nchan.conf"; port=$nchan_port ;;
nchan-tuned)  BUFLEN=16 BUFTTL=5s
              TUNED='connection_pool_size 256; request_pool_size 1k; client_header_buffer_size 512; gzip off;'
              fill nginx-nchan.conf; bg nginx -p "$run" -c "$run/nginx-nchan.conf"; port=$nchan_port ;;
nats)         fill nats.conf; GOMAXPROCS=1 bg nats-server -c "$run/nats.conf"; port=9112 ;;
nats-js)      JS="jetstream { store_dir: \"$run/js\", max_mem: 1G, max_file: 20G }"
              fill nats.conf; GOMAXPROCS=1 bg nats-server -c "$run/nats.conf"; port=9112 ;;
mosquitto)    fill mosquitto.conf; bg mosquitto -c "$run/mosquitto.conf"; port=9122 ;;
mosquitto-p)  chmod 777 "$run"; PERSIST="persistence true\\nuser root\\npersistence_location $run/\\nautosave_interval 1\\nautosave_on_changes false"
              fill mosquitto.conf; bg mosquitto -c "$run/mosquitto.conf"; port=9122 ;;
wsnode)       NODE_PATH=$node_modules bg node "$here/wsnode.js"; port=9181 ;;
uws)          NODE_PATH=$node_modules bg node "$here/uws.js"; port=9181 ;;
x0 | x0-b)    bg "$(x0_of "$peer")" --listen 127.0.0.1:9181 --durability fsync --data-dir "$run/data" ${X0_ARGS:-}; port=9181 ;;
x0-os)        bg "$x0" --listen 127.0.0.1:9181 --durability os --data-dir "$run/data" ${X0_ARGS:-}; port=9181 ;;
x0-mem | x0-mem-b) bg "$(x0_of "$peer")" --listen 127.0.0.1:9181 --durability memory ${X0_ARGS:-}; port=9181 ;;
x0-token | x0-token-b) head -c 32 /dev/urandom | base64 >"$run/secret"
              bg "$(x0_of "$peer")" --listen 127.0.0.1:9181 --durability memory --auth token --token-key-file "$run/secret" --connections-per-address 0 --send-rate 1000000 --send-bytes-rate 1GiB ${X0_ARGS:-}; port=9181 ;;
limit)        bg "$load" limit-server --port 9171 --log "$run/log.bin"; port=9171 ;;
limit-batch)  bg "$load" limit-server --port 9171 --batch; port=9171 ;;
*) echo "unknown peer $peer" >&2; exit 2 ;;
esac
up $port $pid
sleep 0.2
kill -0 "$pid" 2>/dev/null || { echo "$peer died, and somebody else has port $port: $(tail -n 3 "$run"/log)" >&2; exit 1; }
echo "$pid"
