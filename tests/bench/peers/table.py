#!/usr/bin/env python3
"""table.py [--short] runs.jsonl ... : the table in web/docs/measured.md, or the short one in README.md.

One line for each workload: the best other server, and the broker at its levels `fsync` and `memory`. Each figure is the least of
all rounds and their median, since other work on the machine only ever adds. The factor compares least with least. Runs that failed or had
errors are not in it: they are listed behind it, and the exit status is 1.
"""
import json, statistics, sys

# Other servers, as the table names them. `limit` does nothing but write.
OTHERS = {"uws": "uWebSockets", "nats": "NATS", "nats-js": "JetStream", "nchan": "nchan", "mosquitto": "Mosquitto", "wsnode": "Node ws"}
FLOOR = ["limit", "limit-batch"]
CPU, CYCLE, KIB = ("server_us_per_msg", "µs"), ("server_us_per_cycle", "µs"), ("rss_per_conn_kb", "KiB")
WS, LEGACY = ("x0", "x0-mem"), ("x0-legacy", "x0-mem-legacy")
# What a line says, its workload, the figure, and the clients of the broker.
LINES = [
    ("fan-out to 1,000, as fast as it goes, CPU", "fanout1k", CPU, WS),
    ("fan-out to 10,000, as fast as it goes, CPU", "fanout10k", CPU, WS),
    ("fan-out to 10,000, 3 a second, CPU", "fanout10k-3", CPU, WS),
    ("the same, p99", "fanout10k-3", ("p99_ms", "ms"), WS),
    ("fan-out to 1,000, 100 a second, CPU", "fanout1k-100", CPU, WS),
    ("the same, p99", "fanout1k-100", ("p99_ms", "ms"), WS),
    ("1,000 pairs, 64 in flight, CPU", "pairs1k", CPU, WS),
    ("1,000 pairs, 5,000 a second, CPU", "pairs1k-5k", CPU, WS),
    ("the same, p50", "pairs1k-5k", ("p50_ms", "ms"), WS),
    ("1,000 long-polls, 64 in flight, CPU", "longpoll1k", CPU, WS),
    ("the same as the x0 client polls", "longpoll1k", CPU, LEGACY),
    ("connect, receive one, leave, CPU", "churn", CYCLE, WS),
    ("stored sends, 64 in flight, CPU", "durable", CPU, WS),
    ("10,000 idle WebSockets, memory of each", "idle10k", KIB, WS),
    ("10,000 waiting polls, memory of each", "idle-lp10k", KIB, WS),
    ("the same as the x0 client waits", "idle-lp10k", KIB, LEGACY),
    ("10,000 WebSockets at once", "connect10k", ("connect_s", "s"), WS),
    ("10,000 polls at once", "connect-lp10k", ("connect_s", "s"), WS),
    ("1 MB to 1,000 readers: memory 30 s later, times that before", "burst1m", ("settled", ""), WS),
    ("fan-out to 1,000 with tokens, CPU", "fanout1k", CPU, (None, "x0-token")),
    ("1,000 pairs with tokens, CPU", "pairs1k", CPU, (None, "x0-token")),
    ("fan-out to 1,000 event streams, CPU", "fanout1k", CPU, (None, "x0-mem-sse")),
    ("1,000 pairs with event streams, CPU", "pairs1k", CPU, (None, "x0-mem-sse")),
]
SHORT = ["fanout1k", "fanout10k", "pairs1k", "longpoll1k", "churn", "durable", "idle10k", "idle-lp10k"]


def refusal(run):
    """Why a run is not in the table: a server that refuses or drops clients does less."""
    if "failed" in run:
        return run["failed"]
    if run.get("errors") or run.get("dropped_conns"):
        return f"{run['errors']} errors, {run['dropped_conns']} connections dropped: {run['first_error']}"
    if run.get("lost"):
        return f"{run['lost']} messages lost"
    if 0 in (run.get("msgs_per_s"), run.get("cycles_per_s")):
        return "nothing was done"
    return None


def read(files):
    """The runs of the table by workload and server, and what is said of the others."""
    runs, refused = {}, []
    for line in (line for name in files for line in open(name)):
        run = json.loads(line)
        if run.get("rss_idle_kb"):
            run["settled"] = run.get("rss_settled_kb", 0) / run["rss_idle_kb"]
        why = refusal(run)
        if why is None:
            runs.setdefault((run["bench"], run["peer"]), []).append(run)
        else:
            refused.append(f"refused: {run['bench']} {run['peer']}, round {run['round']}: {why}")
    return runs, refused


def number(value):
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}"


def figure(runs, bench, peer, key):
    """The least of all rounds, and their median."""
    values = [run[key] for run in runs.get((bench, peer), []) if key in run]
    return (min(values), statistics.median(values)) if values else None


def text(found, short):
    if found is None:
        return "–"
    least, median = map(number, found)
    return least if short or least == median else f"{least} / {median}"


def line(runs, what, bench, figure_of, ours, short):
    key, unit = figure_of
    found = {peer: figure(runs, bench, peer, key) for peer in [*OTHERS, *FLOOR]}
    others = [(value, OTHERS[peer]) for peer, value in found.items() if value and peer in OTHERS]
    floors = [value for peer, value in found.items() if value and peer in FLOOR]
    best = min(others, default=None)
    own = [figure(runs, bench, peer, key) if peer else None for peer in (*ours, None, None)[:2]]
    if not any(own):
        return
    factor = "–"
    if best:
        factor = " / ".join(f"{value[0] / best[0][0]:.2f}" if value else "–" for value in own)
    cells = [what + (f", {unit}" if unit else ""), f"{best[1]} {text(best[0], short)}" if best else "–"]
    if not short:
        cells.insert(1, text(min(floors, default=None), short))
    print("| " + " | ".join([*cells, *(text(value, short) for value in own), factor]) + " |")


def main(arguments):
    short = "--short" in arguments
    runs, refused = read([name for name in arguments if name != "--short"])
    head = ["", "best other server", "`fsync`", "`memory`", "times the other one"]
    if not short:
        head.insert(1, "only the system calls")
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for what, bench, figure_of, ours in LINES:
        is_short = bench in SHORT and ours in (WS, LEGACY)
        if not short or is_short:
            line(runs, what, bench, figure_of, ours, short)
    bad = {key: sum(run.get(key, 0) for (_, peer), of in runs.items() if peer.startswith("x0") for run in of)
           for key in ("lost", "duplicated", "out_of_order", "misrouted")}
    count = sum(len(of) for (_, peer), of in runs.items() if peer.startswith("x0"))
    print(f"\n{count} runs of the broker: " + ", ".join(f"{value:,} {key.replace('_', ' ')}" for key, value in bad.items()))
    if refused:
        sys.exit("\n".join(refused))


main(sys.argv[1:])
