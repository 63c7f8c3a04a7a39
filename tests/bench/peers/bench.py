#!/usr/bin/env python3
"""Runs the peers round-robin over the workloads; one JSON line per run goes to --out.

bench.py --out runs.jsonl [--rounds 3] [--only fanout1k,...] [--peers nchan,nats,...] [--secs 2.5]
A fresh server for every run, pinned to core 0; the load generator on core 1; both at nice -10.
The whole of a run is under `flock` of --lock.
"""
import argparse, ctypes, fcntl, json, os, signal, subprocess, sys, time

here = os.path.dirname(os.path.abspath(__file__))
A = argparse.ArgumentParser()
A.add_argument("--out", required=True)
A.add_argument("--rounds", type=int, default=3)
A.add_argument("--only", default="")
A.add_argument("--peers", default="")
A.add_argument("--secs", default="2.5")
A.add_argument("--lock", default="/tmp/bench.lock")
A.add_argument("--run", default="/tmp/peers/run")
A.add_argument("--nice", type=int, default=-10)
A.add_argument("--load", default=here + "/../load/target/release/load")
a = A.parse_args()

# peer name -> (load generator target, options per workload kind)
T = {
    "nchan": ("nchan", {}), "nchan-tuned": ("nchan", {"fanout": "--via ws"}),
    "nats": ("nats", {}), "nats-js": ("nats", {}),
    "mosquitto": ("mosquitto", {}), "mosquitto-qos1": ("mosquitto", {"*": "--qos 1"}), "mosquitto-p": ("mosquitto", {}),
    "wsnode": ("x0", {}), "uws": ("x0", {}),
    # the product: `x0` at fsync; -os and -mem are its other levels, -b another binary (X0_B) beside it
    "x0": ("x0", {"durable": "--channels 10000"}), "x0-b": ("x0", {"durable": "--channels 10000"}),
    "x0-os": ("x0", {"durable": "--channels 10000"}),
    "x0-mem": ("x0", {"durable": "--channels 10000"}), "x0-mem-b": ("x0", {"durable": "--channels 10000"}),
    "x0-ack16": ("x0", {"*": "--ack-every 16"}), "x0-mem-ack16": ("x0", {"*": "--ack-every 16"}),
    "x0-lpack": ("x0", {"*": "--lp-ack"}), "x0-legacy": ("x0-legacy", {}), "x0-legacy-b": ("x0-legacy", {}), "x0-mem-legacy": ("x0-legacy", {}), "x0-mem-legacy-b": ("x0-legacy", {}),
    "x0-mem-sse": ("x0", {"*": "--sse"}), "x0-token": ("x0", {"*": "--token-secret {run}/secret"}), "x0-token-b": ("x0", {"*": "--token-secret {run}/secret"}),
    "limit": ("limit", {}), "limit-batch": ("limit", {}),
}
if "NCHAN_PORT" in os.environ:
    for peer in ("nchan", "nchan-tuned"):
        T[peer][1]["*"] = " ".join(f"--{k}-port {os.environ['NCHAN_PORT']}" for k in ("ws", "lp", "pub"))
START = {"x0-ack16": "x0", "x0-mem-ack16": "x0-mem", "x0-lpack": "x0", "x0-legacy": "x0", "x0-legacy-b": "x0-b", "x0-mem-legacy": "x0-mem", "x0-mem-legacy-b": "x0-mem-b",
         "x0-mem-sse": "x0-mem", "mosquitto-qos1": "mosquitto"}
X0 = "x0 x0-mem x0-b x0-mem-b".split()
X0WS = X0 + "x0-token x0-token-b x0-mem-sse".split()
X0LP = X0 + "x0-legacy x0-legacy-b x0-mem-legacy x0-mem-legacy-b x0-lpack".split()
LP = "nchan wsnode limit".split()
s = f"--secs {a.secs}"
FEW = "nchan nats mosquitto wsnode uws limit".split()
# One address may hold a quarter of the descriptors: as many clients come from several.
MANY = "--src-ips 8"
ALL = "nchan nchan-tuned nats mosquitto wsnode uws limit limit-batch".split()
BIG = "nchan nchan-tuned nats mosquitto uws limit limit-batch".split()
W = {
    "fanout1k": ("fanout", f"--n 1000 {s}", ALL + X0WS),
    "pairs1k": ("pairs", f"--n 1000 {s}", ALL + ["mosquitto-qos1"] + X0WS + ["x0-os", "x0-ack16", "x0-mem-ack16"]),
    "durable": ("durable", f"--n 1 --window 64 {s}", "nats-js mosquitto-p limit".split() + X0 + ["x0-os"]),
    "idle10k": ("idle", f"--n 10000 --hold 1 {MANY}", ALL + X0),
    "idle1k": ("idle", "--n 1000 --hold 1", FEW + X0),
    "longpoll1k": ("longpoll", f"--n 1000 {s}", LP + X0LP),
    "fanout1k-100": ("fanout", f"--n 1000 --rate 100 {s}", FEW + X0),
    "fanout1k-30": ("fanout", f"--n 1000 --rate 30 {s}", FEW + X0),
    "pairs1k-5k": ("pairs", f"--n 1000 --rate 5000 {s}", FEW + X0 + ["x0-mem-ack16"]),
    "longpoll1k-1k": ("longpoll", f"--n 1000 --rate 1000 {s}", LP + X0LP),
    "churn": ("churn", f"--n 32 {s}", FEW + X0),
    "fanout10k": ("fanout", f"--n 10000 --window 4 --warm 1.5 {MANY} {s}", BIG + X0),
    "fanout10k-3": ("fanout", f"--n 10000 --rate 3 --warm 1.5 {MANY} {s}", BIG + X0),
    "idle-lp10k": ("idle", f"--n 10000 --longpoll --hold 1 {MANY}", LP + X0LP),
    "connect10k": ("idle", f"--n 10000 --connect-batch 10000 --hold 0 {MANY}", ["limit"] + X0),
    "connect-lp10k": ("idle", f"--n 10000 --longpoll --connect-batch 10000 --hold 0 {MANY}", ["limit"] + X0),
    "burst1m": ("fanout", f"--n 1000 --payload 1000000 --window 1 --settle 30 {s}", X0),
    "idle19k": ("idle", f"--n 19000 --hold 1 {MANY}", "nchan nchan-tuned nats mosquitto limit".split() + X0),
    "sockets-1k": ("pairs", f"--n 1000 --rate 5000 {s}", X0), "sockets-5k": ("pairs", f"--n 5000 --rate 5000 {s}", X0),
    "sockets-10k": ("pairs", f"--n 10000 --rate 5000 {MANY} {s}", X0), "sockets-19k": ("pairs", f"--n 18900 --rate 5000 {MANY} {s}", X0),
    "boxes-1k": ("durable", f"--channels 1000 {s}", X0), "boxes-10k": ("durable", f"--channels 10000 {s}", X0),
    "boxes-100k": ("durable", f"--channels 100000 {s}", X0),
}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: servers that we stop are ours to reap
env = dict(os.environ, LOAD=a.load)


def tree(pid):
    kids = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()
    out = [pid]
    for k in kids:
        out += tree(int(k))
    return out


def alive(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def reap():
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


def stop(pid, run):
    pids = tree(pid)
    for sig, wait in ((signal.SIGTERM, 2.0), (signal.SIGKILL, 2.0)):
        for p in pids:
            try:
                os.kill(p, sig)
            except ProcessLookupError:
                pass
        end = time.time() + wait
        while time.time() < end and any(alive(p) for p in pids):
            time.sleep(0.05)
            reap()
        pids = [p for p in pids if alive(p)]
        if not pids:
            break
    reap()


def autogroup(pid):
    try:
        with open(f"/proc/{pid}/autogroup", "w") as f:
            f.write(str(a.nice))
    except OSError:
        pass


def one(name, peer, rnd, out):
    kind, opts, _ = W[name]
    target, extra = T[peer]
    run = f"{a.run}/{peer}"
    def pre():
        # where autogroups are on, nice only counts inside a session: raise the session too
        os.setsid()
        os.nice(a.nice)
        autogroup("self")
    p = subprocess.run([f"{here}/start.sh", START.get(peer, peer), run], env=env, capture_output=True, text=True, preexec_fn=pre)
    row = {"bench": name, "peer": peer, "round": rnd}
    if p.returncode:
        row["failed"] = p.stderr[-300:]
    else:
        pid = int(p.stdout.split()[-1])
        autogroup(pid)
        time.sleep(0.3)
        cmd = f"taskset -c 1 {a.load} {kind} --target {target} --server-pid {pid} {opts} {extra.get(kind, '')} {extra.get('*', '')}".replace("{run}", run)
        load0 = os.getloadavg()[0]
        try:
            r = subprocess.run(cmd.split(), capture_output=True, text=True, timeout=180, preexec_fn=pre)
            try:
                row.update(json.loads(r.stdout))
            except ValueError:
                row["failed"] = (r.stderr + r.stdout)[-300:]
        except subprocess.TimeoutExpired:
            row["failed"] = "timeout"
        finally:
            stop(pid, run)
        row["load1"] = load0
    out.write(json.dumps(row) + "\n")
    out.flush()
    print(name, peer, rnd, row.get("failed") or " ".join(f"{k}={row[k]}" for k in ("msgs_per_s", "cycles_per_s", "server_us_per_msg", "server_us_per_cycle", "p50_ms", "p99_ms", "lost", "rss_per_conn_kb", "connect_s", "rss_idle_kb", "rss_settled_kb", "errors") if k in row), flush=True)


only = a.only.split(",") if a.only else list(W)
with open(a.out, "a") as out:
    for rnd in range(a.rounds):
        for name in only:
            for peer in W[name][2] if not a.peers else [p for p in a.peers.split(",") if p in W[name][2]]:
                if not a.peers and peer.endswith("-b"):
                    continue
                with open(a.lock, "w") as lk:
                    fcntl.flock(lk, fcntl.LOCK_EX)
                    one(name, peer, rnd, out)
