// client.js in Firefox, in short: both transports, a dead network, and two tabs. With X0_MSG_BROWSER=firefox the other tests of client.js
// run in Firefox too.

import assert from "node:assert/strict";
import { test } from "node:test";
import { field } from "./field.js";
import { firefox } from "./firefox.js";
import { broker, shared } from "./harness.js";

const started = shared(async () => ({ browser: await firefox(), server: await broker() }));
const { client, toSelf, waiting } = field(started);

test("in Firefox: messages both ways, a topic, acknowledgements, a switch of transport, and a cut", async () => {
  const { page, session, proxy, close } = await client();
  await page.evaluate(() => void client.subscribe("news", ({ payload }) => got.push(payload), { after: 0 }));
  for (const transport of ["websocket", "poll"]) {
    await page.evaluate((transport) => client.use(transport), transport);
    await page.waitForFunction((transport) => client.status.transport === transport, transport);
    await page.evaluate(([session, payload]) => client.send({ session }, payload), [session, `sent over ${transport}`]);
    await page.evaluate(([topic, payload]) => client.send({ topic }, payload), ["news", `published over ${transport}`]);
    await toSelf(session, `to ${transport}`);
    for (const payload of [`sent over ${transport}`, `published over ${transport}`, `to ${transport}`]) {
      await page.waitForFunction((payload) => got.includes(payload), payload);
    }
  }
  await page.evaluate(() => client.use("auto"));
  proxy.cut();
  await toSelf(session, "after a cut");
  await page.waitForFunction(() => got.includes("after a cut"));
  while ((await waiting(session)).length > 0);
  assert.equal(await page.evaluate(() => got.length), 7, "each once");
  await close();
});

test("in Firefox: a dead network is noticed within 10 s of an event", async () => {
  const { page, proxy, close } = await client();
  proxy.frozen = true;
  const began = await page.evaluate(() => (dispatchEvent(new Event("online")), performance.now()));
  await page.waitForFunction(() => statuses.some(({ state }) => state === "offline"));
  const noticed = await page.evaluate(() => statuses.find(({ state }) => state === "offline").at);
  assert.ok(noticed - began < 10_000, `${noticed - began} ms`);
  proxy.frozen = false;
  await close();
});

test("in Firefox: the tabs of an origin share their polls", async () => {
  const { page, session, proxy, close } = await client({ transport: "poll" });
  const other = await page.context().newPage();
  await other.goto(`${proxy.url}/healthz`);
  await other.evaluate(async () => {
    const { connect } = await import("/client.js");
    window.got = [];
    window.client = connect({ session: "a-second-tab", transport: "poll", onMessage: ({ payload }) => void got.push(payload) });
  });
  await other.waitForFunction(() => client.status.state === "online");
  for (let n = 0; n < 5; n++) {
    await page.evaluate((payload) => client.send({ session: "a-second-tab" }, payload), n);
    await other.evaluate(([session, payload]) => client.send({ session }, payload), [session, n]);
    for (const tab of [page, other]) await tab.waitForFunction((n) => got.at(-1) === n, n);
  }
  // The first poll of a tab is its own.
  assert.ok(proxy.most <= 3, `${proxy.most} polls at once`);
  await close();
});
