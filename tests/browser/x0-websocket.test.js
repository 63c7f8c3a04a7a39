// /x0.js in a page that offers what an x0 page offers (x0-page.js), under x0's own names.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { chromium } from "playwright-core";
import { DEADLINE, binary, broker, browserArgs, browserPath, proxy, shared } from "./harness.js";

const STAND_IN = readFileSync(new URL("x0-page.js", import.meta.url), "utf8");
const BROKER = "http://x0-msg-server.x0.localnet:8080";
const KEY = "a-key-of-the-backend-that-logs-pages-in";

/** The server of an x0 application. Parameter `tag` of a page is the tag of the script, "" for none. */
async function application() {
  const lost = [];
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://x0-app.x0.localnet");
    if (url.pathname.startsWith("/python/")) lost.push(url.search);
    const tag = url.searchParams.get("tag") ?? `<script src="${BROKER}/x0.js"></script>`;
    response.setHeader("content-type", "text/html");
    response.end(`<!doctype html><html><head><link rel="icon" href="data:,"><script>${STAND_IN}</script>${tag}</head><body onload="Init()"></body></html>`);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { lost, address: `127.0.0.1:${server.address().port}`, stop: () => (server.closeAllConnections(), server.close()) };
}

/** A Chromium in which x0's names lead to these addresses. */
const x0Browser = (server, app) =>
  chromium.launch({
    executablePath: browserPath,
    args: [
      ...browserArgs,
      `--host-resolver-rules=MAP x0-msg-server.x0.localnet:8080 ${server}, MAP x0-app.x0.localnet:80 ${app}, MAP x0-other.x0.localnet:80 ${app}`,
    ],
  });

const started = shared(async () => {
  const server = await broker("127.0.0.1:0", "--poll-timeout", "2s");
  const app = await application();
  return { server, app, browser: await x0Browser(server.address, app.address) };
});

/** An x0 page of this session. Errors that nobody catches fail the test. */
async function x0Page(session, { context, tag, host = "x0-app.x0.localnet", browser = started.browser } = {}) {
  const page = await (context ?? (await browser.newContext())).newPage();
  page.setDefaultTimeout(DEADLINE);
  page.on("pageerror", (error) => assert.fail(error));
  const transports = [];
  page.on("websocket", () => transports.push("websocket"));
  page.on("request", (request) => transports.push(new URL(request.url()).pathname));
  const query = new URLSearchParams({ ...(session === null ? {} : { session }), ...(tag === undefined ? {} : { tag }) });
  await page.goto(`http://${host}/?${query}`);
  return Object.assign(page, { transports });
}

const got = (page) => page.evaluate(() => got);
const gotAll = (page, count) => page.waitForFunction((count) => got.length >= count, count).then(() => got(page));

const send = async (to, payload, { url = started.server.url, from = "sender", ...more } = {}) => {
  const answer = await fetch(`${url}/v1/messages?session=${from}`, { method: "POST", body: JSON.stringify({ to, payload, ...more }) });
  assert.equal(answer.status, 200, await answer.clone().text());
};

test("a page of x0 receives over WebSocket, acknowledges, and never polls", async () => {
  const page = await x0Page("W1");
  await send({ session: "W1" }, { n: 1 }, { from: "W2", id: "1", receipt: true });
  assert.deepEqual(await gotAll(page, 1), ['{"n":1,"session_src":"W2"}']);
  const [receipt] = (await (await fetch(`${started.server.url}/v1/messages?session=W2&wait=30`)).json()).messages;
  assert.equal(receipt.state, "acknowledged");
  assert.ok(page.transports.includes("websocket"), page.transports.join());
  assert.equal(await page.evaluate(() => polls), 0);
  await page.context().close();
});

test("a page gets exactly what the poll of another tab of the session gets", async () => {
  const context = await started.browser.newContext();
  const polling = await x0Page("P1", { context, tag: "" });
  const reading = await x0Page("P1", { context });
  await polling.waitForFunction(() => polls > 0);
  await reading.waitForFunction(() => performance.getEntriesByType("resource").some(({ name }) => name.endsWith("/client.js")));
  const payloads = [
    { n: 1 },
    { session_src: "forged", z: 1, a: { session_src: "kept" } },
    [1, [2], { session_src: "x" }],
    "text",
    7,
    null,
    true,
    {},
    { payload: { n: 2 } },
    { "": 0, "ä\u2028€😀": "\u0000\ud83d", "10": 1, "9": 2, constructor: 1 },
    { "msg-type": "net-message", "switch-screen-id": "two", "fire-events": ["E1", "E2"] },
    { deep: [[[[[[]]]]]], number: 1e21, negative: -0.5 },
  ];
  for (const payload of payloads) await send({ session: "P1" }, payload);
  const sender = await x0Page("P2");
  assert.deepEqual(JSON.parse(await sender.evaluate(() => sendForm("P1", { Form1: true, Form2: 'line 1\nline 2 äöü € 😀 "quoted" \\ /' }))), { messages: null, status: "ok" });
  await sender.evaluate(() => new sysObjButton({ Saved: "P1" }).fireNetEvents());
  const nameless = await fetch(`${started.server.url}/v1/messages`, { method: "POST", body: JSON.stringify({ to: { session: "P1" }, payload: { n: 3 } }) });
  assert.equal(nameless.status, 200);
  const count = payloads.length + 3;
  const [one, two] = [await gotAll(polling, count), await gotAll(reading, count)];
  assert.equal(one.length, count);
  assert.deepEqual(two, one);
  assert.equal(await reading.evaluate(() => polls), 0);
  assert.deepEqual(await reading.evaluate(() => events), ["E1", "E2", "Saved"]);
  for (const page of [polling, sender]) await page.context().close();
});

test("pages exchange forms and net events both ways, and no proxy rule is needed", async () => {
  const [a, b] = [await x0Page("F1"), await x0Page("F2")];
  for (const [from, to, session] of [[a, b, "F2"], [b, a, "F1"]]) {
    await from.evaluate((to) => sendForm(to, { Form2: "hello" }), session);
    await from.evaluate((to) => new sysObjButton({ First: to, Second: to }).fireNetEvents(), session);
    const [form] = await gotAll(to, 3);
    assert.equal(JSON.parse(form).payload.Form2, "hello");
    assert.deepEqual(await to.evaluate(() => events), ["First", "Second"]);
  }
  assert.deepEqual(started.app.lost, []);
  for (const page of [a, b]) await page.context().close();
});

test("two tabs of a session both receive everything, in order", async () => {
  const context = await started.browser.newContext();
  const tabs = [await x0Page("T1", { context }), await x0Page("T1", { context })];
  for (const tab of tabs) await tab.waitForFunction(() => performance.getEntriesByType("resource").some(({ name }) => name.endsWith("/client.js")));
  for (const tab of tabs) await send({ session: "T1" }, { n: "joins" }).then(() => gotAll(tab, 1));
  const before = await Promise.all(tabs.map(async (tab) => (await got(tab)).length));
  for (let n = 0; n < 30; n++) await send({ session: "T1" }, { n });
  for (const [at, tab] of tabs.entries()) {
    await tab.waitForFunction(() => got.at(-1).includes('"n":29'));
    const numbers = (await got(tab)).map((text) => JSON.parse(text).n).filter((n) => n !== "joins");
    assert.deepEqual(numbers, Array.from({ length: 30 }, (_, n) => n), `tab ${at}, ${before[at]} before`);
  }
  await context.close();
});

test("an exception of the page holds up nothing, and the message is acknowledged", async () => {
  const page = await x0Page("E1");
  await send({ session: "E1" }, { "msg-type": "net-message", "method-id": "set-data", "dst-object": "nothing", payload: {} });
  await send({ session: "E1" }, { n: 2 });
  const began = Date.now();
  await gotAll(page, 2);
  assert.ok(Date.now() - began < 15_000, "client.js holds a message for 15 s if its handler throws");
  assert.equal(await page.evaluate(() => thrown), 1);
  await page.context().close();
});

test("a page follows its session: none at first, then one, then another", async () => {
  const page = await x0Page(null);
  await send({ session: "S1" }, { n: 1 });
  await send({ session: "S2" }, { n: 2 });
  await page.evaluate(() => (sysFactory.SysSessionValue = "S1"));
  assert.deepEqual(await gotAll(page, 1), ['{"n":1,"session_src":"sender"}']);
  await page.evaluate(() => (sysFactory.SysSessionValue = "S2"));
  assert.equal((await gotAll(page, 2))[1], '{"n":2,"session_src":"sender"}');
  await page.context().close();
});

test("a page goes on after an outage and a restart of the broker, and its net events arrive then", async () => {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-restart-"));
  const start = async (listen) => {
    const child = spawn(binary, ["--listen", listen, "--data-dir", dir], { stdio: ["ignore", "ignore", "pipe"] });
    for await (const line of createInterface(child.stderr)) {
      const entry = JSON.parse(line);
      if (entry.message !== "ready") continue;
      child.stderr.resume();
      return { address: entry.address, url: `http://${entry.address}`, kill: () => (child.kill("SIGKILL"), once(child, "exit")) };
    }
    throw new Error("the broker did not start");
  };
  const first = await start("127.0.0.1:0");
  const browser = await x0Browser(first.address, started.app.address);
  const [a, b] = [await x0Page("R1", { browser }), await x0Page("R2", { browser })];
  await send({ session: "R1" }, { n: 1 }, first);
  await gotAll(a, 1);
  await first.kill();
  await a.evaluate(() => new sysObjButton({ Late: "R2" }).fireNetEvents());
  await a.waitForEvent("requestfailed");
  const second = await start(first.address);
  await send({ session: "R1" }, { n: 2 }, second);
  assert.equal((await gotAll(a, 2))[1], '{"n":2,"session_src":"sender"}');
  await gotAll(b, 1);
  assert.deepEqual(await b.evaluate(() => events), ["Late"]);
  assert.equal(await a.evaluate(() => polls), 0);
  await browser.close();
  await second.kill();
  rmSync(dir, { recursive: true });
});

test("a page that was offline goes on", async () => {
  const page = await x0Page("O1");
  await send({ session: "O1" }, { n: 1 });
  await gotAll(page, 1);
  await page.context().setOffline(true);
  await send({ session: "O1" }, { n: 2 });
  await page.context().setOffline(false);
  assert.equal((await gotAll(page, 2)).length, 2);
  await page.context().close();
});

test("where WebSocket does not work, a page receives over long-poll", async () => {
  const between = await proxy(started.server);
  between.sockets = "refuse";
  const browser = await x0Browser(new URL(between.url).host, started.app.address);
  const page = await x0Page("L1", { browser });
  await send({ session: "L1" }, { n: 1 });
  await gotAll(page, 1);
  assert.equal(await page.evaluate(() => polls), 0);
  await browser.close();
  between.stop();
});

for (const [name, tag] of [
  ["the script is missing", `<script src="${BROKER}/nothing.js"></script>`],
  ["client.js cannot be loaded", `<script src="${BROKER}/x0.js" data-broker="http://x0-msg-server.x0.localnet:8080/nowhere/"></script>`],
]) {
  test(`a page polls by itself where ${name}`, async () => {
    const page = await x0Page("M1", { tag });
    const sent = Date.now();
    await send({ session: "M1" }, { n: sent });
    await page.waitForFunction((sent) => got.some((text) => text.includes(`${sent}`)), sent);
    assert.ok((await page.evaluate(() => polls)) > 0);
    await page.context().close();
  });
}

test("a page of another origin, which may not use /ws, polls by itself", async () => {
  const page = await x0Page("X1", { host: "x0-other.x0.localnet" });
  await send({ session: "X1" }, { n: 1 });
  await gotAll(page, 1);
  assert.ok((await page.evaluate(() => polls)) > 0);
  await page.context().close();
});

test("data-broker and data-transport are followed", async () => {
  const tag = `<script src="${BROKER}/x0.js" data-broker="${BROKER}" data-transport="poll"></script>`;
  const page = await x0Page("D1", { tag });
  await send({ session: "D1" }, { n: 1 });
  await gotAll(page, 1);
  assert.ok(!page.transports.includes("websocket"));
  assert.equal(await page.evaluate(() => polls), 0);
  await page.context().close();
});

test("the page returns to WebSocket when its own polling ends or a pause is over, and loses and repeats nothing", async () => {
  const context = await started.browser.newContext();
  // The first attempts to load client.js fail.
  let refusals = 1;
  await context.route("**/client.js*", (route) => (refusals-- > 0 ? route.abort() : route.continue()));
  const page = await x0Page("B1", { context });
  await page.waitForFunction(() => polls > 0);
  const numbers = [];
  let online = false;
  page.on("websocket", () => (online = true));
  for (let n = 0; !online || n < 5; n++) {
    await send({ session: "B1" }, { n });
    numbers.push(n);
    await page.waitForFunction((count) => got.length >= count, numbers.length);
  }
  await send({ session: "B1" }, { n: "last" });
  await page.waitForFunction(() => got.at(-1).includes("last"));
  assert.deepEqual((await got(page)).map((text) => JSON.parse(text).n), [...numbers, "last"]);
  await context.close();
});

/** A broker in `token` mode that knows one API key and no keys of tokens, its backend, and a browser for it. */
async function guarded() {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-x0-"));
  writeFileSync(join(dir, "keys.toml"), `[[key]]\nname = "login"\nkey = "${KEY}"\n`);
  const server = await broker("127.0.0.1:0", "--auth", "token", "--api-key-file", join(dir, "keys.toml"), "--poll-timeout", "1s");
  const browser = await x0Browser(server.address, started.app.address);
  const backend = (method, path, body) =>
    fetch(`${server.url}${path}`, { method, headers: { authorization: `Bearer ${KEY}` }, body: JSON.stringify(body) });
  const stop = async () => {
    await browser.close();
    await server.stop();
    rmSync(dir, { recursive: true });
  };
  return { browser, backend, server, stop };
}

test("with tokens: the id of a registered session that is no proof works at x0's door only, so the page polls by itself", async () => {
  const { browser, backend, stop } = await guarded();
  const page = await x0Page("0a34cb20-weak", { browser });
  await page.waitForFunction(() => polls > 0);
  assert.equal((await backend("PUT", "/v1/sessions/0a34cb20-weak", { user: "ann" })).status, 200);
  assert.equal((await backend("POST", "/v1/messages", { to: { user: "ann" }, payload: { n: 1 } })).status, 200);
  assert.deepEqual(await gotAll(page, 1), ['{"n":1,"session_src":null}']);
  assert.equal(await page.evaluate(() => stopped), false);
  await stop();
});

test("with tokens: a page with a random id that is registered as a proof receives over WebSocket, and survives a restart", async () => {
  const { browser, backend, server, stop } = await guarded();
  const id = randomBytes(16).toString("hex");
  const registered = await backend("PUT", `/v1/sessions/${id}`, { user: "ann", proof: true });
  assert.equal((await registered.json()).proof, true);
  const page = await x0Page(id, { browser });
  const toAnn = (n) => backend("POST", "/v1/messages", { to: { user: "ann" }, payload: { n } });
  assert.equal((await toAnn(1)).status, 200);
  await gotAll(page, 1);
  await server.restart("SIGKILL");
  assert.equal((await toAnn(2)).status, 200);
  assert.deepEqual(await gotAll(page, 2), ['{"n":1,"session_src":null}', '{"n":2,"session_src":null}']);
  assert.ok(page.transports.includes("websocket"));
  assert.equal(await page.evaluate(() => polls), 0);
  // What a page has acknowledged does not come again.
  while ((await (await backend("GET", `/v1/sessions/${id}`)).json()).pending > 0) await new Promise((done) => setTimeout(done, 20));
  // Without the proof the id still works at x0's door.
  await page.close();
  assert.equal((await backend("PUT", `/v1/sessions/${id}`, {})).status, 200);
  const weak = await x0Page(id, { browser });
  await weak.waitForFunction(() => polls > 0);
  assert.equal((await toAnn(3)).status, 200);
  assert.deepEqual(await gotAll(weak, 1), ['{"n":3,"session_src":null}']);
  await stop();
});
