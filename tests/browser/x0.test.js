// A page of another origin does what the x0 client does: the recorded headers, through real preflights.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { broker, browser, foreignOrigin, openPageIn, post, shared } from "./harness.js";

const started = shared(async () => ({
  chromium: await browser(),
  elsewhere: await foreignOrigin(),
  server: await broker("127.0.0.1:0", "--poll-timeout", "2s"),
}));

const newContext = () => started.chromium.newContext();

/** A page that polls and sends as the x0 client does. `counts` holds the numbers of its requests. */
async function x0Page(context, url = started.server.url) {
  const page = await openPageIn(context, started.elsewhere.url);
  const counts = { preflights: 0, posts: 0 };
  const network = await context.newCDPSession(page);
  await network.send("Network.enable");
  network.on("Network.requestWillBeSent", ({ request }) => {
    if (request.method === "OPTIONS") counts.preflights++;
    if (request.method === "POST") counts.posts++;
  });
  await page.evaluate((url) => {
    // XMLHttpRequest with the headers of the recordings (tests/fixtures/legacy).
    const call = (body) =>
      new Promise((done) => {
        const request = new XMLHttpRequest();
        request.open("POST", `${url}/python/MsgHandler.py?a__=${String(Math.random()).slice(2)}`);
        request.setRequestHeader("Content-Type", "application/json; charset=UTF-8");
        request.setRequestHeader("Accept", "application/json");
        request.setRequestHeader("Cache-Control", "max-age=0");
        request.setRequestHeader("Upgrade-Insecure-Requests", "1");
        request.onloadend = () => done({ status: request.status, body: request.responseText });
        request.send(JSON.stringify(body));
      });
    window.got = [];
    window.stopped = null;
    /** Polls again at once after any 200, and stops for good after anything else. */
    window.poll = async (session) => {
      for (;;) {
        const { status, body } = await call({ session_src: session, type: "GET", SessionData: { ID: "SYS_SESSION", Value: session } });
        if (status !== 200) return (window.stopped = status);
        for (const message of JSON.parse(body).messages ?? []) window.got.push(message);
      }
    };
    window.sendForm = (from, to, form) =>
      call({
        RequestData: { FormlistSelectDstUser: { UserID: "user1", DstUserSession: to }, FormlistExchangeData: form },
        ServiceData: {},
        SessionData: { ID: "SYS_SESSION", Value: from },
      });
  }, url);
  return Object.assign(page, { counts });
}

test("a page of another origin polls and sends through real preflights", async () => {
  const [a, b] = [await x0Page(await newContext()), await x0Page(await newContext())];
  const form = { Form1: true, Form2: "hello from A", Form3: "Value2", Form4: 'line 1\nline 2 äöü € 😀 "quoted" \\ /' };
  await b.evaluate(() => void poll("B"));
  const answer = await a.evaluate((form) => sendForm("A", "B", form), form);
  assert.equal(answer.status, 200);
  assert.deepEqual(JSON.parse(answer.body), { messages: null, status: "ok" });
  await b.waitForFunction(() => got.length === 1);
  const message = { "msg-type": "net-message", "method-id": "set-data", "dst-object": "FormlistExchangeData", payload: form, session_src: "A" };
  assert.deepEqual(await b.evaluate(() => got), [message]);
  assert.deepEqual(a.counts, { preflights: 1, posts: 1 });
  // It polls again: an empty answer, then another message.
  await b.waitForFunction((before) => performance.getEntriesByType("resource").length > before + 2, await b.evaluate(() => performance.getEntriesByType("resource").length));
  await a.evaluate((form) => sendForm("A", "B", form), form);
  await b.waitForFunction(() => got.length === 2);
  assert.equal(await b.evaluate(() => stopped), null);
  assert.ok(b.counts.preflights >= 3 && b.counts.preflights >= b.counts.posts, JSON.stringify(b.counts));
  for (const page of [a, b]) await page.context().close();
});

test("where sessions are proved, pages that a backend has logged in exchange messages and see no ids of each other", async () => {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-x0-"));
  const key = "a-key-of-the-backend-that-logs-pages-in";
  writeFileSync(join(dir, "keys.toml"), `[[key]]\nname = "login"\nkey = "${key}"\n`);
  const guarded = await broker("127.0.0.1:0", "--auth", "token", "--api-key-file", join(dir, "keys.toml"), "--poll-timeout", "2s");
  const login = async (session, user) => {
    const headers = { authorization: `Bearer ${key}` };
    const answer = await fetch(`${guarded.url}/v1/sessions/${session}`, { method: "PUT", headers, body: JSON.stringify({ user }) });
    return (await answer.json()).handle;
  };
  const [a, b] = [await x0Page(await newContext(), guarded.url), await x0Page(await newContext(), guarded.url)];
  // They poll before the login, as pages do, and go on after it.
  await Promise.all([a.evaluate(() => void poll("secret-of-a")), b.evaluate(() => void poll("secret-of-b"))]);
  const handle = await login("secret-of-a");
  await login("secret-of-b", "bob");
  const answer = await a.evaluate(() => sendForm("secret-of-a", "bob", { Form2: "hello" }));
  assert.deepEqual(JSON.parse(answer.body), { messages: null, status: "ok" });
  await b.waitForFunction(() => got.length === 1);
  const message = { "msg-type": "net-message", "method-id": "set-data", "dst-object": "FormlistExchangeData", payload: { Form2: "hello" }, session_src: handle };
  assert.deepEqual(await b.evaluate(() => got), [message]);
  await b.evaluate((handle) => sendForm("secret-of-b", handle, { Form2: "and back" }), handle);
  await a.waitForFunction(() => got.length === 1);
  assert.equal(await a.evaluate(() => got[0].session_src), "bob");
  assert.deepEqual([await a.evaluate(() => stopped), await b.evaluate(() => stopped)], [null, null]);
  for (const page of [a, b]) await page.context().close();
  await guarded.stop();
  rmSync(dir, { recursive: true });
});

test("two tabs of one session share the browser's connections and both receive everything once", async () => {
  const context = await newContext();
  const [one, two] = [await x0Page(context), await x0Page(context)];
  for (const page of [one, two]) await page.evaluate(() => void poll("B2"));
  await Promise.all([one, two].map((page) => page.waitForFunction(() => performance.getEntriesByType("resource").length > 0)));
  const sends = 40;
  for (let n = 0; n < sends; n++) {
    await post(started.server, { to: { session: "B2" }, payload: { n } }, "A");
  }
  for (const page of [one, two]) {
    await page.waitForFunction((sends) => got.length >= sends, sends);
    assert.deepEqual(await page.evaluate(() => got.map(({ n }) => n)), Array.from({ length: sends }, (_, n) => n));
  }
  await context.close();
});

test("a tab left while it polls loses nothing: the next tab of the session gets the message", async () => {
  const context = await newContext();
  const left = await x0Page(context);
  const polling = left.waitForRequest((request) => request.method() === "POST");
  await left.evaluate(() => void poll("B3"));
  await polling;
  const cancelled = left.waitForEvent("requestfailed");
  await left.goto("about:blank");
  await cancelled;
  await left.close();
  await post(started.server, { to: { session: "B3" }, payload: { n: 1 } }, "A");
  const reopened = await x0Page(context);
  await reopened.evaluate(() => void poll("B3"));
  await reopened.waitForFunction(() => got.length === 1);
  await context.close();
});
