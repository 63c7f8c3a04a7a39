// client.js and a backend with a mailbox: a page sends to it, and gets its answer.

import assert from "node:assert/strict";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { broker, browser, openPage, shared } from "./harness.js";

const KEY = "key-of-the-shop-0123456789abcdef0123456789abcdef";
const dir = mkdtempSync(join(tmpdir(), "x0-msg-keys-"));
after(() => rmSync(dir, { recursive: true }));
writeFileSync(join(dir, "keys.toml"), `[[key]]\nname = "shop"\nkey = "${KEY}"\nmailbox = true\n`, { mode: 0o600 });

const started = shared(async () => ({
  chromium: await browser(),
  server: await broker("127.0.0.1:0", "--api-key-file", join(dir, "keys.toml")),
}));

/** One call of the backend. */
async function call(path, body) {
  const headers = { authorization: `Bearer ${KEY}` };
  return (await fetch(`${started.server.url}${path}`, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

for (const transport of ["websocket", "poll"]) {
  test(`a page sends to a backend and gets its answer, over ${transport}`, async () => {
    const page = await openPage(started.chromium, `${started.server.url}/healthz`);
    await page.evaluate(
      async ([session, transport, url]) => {
        const { connect } = await import(`${url}/client.js`);
        window.got = [];
        window.client = connect({ session, transport, onMessage: ({ from, backend, payload }) => window.got.push({ from, backend, payload }) });
      },
      [`page-${transport}`, transport, started.server.url],
    );
    const sent = await page.evaluate(() => client.send({ backend: "shop" }, { order: 7 }));
    const { messages, seq, epoch } = await call("/v1/messages/poll", { wait: 30 });
    assert.deepEqual(
      messages.map(({ from, payload, seq }) => ({ from, payload, seq })),
      [{ from: `page-${transport}`, payload: { order: 7 }, seq: sent.seq }],
    );
    await call("/v1/messages", { to: { session: messages[0].from }, payload: "thanks" });
    await page.waitForFunction(() => window.got.length === 1);
    assert.deepEqual(await page.evaluate(() => window.got), [{ from: "shop", backend: true, payload: "thanks" }]);
    assert.deepEqual((await call("/v1/messages/poll", { after: seq, epoch, wait: 0 })).messages, []);
    const refused = await page.evaluate(async () => {
      const refusal = (to) => client.send(to, 1).then(() => "sent", (error) => `${error.code}: ${error.message}`);
      return [await refusal({ backend: "bank" }), await refusal({ backend: "" }), await refusal({ backend: "shop", user: "ann" })];
    });
    assert.match(refused[0], /^not_found: /);
    assert.match(refused[1], /the backend of the address/);
    assert.match(refused[2], /\{ backend: "shop" \}/);
    await page.context().close();
  });
}
