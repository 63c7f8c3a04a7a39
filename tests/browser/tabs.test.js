// The tabs of an origin share their long-polls.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, foreignOrigin, openPageIn, shared } from "./harness.js";
import { liar } from "./liar.js";

// Pages of x0: not a secure origin, so there are no Web Locks, and not the origin of the broker.
const APP = "http://x0-app.x0.localnet";
const BROKER = "http://x0-msg-server.x0.localnet:8080";

const started = shared(async () => {
  const [server, app] = [await broker(), await foreignOrigin()];
  const proxy = await liar(server.address);
  const rules = `MAP x0-msg-server.x0.localnet:8080 ${proxy.address}, MAP x0-app.x0.localnet:80 ${new URL(app.url).host}`;
  return { server, app, proxy, browser: await browser(`--host-resolver-rules=${rules}`) };
});

/** A tab with a client that polls for its session. */
async function tab(context, session) {
  const page = await openPageIn(context, APP);
  assert.equal(await page.evaluate(() => isSecureContext || "locks" in navigator), false);
  await page.evaluate(async ([session, url]) => {
    const { connect } = await import(`${url}/client.js`);
    window.got = [];
    window.client = connect({ session, url, transport: "poll", onMessage: ({ payload }) => void got.push(payload) });
  }, [session, BROKER]);
  await page.waitForFunction(() => client.status.state === "online");
  return page;
}

/** Sends to all tabs, each from another one, and waits until all have it; how long that took, in milliseconds. */
async function round(tabs, payload) {
  const began = Date.now();
  const next = (n) => `tab-${(n + 1) % tabs.length}`;
  await Promise.all(tabs.map((page, n) => page.evaluate(([session, payload]) => client.send({ session }, payload), [next(n), payload])));
  await Promise.all(tabs.map((page) => page.waitForFunction((payload) => got.includes(payload), payload)));
  return Date.now() - began;
}

test("8 tabs of an origin that is not secure, each with its session, share at most 4 polls; sends are quick, and a leader that goes is replaced", async () => {
  const { proxy, browser } = started;
  const context = await browser.newContext();
  const tabs = [];
  for (let n = 0; n < 8; n++) tabs.push(await tab(context, `tab-${n}`));
  proxy.most = proxy.waiting;
  const times = [];
  for (let n = 0; n < 3; n++) times.push(await round(tabs, `round ${n}`));
  assert.ok(proxy.most <= 4, `${proxy.most} polls at once`);
  assert.ok(Math.max(...times) < 10_000, `${times} ms`);
  console.log(`8 tabs: ${proxy.most} polls at once, rounds of ${times.join(", ")} ms`);
  // The first tab led, since it was alone at first.
  await tabs[0].close();
  tabs[0] = await tab(context, "tab-0");
  await round(tabs, "after the hand-over");
  await context.close();
});

/** Ways to freeze a tab, with the event that Chromium gives, and without one. */
const FREEZES = {
  "with the event `freeze`": (session) => session.send("Page.setWebLifecycleState", { state: "frozen" }),
  "without an event": async (session) => {
    await session.send("Debugger.enable");
    await session.send("Debugger.pause");
  },
};
const THAWS = {
  "with the event `freeze`": (session) => session.send("Page.setWebLifecycleState", { state: "active" }),
  "without an event": (session) => session.send("Debugger.disable"),
};

for (const way of Object.keys(FREEZES)) {
  test(`a leader that is frozen ${way} is replaced, and gets its messages when it goes on`, async () => {
    const context = await started.browser.newContext();
    const tabs = [];
    for (let n = 0; n < 3; n++) tabs.push(await tab(context, `tab-${n}`));
    await round(tabs, `before, ${way}`);
    const session = await context.newCDPSession(tabs[0]);
    await FREEZES[way](session);
    const others = tabs.slice(1);
    const payload = `while frozen, ${way}`;
    await Promise.all(others.map((page, n) => page.evaluate(([session, payload]) => client.send({ session }, payload), [`tab-${n + 1}`, payload])));
    await Promise.all(others.map((page) => page.waitForFunction((payload) => got.includes(payload), payload)));
    await THAWS[way](session);
    await round(tabs, `afterwards, ${way}`);
    await context.close();
  });
}

test("a tab that polls for others leaves polls without an error, also when another one has replaced it", async () => {
  const context = await started.browser.newContext();
  const tabs = [];
  for (let n = 0; n < 3; n++) tabs.push(await tab(context, `tab-${n}`));
  await round(tabs, "before it leaves");
  // Another tab says that it leads, as after a freeze that was longer than the patience of the others.
  await tabs[0].evaluate((url) => {
    const channel = new BroadcastChannel(`x0-msg-server ${url}/`);
    channel.postMessage({ from: "", kind: "lead" });
    channel.close();
  }, BROKER);
  // An error in a page fails the test.
  await tabs[0].evaluate(() => client.use("websocket"));
  await round(tabs, "after it left");
  await context.close();
});

test("the polls of a hidden page do not wait for its timers, which browsers delay", async () => {
  const context = await started.browser.newContext();
  await context.addInitScript(() => {
    Object.defineProperty(document, "visibilityState", { value: "hidden" });
    const { setTimeout } = globalThis;
    // As Firefox does it, at its worst. The search for a leader, once and of 75 ms or more, is left alone.
    globalThis.setTimeout = (run, ms, ...rest) => setTimeout(run, ms < 75 ? 15_000 : ms, ...rest);
  });
  const hidden = [await tab(context, "tab-0")];
  for (let n = 0; n < 3; n++) {
    const ms = await round(hidden, `to a hidden page, ${n}`);
    assert.ok(ms < 10_000, `${ms} ms`);
  }
  await context.close();
});
