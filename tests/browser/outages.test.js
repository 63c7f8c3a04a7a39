// client.js while the network is dead or slow, and while the broker starts, is full, or lets it in no more.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { field } from "./field.js";
import { broker, browser, DEADLINE, shared } from "./harness.js";

const long = Boolean(process.env.X0_MSG_LONG_TESTS);

/** A broker that wants credentials. */
async function guarded() {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-keys-"));
  writeFileSync(join(dir, "keys.toml"), '[[key]]\nname = "backend"\nkey = "a-key-of-a-backend-0123456789abcdef"\n', { mode: 0o600 });
  const server = await broker("127.0.0.1:0", "--auth", "token", "--api-key-file", join(dir, "keys.toml"));
  return { ...server, stop: () => (rmSync(dir, { recursive: true }), server.stop()) };
}

const started = shared(async () => ({
  browser: await browser(),
  server: await broker(),
  quick: await broker("127.0.0.1:0", "--heartbeat", "1s"),
  guarded: await guarded(),
}));

const { client, toSelf } = field(started);

/** The network dies and comes back. How long the page took to notice, in milliseconds. */
async function die({ page, proxy }, event) {
  proxy.frozen = true;
  const began = await page.evaluate((event) => (event && dispatchEvent(new Event(event)), performance.now()), event);
  await page.waitForFunction(() => statuses.some(({ state }) => state === "offline"));
  const noticed = await page.evaluate(() => statuses.find(({ state }) => state === "offline").at);
  proxy.cut();
  proxy.frozen = false;
  return noticed - began;
}

for (const transport of ["websocket", "poll"]) {
  test(`a dead network is noticed within 10 s of an event, over ${transport}`, async () => {
    const own = await client({ transport });
    const noticed = await die(own, "online");
    assert.ok(noticed < 10_000, `${noticed} ms`);
    await toSelf(own.session, "back");
    await own.page.waitForFunction(() => got.length === 1);
    await own.close();
  });

  test(`a dead network is noticed within 35 s without an event, over ${transport}`, { skip: !long && "takes 30 s" }, async () => {
    const own = await client({ transport });
    const noticed = await die(own);
    assert.ok(noticed < 35_000, `${noticed} ms`);
    console.log(`without an event, over ${transport}: noticed after ${Math.round(noticed)} ms`);
    await own.close();
  });

  for (const rate of long ? [100_000, 20_000] : [100_000]) {
    test(`900 kB on an uplink of ${rate / 1000} kB/s arrive once, without a reconnect, and small sends behind them, over ${transport}`, async () => {
      const { page, session, proxy, close } = await client({ transport });
      proxy.uplink = rate;
      const answers = page.evaluate(async (session) => {
        const large = client.send({ session }, "x".repeat(900_000));
        const small = client.send({ session }, "small");
        // It is still on its way after the time of a pong.
        document.dispatchEvent(new Event("visibilitychange"));
        return (await Promise.all([large, small])).map(({ seq }) => seq);
      }, session);
      assert.equal((await answers).length, 2);
      await page.waitForFunction(() => got.length === 2);
      assert.deepEqual(await page.evaluate(() => statuses.map(({ state }) => state)), ["connecting", "online"]);
      await close();
    });
  }
}

test("a dead network is noticed by a heartbeat, without an event", async () => {
  const own = await client({ transport: "websocket" }, { server: started.quick });
  const noticed = await die(own);
  assert.ok(noticed < 35_000, `${noticed} ms`);
  await own.page.waitForFunction(() => client.status.state === "online");
  await own.close();
});

const refusal = (status, code) => ({ status, body: JSON.stringify({ error: { code, message: "not now" } }) });

test("while the broker starts, sends over polls wait; while its store is full, they are refused", async () => {
  const { page, session, proxy, close } = await client({ transport: "poll" });
  let refused = 0;
  proxy.lie = ({ url }) => (url.startsWith("/v1/") && refused++ < 8 ? refusal(503, "unavailable") : undefined);
  await page.evaluate((session) => void client.send({ session }, "waits").then(() => (window.sent = true), ({ code }) => (window.sent = code)), session);
  // The page's pauses would add up.
  while (refused < 8) await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.waitForFunction(() => window.sent);
  assert.equal(await page.evaluate(() => sent), true);
  proxy.lie = ({ url }) => (url === "/v1/messages" ? refusal(503, "unavailable") : undefined);
  assert.equal(await page.evaluate((session) => client.send({ session }, 1).catch(({ code }) => code), session), "unavailable");
  await close();
});

/** A WebSocket to which the broker says nothing but the code with which it closes. */
const SILENT = `WebSocket: class extends WebSocket {
  set onmessage(listener) {
    super.onmessage = listener && ((event) => event.data.includes('"error"') || listener(event));
  }
}`;

for (const [what, script] of [["with a text", "{ token: 'wrong' }"], ["by its code alone", `{ token: 'wrong', ${SILENT} }`]]) {
  test(`a socket that is closed with 4501, ${what}, reaches onError once, and ends the client`, async () => {
    const { page, close } = await client({ transport: "websocket" }, { script, server: started.guarded, wait: "closed" });
    assert.deepEqual(await page.evaluate(() => errors.map(({ code }) => code)), ["unauthorized"]);
    assert.match(await page.evaluate(() => client.status.reason), /not known/);
    await close();
  });
}

test("a token function whose tokens are closed with 4501 is asked again, and each refusal reaches onError", async () => {
  const script = `{ token: () => "wrong " + (window.asked = (window.asked ?? 0) + 1), ${SILENT} }`;
  const { page, close } = await client({ transport: "websocket" }, { script, server: started.guarded, wait: "" });
  await page.waitForFunction(() => client.status.state === "closed", null, { timeout: 2 * DEADLINE });
  assert.deepEqual(await page.evaluate(() => [asked, errors.map(({ code }) => code)]), [5, Array(5).fill("unauthorized")]);
  await close();
});
