// The dashboard: figures every two seconds, lists, and what an operator may do.

import { Figures } from "/admin-figures.js";
import { bytes, count, element, quantile, rate, seconds, show } from "/admin-charts.js";
import { ask, forgetKey, hasKey, keepKey, Refused } from "/admin-api.js";
import { begin as beginActions } from "/admin-actions.js";

/** How often the figures are read, in milliseconds. */
const EVERY = 2_000;

/** From this part of a limit on it is shown as near, and as very near. */
const NEAR = 0.75;
const VERY_NEAR = 0.9;

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** A figure as it is. @param {string} name @param {Record<string, string>} [labels] */
const gauge = (name, labels) => (/** @type {any} */ { figures }) => figures.sum(name, labels) ?? null;

/** @param {string} name */
const counter = (name) => rate(({ figures }) => figures.sum(name));

/** @param {string} name @param {number} part */
const time = (name, part) => quantile(({ figures }) => figures.histogram(name), part);

/** @param {string} transport */
const readers = (transport) => gauge("x0_msg_subscribers", { kind: "mailbox", transport });

const sample = show($("charts"), [
  {
    title: "Messages in a second",
    format: count,
    lines: [
      { name: "accepted", color: 0, value: counter("x0_msg_messages_accepted_total") },
      { name: "delivered", color: 1, value: counter("x0_msg_messages_delivered_total") },
      { name: "refused", color: 3, value: counter("x0_msg_messages_refused_total") },
    ],
  },
  {
    title: "From commit to readers",
    format: seconds,
    lines: [
      { name: "p50", color: 0, value: time("x0_msg_delivery_seconds", 0.5) },
      { name: "p99", color: 1, value: time("x0_msg_delivery_seconds", 0.99) },
    ],
  },
  {
    title: "Readers of mailboxes",
    format: count,
    lines: [
      { name: "WebSocket", color: 0, value: readers("websocket") },
      { name: "events", color: 1, value: readers("sse") },
      { name: "long-poll", color: 2, value: readers("poll") },
      { name: "x0", color: 3, value: readers("legacy") },
    ],
  },
  { title: "Stored", format: bytes, lines: [{ name: "bytes of messages", color: 0, value: gauge("x0_msg_stored_bytes") }] },
  { title: "Memory of the process", format: bytes, lines: [{ name: "resident", color: 2, value: gauge("process_resident_memory_bytes") }] },
  {
    title: "Commits",
    format: seconds,
    lines: [
      { name: "p50", color: 0, value: time("x0_msg_commit_seconds", 0.5) },
      { name: "p99", color: 1, value: time("x0_msg_commit_seconds", 0.99) },
      { name: "disk p99", color: 2, value: time("x0_msg_commit_sync_seconds", 0.99) },
    ],
  },
]);

// ── the figures ─────────────────────────────────────────────────────────────────────────────────────────

/** @param {string} name @param {string} value */
const fact = (name, value) => element("div", "", element("dt", "", name), element("dd", "", value));

/** @param {number} milliseconds */
function duration(milliseconds) {
  const minutes = Math.floor(milliseconds / 60_000);
  const [days, hours] = [Math.floor(minutes / 1440), Math.floor(minutes / 60) % 24];
  if (days > 0) return `${days} d ${hours} h`;
  return hours > 0 ? `${hours} h ${minutes % 60} min` : minutes > 0 ? `${minutes} min` : `${Math.floor(milliseconds / 1000)} s`;
}

/** @param {any} stats */
function showFacts(stats) {
  const facts = [
    ["Version", stats.server.replace(/^.*\//, "")],
    ["Durability", stats.durability],
    ["Access", stats.auth],
    ["Runs for", duration(stats.ts - 1000 * (stats.figures.sum("process_start_time_seconds") ?? stats.ts / 1000))],
  ];
  const connections = stats.figures.sum("x0_msg_connections");
  if (connections !== undefined) facts.push(["Connections", count(connections)]);
  if (stats.node !== undefined) facts.unshift(["Node", stats.node]);
  $("facts").replaceChildren(...facts.map(([name, value]) => fact(name, value)));
  $("about").textContent = stats.node === undefined ? "What the broker does now." : `What node ${stats.node} of the cluster does now.`;
  $("charts-scope").textContent =
    stats.node === undefined ? "All figures are of this broker." : "Charts, limits, refusals and warnings are of this node alone. Stored bytes, users and registered sessions are those of the cluster.";
  $("server").textContent = stats.server;
  $("status").dataset.state = stats.status === "ok" ? "online" : "connecting";
  $("status-text").textContent = stats.status === "ok" ? "Well" : stats.status;
  $("failing").hidden = stats.failing.length === 0;
  $("failing").textContent = stats.failing.join(" · ");
}

/** The figures of limits of the whole broker: how much is used, and the limit where that is a figure. @type {Record<string, string[]>} */
const USED = {
  store: ["x0_msg_stored_bytes", "x0_msg_store_limit_bytes"],
  append_queue: ["x0_msg_append_queue_messages"],
  memory_budget: ["x0_msg_memory_budget_used_bytes", "x0_msg_memory_budget_bytes"],
  open_files: ["process_open_fds", "process_max_fds"],
};

/** The limits, with their figures: the nearest first, then those that have refused most. @param {any} stats */
function limitsOf({ limits, figures }) {
  const files = { name: "open_files", setting: "LimitNOFILE, ulimit -n", unit: "count" };
  const all = [...limits, files].map((limit) => {
    const [used, most] = USED[limit.name] ?? [];
    const refused = figures.sum("x0_msg_limit_refusals_total", { limit: limit.name }) ?? 0;
    return { ...limit, used: used && figures.sum(used), limit: (most && figures.sum(most)) ?? limit.limit, refused };
  });
  const told = new Set(all.map(({ name }) => name));
  // Shares, and other limits that have refused something.
  for (const { labels, value } of figures.byName.get("x0_msg_limit_refusals_total") ?? []) {
    if (value > 0 && !told.has(labels.limit)) all.push({ name: labels.limit, setting: "", unit: "count", used: undefined, limit: undefined, refused: value });
  }
  const part = (/** @type {any} */ { used, limit }) => (used === undefined || !limit ? -1 : used / limit);
  return all.sort((a, b) => part(b) - part(a) || b.refused - a.refused);
}

/** A limit, with a meter if it is one of the whole broker. @param {any} figures */
function limitLine({ name, used, limit, unit, setting, refused }) {
  const format = unit === "bytes" ? bytes : count;
  const title = name.replaceAll("_", " ");
  const most = limit === undefined ? "" : format(limit);
  const text = used === undefined ? most : `${format(used)}${most && ` of ${most} · ${Math.floor((100 * used) / limit)} %`}`;
  const line = element("li", "", element("div", "line", element("span", "", title), element("span", "used", text)));
  if (used !== undefined && limit > 0) {
    const meter = document.createElement("meter");
    Object.assign(meter, { min: 0, max: limit, low: limit * NEAR, high: limit * VERY_NEAR, optimum: 0, value: used });
    meter.setAttribute("aria-label", title);
    line.append(meter);
  }
  const small = element("small", "", setting);
  if (refused > 0) small.append(setting && " · ", element("b", "refused", `${count(refused)} refused`));
  line.append(small);
  return line;
}

/** What helps against refusals of each code. The caller was told more: the field and the limit. @type {Record<string, string>} */
const CURES = {
  bad_request: "The caller must mend its request.",
  too_large: "Send less, or raise --max-payload.",
  unauthorized: "The caller must show a valid token or API key.",
  forbidden: "The token or API key needs more permissions.",
  not_found: "The receiver is not registered, or has ended.",
  mailbox_full: "The receiver must read and acknowledge, or raise --mailbox-messages and --mailbox-bytes.",
  rate_limited: "The caller must slow down, or raise --send-rate or the limits of connections.",
  quota_exceeded: "One author has taken its share: its receivers must read, or raise --store-limit.",
  overloaded: "Add room: --memory-budget, --append-queue, or a faster disk.",
  unavailable: "The store or what it needs does not work: see the warnings and /healthz.",
};

/** @param {any} event */
function eventLine({ ts, level, message, fields, count }) {
  const time = element("time", "", new Date(ts).toLocaleTimeString([], { hour12: false }));
  const head = element("div", "head", time, element("span", "level", level));
  if (count > 1) head.append(element("span", "", `${count} times`));
  const line = element("li", level, head, element("div", "", message));
  const cure = CURES[/(?:^| )code=(\w+)/.exec(fields)?.[1] ?? ""];
  if (cure) line.append(element("div", "", cure));
  if (fields) line.append(element("div", "fields", fields.replace(" unlogged=0", "")));
  return line;
}

/** What was shown last, so that nothing is drawn again that did not change: a reader may have scrolled. */
let shownEvents = "";

/** @param {any} answer */
function showStats(answer) {
  const stats = { ...answer, figures: new Figures(answer.figures) };
  showFacts(stats);
  $("limits").replaceChildren(...limitsOf(stats).map(limitLine));
  const events = JSON.stringify(stats.events);
  if (events !== shownEvents) $("events").replaceChildren(...stats.events.map(eventLine));
  shownEvents = events;
  sample(stats);
}

// ── the key ─────────────────────────────────────────────────────────────────────────────────────────────

/** @param {string} error */
function askForKey(error) {
  $("dashboard").hidden = true;
  $("login").hidden = false;
  $("login-error").textContent = error;
  $("status").dataset.state = "closed";
  $("status-text").textContent = "Not signed in";
  $("forget").hidden = true;
  $("key").focus();
}

$("login").addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  keepKey($("key").value.trim());
  $("key").value = "";
  refresh();
});

$("forget").addEventListener("click", () => {
  forgetKey();
  location.reload();
});

/** The timer of the next refresh. @type {ReturnType<typeof setTimeout> | undefined} */
let timer;

/** Reads the figures and shows them, and again until there is a reason not to. */
async function refresh() {
  clearTimeout(timer);
  try {
    const stats = await ask("GET", "/v1/ops/stats");
    // Charts take the size of what is visible.
    $("login").hidden = true;
    $("dashboard").hidden = false;
    showStats(stats);
    $("forget").hidden = !hasKey();
  } catch (error) {
    if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
      const wrong = hasKey() ? error.message : "";
      forgetKey();
      return askForKey(wrong);
    }
    $("status").dataset.state = "offline";
    $("status-text").textContent = "No answer";
  }
  timer = setTimeout(refresh, EVERY);
}

// A page that nobody looks at asks for nothing.
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden && $("login").hidden) refresh();
});

beginActions();
refresh();
