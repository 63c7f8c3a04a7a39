// A slow page: the broker hands out no more than its window, and what the page waits for passes.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, openPage, shared } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

/** The unread messages of a session. */
async function unread(session, after = 0) {
  const answer = await fetch(`${started.server.url}/v1/messages?session=${session}&after=${after}&wait=0`);
  return answer.json();
}

test("a slow page is handed 256 messages, a receipt passes them, and all arrive in order", async () => {
  const { server, chromium } = started;
  const page = await openPage(chromium, `${server.url}/healthz`);
  await page.evaluate(async (base) => {
    Object.assign(window, { frames: [], got: [], receipts: [], hold: new Promise((done) => (window.release = done)) });
    const Counting = class extends WebSocket {
      set onmessage(listener) {
        super.onmessage = listener && ((event) => (frames.push(JSON.parse(event.data)), listener(event)));
      }
    };
    const { connect } = await import(`${base}/client.js`);
    window.client = connect({
      session: "slow",
      WebSocket: Counting,
      onMessage: async ({ payload }) => (await hold, void got.push(payload)),
      onReceipt: (receipt) => void receipts.push(receipt),
    });
  }, server.url);
  await page.waitForFunction(() => client.status.state === "online");
  const sends = Array.from({ length: 300 }, (_, n) => ({ to: { session: "slow" }, payload: n }));
  const sent = await fetch(`${server.url}/v1/messages`, { method: "POST", body: JSON.stringify(sends) });
  assert.equal(sent.status, 200);
  await page.waitForFunction(() => frames.filter(({ type }) => type === "message").length >= 256);
  await page.evaluate(() => client.send({ session: "other" }, "hello", { id: "c-1", receipt: true }));
  const { seq } = await unread("other");
  await unread("other", seq);
  await page.waitForFunction(() => receipts.length > 0);
  const counted = () => page.evaluate(() => frames.filter(({ type }) => type === "message").length);
  assert.equal(await counted(), 256);
  await page.evaluate(() => release());
  await page.waitForFunction(() => got.length === 300);
  assert.deepEqual(await page.evaluate(() => got), sends.map(({ payload }) => payload));
  assert.equal(await counted(), 300);
  await page.waitForFunction(() => frames.filter(({ type }) => type === "receipt").length === 2);
  await page.waitForFunction(async () => (await (await fetch("/v1/sessions/slow")).json()).pending === 0);
  const receipts = await page.evaluate(() => receipts.map(({ id, state }) => ({ id, state })));
  assert.deepEqual(receipts, [{ id: "c-1", state: "acknowledged" }]);
  await page.context().close();
});
