// The demo: two tabs exchange the form of Example 10 of x0, and the page shows what happens.

import { connect } from "/client.js";

/** The topic in which tabs announce themselves. The messages are volatile, so nothing is stored. */
const WHO = "x0-demo/who";

/** How often a tab announces itself, and after how much silence it counts as gone, in milliseconds. */
const ANNOUNCE = 4_000;
const GONE = 11_000;

const LOG_LINES = 200;

const COLOURS = ["Amber", "Blue", "Coral", "Green", "Indigo", "Olive", "Ruby", "Silver"];
const ANIMALS = ["Badger", "Crane", "Dolphin", "Falcon", "Heron", "Lynx", "Otter", "Raven", "Sparrow", "Tern", "Vole", "Wren"];

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** The session of this tab. It stays the same when the tab is reloaded; `?session=…` chooses one. */
function ownSession() {
  const asked = new URLSearchParams(location.search).get("session");
  if (asked) return asked;
  const kept = sessionStorage.getItem("x0-demo-session");
  const session = kept ?? Array.from(crypto.getRandomValues(new Uint8Array(6)), (b) => b.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("x0-demo-session", session);
  return session;
}

/** @param {string} text */
function hash(text) {
  let hash = 2166136261;
  for (const char of text) hash = Math.imul(hash ^ (char.codePointAt(0) ?? 0), 16777619) >>> 0;
  return hash;
}

/** A name that people recognise. @param {string} session */
function nameOf(session) {
  const number = hash(session);
  return `${COLOURS[number % COLOURS.length]} ${ANIMALS[(number >>> 8) % ANIMALS.length]}`;
}

/** The name of a sender: a tab, or in `token` mode also a user. @param {string} from */
function senderOf(from) {
  return token === undefined || from.startsWith("h-") ? nameOf(from) : from;
}

/** @param {string} tag @param {string} className @param {...(Node | string)} children */
function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

/** @param {string} session */
function avatar(session) {
  const initials = nameOf(session).split(" ").map((word) => word[0]).join("");
  return element("span", `avatar c${hash(session) % 8}`, initials);
}

/** The token, from the fragment of the address, which browsers do not send: `#token=…` */
const token = new URLSearchParams(location.hash.slice(1)).get("token") ?? sessionStorage.getItem("x0-demo-token") ?? undefined;
if (token !== undefined && location.hash) {
  // Neither visible nor in the history. A reload keeps it.
  sessionStorage.setItem("x0-demo-token", token);
  history.replaceState(null, "", location.pathname + location.search);
}

// Another token in the address of this page: the browser does not load the page again by itself.
addEventListener("hashchange", () => new URLSearchParams(location.hash.slice(1)).has("token") && location.reload());

const session = token === undefined ? ownSession() : undefined;

/** The name by which others know this tab: its session, or in `token` mode its handle. */
let me = session ?? "";

// ── the log ─────────────────────────────────────────────────────────────────────────────────────────────

/** The lines of messages that are not acknowledged, by seq. @type {Map<number, HTMLElement>} */
const unacknowledged = new Map();

/** @param {string} kind @param {string} label @param {string} text @param {number} [seq] @param {string} [state] */
function log(kind, label, text, seq, state) {
  const time = element("time", "", new Date().toLocaleTimeString([], { hour12: false }));
  const mark = element("b", "", state ?? "");
  const numbers = seq === undefined ? element("span", "seq", mark) : element("span", "seq", `seq ${seq} · `, mark);
  const line = element("li", kind, time, element("span", "kind", label), element("span", "text", text), numbers);
  if (seq !== undefined) line.dataset.seq = String(seq);
  $("log").prepend(line);
  while ($("log").children.length > LOG_LINES) $("log").lastChild.remove();
  return mark;
}

/** @param {any} payload */
function summary(payload) {
  const form = payload?.payload ?? payload;
  if (form && typeof form === "object" && "Form1" in form) {
    const { Form1, Form2, Form3, Form4 } = form;
    return [Form1 ? "☑" : "☐", Form2 || "–", Form3, Form4 || "–"].map(String).join(" · ");
  }
  return JSON.stringify(payload);
}

// ── the form ────────────────────────────────────────────────────────────────────────────────────────────

const FIELDS = ["Form1", "Form2", "Form3", "Form4"];

function readForm() {
  return Object.fromEntries(FIELDS.map((id) => [id, $(id).type === "checkbox" ? $(id).checked : $(id).value]));
}

/** @param {Record<string, any>} data */
function writeForm(data) {
  for (const id of FIELDS) {
    if (!(id in data)) continue;
    if ($(id).type === "checkbox") $(id).checked = data[id] === true;
    else $(id).value = String(data[id]);
  }
}

/** @param {string} text @param {"good" | "bad" | ""} kind */
function outcome(text, kind) {
  $("outcome").textContent = text;
  $("outcome").dataset.kind = kind;
}

$("form").addEventListener("submit", async (/** @type {SubmitEvent} */ event) => {
  event.preventDefault();
  const to = chosen;
  if (!to) return;
  // The message of Example 10 of x0: an x0 page that receives it fills its form too.
  const message = { "msg-type": "net-message", "method-id": "set-data", "dst-object": "FormlistExchangeData", payload: readForm() };
  const mark = log("out", "Sent", `to ${nameOf(to)}: ${summary(message)}`, undefined, "waiting");
  outcome("Sending…", "");
  try {
    const { seq } = await client.send({ session: to }, message);
    mark.before(`seq ${seq} · `);
    mark.textContent = "stored";
    mark.className = "done";
    outcome(`Stored for ${nameOf(to)}`, "good");
  } catch (error) {
    mark.textContent = "refused";
    const text = error instanceof Error ? error.message : String(error);
    outcome(text, "bad");
    log("bad", "Error", text);
  }
});

// ── who is here ─────────────────────────────────────────────────────────────────────────────────────────

/** When each other tab last announced itself. @type {Map<string, number>} */
const others = new Map();
let chosen = "";
let drawn = "";

function draw() {
  const now = Date.now();
  for (const [other, heard] of others) if (now - heard > GONE) others.delete(other);
  const all = [...others.keys()].sort();
  // A receiver that is gone stays chosen: messages wait for it.
  if (!chosen && all.length > 0) chosen = all[0];
  const receivers = chosen && !others.has(chosen) ? [chosen, ...all] : all;
  const key = JSON.stringify([me, receivers, all, chosen, $("no-token").hidden]);
  if (key === drawn) return;
  drawn = key;
  $("receivers").replaceChildren(...receivers.map((other) => {
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "to", value: other, checked: other === chosen });
    input.addEventListener("change", () => ((chosen = other), draw()));
    const label = nameOf(other) + (others.has(other) ? "" : " (away)");
    return element("label", "", input, element("span", "", avatar(other), label));
  }));
  $("alone").hidden = receivers.length > 0 || !$("no-token").hidden;
  $("send").disabled = !chosen;
  const person = (/** @type {string} */ id, /** @type {string} */ note) =>
    element("li", "", avatar(id), nameOf(id), " ", element("small", "", note));
  $("people").replaceChildren(person(me, "this tab"), ...all.map((other) => person(other, other)));
  $("count").textContent = String(all.length + 1);
}

/** @param {"here" | "new" | "gone"} what */
function announce(what) {
  if (client.status.state === "online") client.send({ topic: WHO }, { session: me, what }, { volatile: true }).catch(() => {});
}

/** Says what is wrong with the token of this page, or that nothing is. @param {string} text */
function tokenTrouble(text) {
  $("no-token").hidden = text === "";
  $("token-trouble").textContent = text;
  draw();
}

// ── the connection ──────────────────────────────────────────────────────────────────────────────────────

/** Messages that were stored before this moment waited while this tab was away. */
let awayUntil = 0;
let wentAway = 0;

const client = connect({
  session,
  token,
  onMessage(message) {
    const away = wentAway > awayUntil ? Infinity : awayUntil;
    const waited = wentAway > 0 && message.ts >= wentAway && message.ts <= away ? ", kept while you were away" : "";
    const mark = log("in", "Received", `from ${message.from ? senderOf(message.from) : "a backend"}${waited}: ${summary(message.payload)}`, message.seq, message.seq === undefined ? "volatile" : "not acknowledged yet");
    if (message.seq !== undefined) unacknowledged.set(message.seq, mark);
    const { payload } = message;
    if (payload?.["method-id"] === "set-data" && payload.payload) writeForm(payload.payload);
    // A user cannot be chosen as a tab.
    if (message.from && message.from !== me && !chosen && (token === undefined || message.from.startsWith("h-"))) chosen = message.from;
    draw();
  },
  onAck(through) {
    for (const [seq, mark] of unacknowledged) {
      if (seq > through) continue;
      mark.textContent = "acknowledged";
      mark.className = "done";
      unacknowledged.delete(seq);
    }
  },
  onGap({ reason }) {
    log("note", "Gap", `some messages are not coming: ${reason}`);
  },
  onError(error) {
    log("bad", "Error", error.message);
    const { code } = /** @type {{code?: string}} */ (error);
    if (token === undefined) return;
    if (code === "unauthorized") tokenTrouble(`The broker refuses the token of this page: ${error.message}.`);
    if (code === "forbidden") tokenTrouble(`The token of this page does not allow what the demo does: ${error.message}.`);
  },
  onStatus({ state, transport, reason, welcome }) {
    const words = { connecting: "Connecting…", online: transport === "poll" ? "Online · long-poll" : "Online · WebSocket", offline: "Offline", closed: "Closed" };
    if ($("status-text").textContent !== words[state]) log("note", "Connection", reason ? `${words[state]} (${reason})` : words[state]);
    $("status").dataset.state = state;
    $("status-text").textContent = words[state];
    $("transport").textContent = transport === "websocket" ? "WebSocket" : transport === "poll" ? "Long-poll" : "none";
    $("transport").dataset.transport = transport ?? "";
    if (welcome?.durability) {
      const kept = { fsync: "on disk, synced", os: "on disk", memory: "in memory, until the server stops", replicated: "on a majority of servers", unreplicated: "on one server of the cluster" };
      $("durability").textContent = kept[/** @type {"fsync"} */ (welcome.durability)] ?? welcome.durability;
      $("server").textContent = welcome.server ?? "x0-msg-server";
      $("node").textContent = welcome.node ?? "";
      // Each poll may be at another one.
      $("at-node").hidden = welcome.node === undefined || transport !== "websocket";
    }
    if (welcome?.handle && welcome.handle !== me) introduce(welcome.handle);
    if (state === "connecting") tokenTrouble("");
    if (state === "closed" && token !== undefined) tokenTrouble(`The broker refuses the token of this page: ${reason}.`);
    if (state === "closed" && token === undefined && welcome === undefined) {
      tokenTrouble("This broker needs a token.");
      $("from-shell").hidden = true;
    }
    draw();
    if (state === "online") {
      if (wentAway > awayUntil) awayUntil = Date.now();
      announce("new");
    } else if (wentAway <= awayUntil) {
      wentAway = Date.now();
    }
  },
});

client.subscribe(WHO, ({ payload }) => {
  const { session: other, what } = payload ?? {};
  if (typeof other !== "string" || other === me || other.length > 256) return;
  if (what === "gone") others.delete(other);
  else others.set(other, Date.now());
  if (what === "new") announce("here");
  draw();
});

setInterval(() => (announce("here"), draw()), ANNOUNCE);
addEventListener("pagehide", () => {
  const body = JSON.stringify({ to: { topic: WHO }, payload: { session: me, what: "gone" }, volatile: true });
  navigator.sendBeacon("/v1/messages", body);
});

$("offline").addEventListener("change", () => {
  if ($("offline").checked) {
    announce("gone");
    // The announcement is sent before the connection closes.
    setTimeout(() => client.pause(), 50);
  } else {
    client.resume();
  }
});
for (const radio of document.querySelectorAll("input[name=use]")) {
  radio.addEventListener("change", (event) => client.use(/** @type {any} */ (event.target).value));
}
$("clear").addEventListener("click", () => $("log").replaceChildren());

/** Shows the name of this tab. @param {string} id */
function introduce(id) {
  me = id;
  $("session-word").textContent = session === undefined ? "Handle" : "Session";
  const name = nameOf(id);
  $("name").replaceChildren(avatar(id), " ", name);
  $("session").textContent = id;
  document.title = `${name} · x0-msg-server`;
  const server = location.port === "8080" && location.hostname === "127.0.0.1" ? "" : ` --server ${location.origin}`;
  const credential = token === undefined ? "" : " --token-file FILE";
  $("shell").textContent = `x0-msg-server send --to ${id} '{"hello":1}'${credential}${server}`;
  $("from-shell").hidden = false;
  draw();
}

if (session === undefined) draw();
else introduce(session);
