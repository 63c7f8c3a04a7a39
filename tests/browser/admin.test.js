// The dashboard as an operator uses it: figures, lists, a session, its end, a test message.

import assert from "node:assert/strict";
import { mkdtempSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { broker, browser, openPage, shared, shots } from "./harness.js";

const KEY = "key-of-an-operator-0123456789abcdef0123456789";
const VIEWER = "key-of-a-viewer-0123456789abcdef0123456789abcd";
const BACKEND = "key-of-a-backend-0123456789abcdef0123456789abc";

const keys = join(mkdtempSync(join(tmpdir(), "x0-keys-")), "keys.toml");
const entry = (name, key, more) => `[[key]]\nname = "${name}"\nkey = "${key}"\n${more}\n`;
writeFileSync(
  keys,
  entry("operator", KEY, "ops = true") + entry("viewer", VIEWER, "ops = true\nsessions = false\nsend = []") + entry("backend", BACKEND, ""),
  { mode: 0o600 },
);

const started = shared(async () => ({
  chromium: await browser(),
  open: await broker(),
  guarded: await broker("127.0.0.1:0", "--auth", "token", "--api-key-file", keys),
}));

/** A call of a backend; its answer. */
async function call(server, method, path, body) {
  const answer = await fetch(server.url + path, { method, headers: { authorization: `Bearer ${BACKEND}` }, body: JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path}: ${answer.status}`);
  return answer.status === 204 ? undefined : answer.json();
}

/** The dashboard in a context of its own. What breaks its policy fails the test. */
async function dashboard(server, options = {}, path = "/admin") {
  const page = await openPage(started.chromium, server.url + path, options);
  page.on("console", (message) => assert.ok(!/Content Security Policy/.test(message.text()), message.text()));
  return page;
}

/** Shows the dashboard of the guarded broker with this key. */
async function signedIn(key = KEY, options = {}) {
  const page = await dashboard(started.guarded, options);
  await page.locator("#key").fill(key);
  await page.keyboard.press("Enter");
  await page.locator("#facts dd").first().waitFor();
  return page;
}

/** The number that a line of a chart shows now, once this holds of it. */
const shows = (page, chart, line, what) =>
  page.waitForFunction(
    ([chart, line, what]) => {
      const card = [...document.querySelectorAll(".chart")].find((card) => card.querySelector("h2").textContent === chart);
      const item = [...card.querySelectorAll(".key li")].find((item) => item.textContent.startsWith(line));
      return new RegExp(what).test(item.querySelector("b").textContent);
    },
    [chart, line, what],
  );

test("on the broker's machine an open broker shows its figures without a key", async () => {
  const { open } = started;
  const page = await dashboard(open);
  await page.locator('#status[data-state="online"]').waitFor();
  assert.match(await page.locator("#facts").textContent(), /fsync.*open/s);
  const reader = await openPage(started.chromium, open.url);
  await reader.locator('#status[data-state="online"]').waitFor();
  await shows(page, "Readers of mailboxes", "WebSocket", "^[1-9]");
  await fetch(`${open.url}/v1/messages?session=poller&wait=0`);
  await shows(page, "Readers of mailboxes", "long-poll", "^1$");
  let stop = false;
  const sending = (async () => {
    while (!stop) await fetch(`${open.url}/v1/messages`, { method: "POST", body: JSON.stringify({ to: { topic: "x0-demo/who" }, payload: { n: 1 } }) });
  })();
  await shows(page, "Messages in a second", "accepted", "^[1-9]");
  await shows(page, "Messages in a second", "delivered", "^[1-9]");
  await shows(page, "From commit to readers", "p99", "s$");
  await shows(page, "Commits", "p50", "s$");
  await shows(page, "Stored", "bytes", "B$");
  await shows(page, "Memory of the process", "resident", "MiB$");
  stop = true;
  await sending;
  const large = await fetch(`${open.url}/v1/messages`, { method: "POST", body: JSON.stringify({ to: { session: "A" }, payload: "x".repeat(1_048_600) }) });
  assert.equal(large.status, 413);
  await page.locator("#limits li", { hasText: /^max payload.*1 refused$/ }).waitFor();
  await page.locator("#events li", { hasText: "--max-payload" }).waitFor();
  for (const name of ["store", "append queue", "memory budget", "open files"]) await page.locator("#limits li", { hasText: new RegExp(`^${name}.* of .* %`) }).locator("meter").waitFor();
  assert.equal(await page.locator("#forget").isVisible(), false);
  await reader.context().close();
  await page.context().close();
});

test("a broker with tokens asks for the key of an operator, once for a tab", async () => {
  const page = await dashboard(started.guarded);
  await page.locator("#login").waitFor();
  for (const [key, error] of [[BACKEND, "ops = true"], ["wrong", "key"]]) {
    await page.locator("#key").fill(key);
    await page.locator("#login button").click();
    await page.locator("#login-error", { hasText: error }).waitFor();
    assert.equal(await page.locator("#dashboard").isVisible(), false);
  }
  const sent = page.waitForRequest((request) => request.headers().authorization === `Bearer ${KEY}`);
  await page.locator("#key").fill(KEY);
  await page.locator("#login button").click();
  assert.ok(!(await sent).url().includes(KEY));
  await page.locator("#facts dd").first().waitFor();
  await page.reload();
  await page.locator("#facts dd").first().waitFor();
  assert.ok(!page.url().includes(KEY) && (await page.evaluate(() => Object.keys(localStorage).length)) === 0);
  await page.locator("#forget").click();
  await page.locator("#login").waitFor();
  assert.equal(await page.evaluate(() => Object.keys(sessionStorage).length), 0);
  await page.context().close();
});

test("users and topics are found by prefix, page after page, and are shown as text", async () => {
  const { guarded } = started;
  const evil = `<img src=x onerror="document.title='broken'">`;
  await call(guarded, "PUT", "/v1/sessions/list-evil", { user: evil });
  for (let n = 0; n < 60; n++) await call(guarded, "PUT", `/v1/sessions/list-${n}`, { user: `many-${String(n).padStart(2, "0")}` });
  await call(guarded, "POST", "/v1/messages", { to: { topic: "list/news" }, payload: 1 });
  const page = await signedIn();
  await page.locator("#prefix").fill("<img");
  await page.keyboard.press("Enter");
  await page.locator("#list td", { hasText: evil }).waitFor();
  assert.equal(await page.locator("#list img").count(), 0);
  await page.locator("#prefix").fill("many-");
  await page.keyboard.press("Enter");
  await page.locator("#list td", { hasText: "many-00" }).waitFor();
  assert.equal(await page.locator("#list tbody tr").count(), 50);
  await page.locator("#more").click();
  await page.locator("#list td", { hasText: "many-59" }).waitFor();
  assert.equal(await page.locator("#list tbody tr").count(), 60);
  assert.equal(await page.locator("#more").isVisible(), false);
  await page.locator('input[name=list][value=topics]').check();
  await page.locator("#prefix").fill("list/");
  await page.locator("#search button").click();
  await page.locator("#list td", { hasText: "list/news" }).waitFor();
  await page.locator('input[name=list][value=sessions]').check();
  await page.locator("#search button").click();
  await page.locator("#list td", { hasText: "h-" }).first().waitFor();
  assert.ok(!(await page.content()).includes("list-evil"), "ids are secrets");
  assert.equal(await page.title(), "Dashboard · x0-msg-server");
  await page.context().close();
});

test("a session is looked up, gets a test message, and is ended, by keyboard", async () => {
  const { guarded } = started;
  const { handle } = await call(guarded, "PUT", "/v1/sessions/secret-of-ann", { user: "ann" });
  const page = await signedIn();
  await page.locator("#to-kind").selectOption("user");
  await page.locator("#to-name").fill("ann");
  await page.locator("#payload").fill('{"hello":"<b>ann</b>"}');
  await page.locator("#test button").press("Enter");
  await page.locator('#test-outcome[data-kind="good"]').waitFor();
  await page.locator("#payload").fill("{");
  await page.locator("#test button").press("Enter");
  await page.locator("#test-outcome", { hasText: "not JSON" }).waitFor();
  await page.locator("#session").fill(handle);
  await page.keyboard.press("Enter");
  await page.locator("#session-facts dd", { hasText: "ann" }).waitFor();
  assert.match(await page.locator("#session-facts").textContent(), /Unread1, /);
  assert.ok(!(await page.content()).includes("secret-of-ann"));
  await page.locator("#end").press("Enter");
  await page.locator("#confirm[open]").waitFor();
  // What has the focus first ends nothing.
  await page.keyboard.press("Enter");
  await page.locator("#confirm[open]").waitFor({ state: "detached" });
  assert.equal((await call(guarded, "GET", "/v1/sessions/secret-of-ann")).pending, 1);
  await page.locator("#end").press("Enter");
  await page.locator("#confirm .danger").press("Enter");
  await page.locator('#session-outcome[data-kind="good"]').waitFor();
  await page.locator("#look-up button").click();
  await page.locator('#session-outcome[data-kind="bad"]').waitFor();
  await page.context().close();
});

test("a key that only sees is told what it may not", async () => {
  const { handle } = await call(started.guarded, "PUT", "/v1/sessions/secret-of-bob", { user: "bob" });
  const page = await signedIn(VIEWER);
  await page.locator("#session").fill(handle);
  await page.locator("#look-up button").click();
  await page.locator("#end").click();
  await page.locator("#confirm .danger").click();
  await page.locator("#session-outcome", { hasText: "sessions = false" }).waitFor();
  await page.locator("#to-name").fill("bob");
  await page.locator("#test button").click();
  await page.locator("#test-outcome", { hasText: "send" }).waitFor();
  assert.equal((await call(started.guarded, "GET", "/v1/sessions/secret-of-bob")).user, "bob");
  await page.context().close();
});

test("the dashboard is readable wide and narrow, light and dark", async () => {
  const { handle } = await call(started.guarded, "PUT", "/v1/sessions/secret-of-cid", { user: "cid" });
  for (const [width, height] of [[1280, 900], [390, 844]]) {
    for (const colorScheme of ["light", "dark"]) {
      const page = await signedIn(KEY, { viewport: { width, height }, colorScheme });
      await page.locator("#search button").click();
      await page.locator("#list td").first().waitFor();
      await page.locator("#session").fill(handle);
      await page.locator("#look-up button").click();
      await page.locator("#end").waitFor();
      await page.locator(".u-wrap").nth(5).waitFor();
      const overflow = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.ok(overflow <= 0, `${overflow} pixels too wide at ${width}`);
      await page.screenshot({ path: `${shots}/admin-${width}-${colorScheme}.png`, fullPage: true });
      await page.context().close();
    }
  }
});
