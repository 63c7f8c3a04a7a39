// What an operator looks for and does: lists, a session, its end, a test message. Names of users are shown as text only.

import { bytes, element } from "/admin-charts.js";
import { ask } from "/admin-api.js";

/** Items of one page of a list. */
const PAGE = 50;

/** @param {string} id @returns {any} */
const $ = (id) => document.getElementById(id);

/** @param {any} place @param {string} text @param {"good" | "bad" | ""} kind */
function say(place, text, kind) {
  place.textContent = text;
  place.dataset.kind = kind;
}

/** @param {unknown} error */
const reason = (error) => (error instanceof Error ? error.message : String(error));

/** @param {any} connections */
const total = (connections) => Object.values(connections).reduce((sum, count) => sum + count, 0);

/** A button in a table that leads to a form. @param {string} text @param {() => void} action */
function link(text, action) {
  const button = element("button", "", text);
  button.setAttribute("type", "button");
  button.addEventListener("click", action);
  return button;
}

/** @param {string} name @param {string} kind */
function writeTo(name, kind) {
  $("to-kind").value = kind;
  $("to-name").value = name;
  $("payload").focus();
}

/** @param {string} name */
function lookUp(name) {
  $("session").value = name;
  $("look-up").requestSubmit();
}

/** The columns of each list: heading, and the cell of an item. @type {Record<string, [string, (item: any) => Node | string | undefined][]>} */
const COLUMNS = {
  users: [
    ["User", (item) => link(item.user, () => writeTo(item.user, "user"))],
    ["Sessions", (item) => String(item.sessions)],
    ["Connections", (item) => String(total(item.connections))],
  ],
  topics: [
    ["Topic", (item) => link(item.topic, () => writeTo(item.topic, "topic"))],
    ["Connections", (item) => String(total(item.connections))],
    ["Stored", (item) => item.stored?.toString()],
    ["Bytes", (item) => (item.bytes === undefined ? undefined : bytes(item.bytes))],
  ],
  sessions: [
    ["Session", (item) => link(item.session ?? item.handle, () => lookUp(item.session ?? item.handle))],
    ["User", (item) => item.user],
    ["Connections", (item) => String(total(item.connections))],
    ["Unread", (item) => item.pending?.toString()],
  ],
};

/** Which columns hold names; the others hold numbers. */
const NAMES = ["User", "Topic", "Session"];

/** @param {string} tag @param {string} heading @param {Node | string} content */
const cell = (tag, heading, content) => element(tag, NAMES.includes(heading) ? "" : "number", content);

/** The list that is shown, and where it goes on. */
let shown = { kind: "users", prefix: "", next: "" };

/** Reads a page of the list that is shown. @param {boolean} first */
async function readPage(first) {
  const { kind, prefix, next } = shown;
  const query = new URLSearchParams({ limit: String(PAGE) });
  if (prefix && kind !== "sessions") query.set("prefix", prefix);
  if (!first) query.set("cursor", next);
  try {
    const page = await ask("GET", `/v1/${kind}?${query}`);
    const columns = COLUMNS[kind];
    const rows = page[kind].map((/** @type {any} */ item) => element("tr", "", ...columns.map(([heading, of]) => cell("td", heading, of(item) ?? "–"))));
    const [head, body] = [$("list").tHead, $("list").tBodies[0]];
    if (first) {
      head.replaceChildren(element("tr", "", ...columns.map(([heading]) => cell("th", heading, heading))));
      body.replaceChildren();
    }
    body.append(...rows);
    $("list").hidden = body.rows.length === 0;
    $("more").hidden = page.next === undefined;
    shown = { ...shown, next: page.next ?? "" };
    const where = page.scope === "cluster" ? "of the cluster; connections of this node" : page.node === undefined ? "" : "known to this node";
    const number = `${body.rows.length}${page.next === undefined ? "" : " or more"}`;
    say($("list-scope"), body.rows.length === 0 ? "Nothing found." : `${number} ${kind} ${where}`.trim(), "");
  } catch (error) {
    say($("list-scope"), reason(error), "bad");
  }
}

/** @param {string} name @param {string} value */
const fact = (name, value) => element("div", "", element("dt", "", name), element("dd", "", value));

/** @param {any} info */
function showSession(info) {
  const transports = Object.entries(info.connections).filter(([, count]) => count > 0);
  const facts = [
    ["Session", info.session],
    ["Handle", info.handle],
    ["User", info.user ?? "none"],
    ["Registered", info.expires === undefined ? "no" : `until ${new Date(info.expires).toLocaleString([], { hour12: false })}`],
    ["Connections", transports.map(([name, count]) => `${count} ${name}`).join(", ") || "none"],
    ["Unread", `${info.pending}${info.bytes === undefined ? "" : `, ${bytes(info.bytes)}`}`],
    ["Acknowledged", `up to ${info.acknowledged}, newest ${info.newest}`],
    ...info.readers.map((/** @type {any} */ reader) => ["Reader", `${reader.transport}, sent up to ${reader.sent}`]),
  ];
  $("session-facts").replaceChildren(...facts.filter(([, value]) => value !== undefined).map(([name, value]) => fact(name, value)));
}

/** Looks the session up that the form names. */
async function lookSessionUp() {
  const name = $("session").value;
  $("session-facts").hidden = $("end").hidden = true;
  say($("session-outcome"), "", "");
  try {
    showSession(await ask("GET", `/v1/sessions/${encodeURIComponent(name)}`));
    $("session-facts").hidden = $("end").hidden = false;
    $("end").dataset.session = name;
  } catch (error) {
    say($("session-outcome"), reason(error), "bad");
  }
}

/** Ends the session that is shown. */
async function endSession() {
  const name = $("end").dataset.session;
  $("confirm-text").textContent = `The connections of ${name} are closed, and what waits for it is deleted.`;
  $("confirm").returnValue = "";
  $("confirm").showModal();
  await new Promise((closed) => $("confirm").addEventListener("close", closed, { once: true }));
  if ($("confirm").returnValue !== "end") return;
  try {
    await ask("DELETE", `/v1/ops/sessions/${encodeURIComponent(name)}`);
    $("session-facts").hidden = $("end").hidden = true;
    say($("session-outcome"), "The session has ended.", "good");
  } catch (error) {
    say($("session-outcome"), reason(error), "bad");
  }
}

async function sendTest() {
  const [outcome, kind, name] = [$("test-outcome"), $("to-kind").value, $("to-name").value];
  let payload;
  try {
    payload = JSON.parse($("payload").value);
  } catch {
    return say(outcome, "The payload is not JSON.", "bad");
  }
  try {
    const sent = await ask("POST", "/v1/ops/messages", { to: { [kind]: name }, payload });
    say(outcome, sent.sessions === undefined ? `Stored with seq ${sent.seq}.` : `Stored in ${sent.sessions} mailboxes.`, "good");
  } catch (error) {
    say(outcome, reason(error), "bad");
  }
}

/** @param {string} form @param {() => unknown} action */
function onSubmit(form, action) {
  $(form).addEventListener("submit", (/** @type {SubmitEvent} */ event) => {
    event.preventDefault();
    action();
  });
}

/** Begins to listen to the forms. */
export function begin() {
  const list = () => {
    const kind = /** @type {any} */ (document.querySelector("input[name=list]:checked")).value;
    shown = { kind, prefix: $("prefix").value, next: "" };
    readPage(true);
  };
  onSubmit("search", list);
  for (const radio of document.querySelectorAll("input[name=list]")) {
    // There is no prefix of a handle that says anything.
    radio.addEventListener("change", (event) => ($("prefix").disabled = /** @type {any} */ (event.target).value === "sessions"));
  }
  $("more").addEventListener("click", () => readPage(false));
  onSubmit("look-up", lookSessionUp);
  $("end").addEventListener("click", endSession);
  onSubmit("test", sendTest);
}
