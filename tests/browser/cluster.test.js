// Two nodes of a cluster: pages on both exchange messages, and a page whose node ends goes on at the other one.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, nats, openPage, post, proxy, shared, shots } from "./harness.js";

/** A node of the cluster. */
const node = (server, name) =>
  broker("127.0.0.1:0", "--engine", "nats", "--nats-url", server.url, "--nats-replicas", "1", "--nats-node", name, "--max-payload", "65536", "--store-limit", "64MiB");

const started = shared(async () => {
  const server = await nats();
  return { chromium: await browser(), one: await node(server, "one"), two: await node(server, "two"), server };
});

/** A page with a client; what it receives is in `got`. */
async function client(session, url) {
  const page = await openPage(started.chromium, `${url}/healthz`);
  await page.evaluate(
    async ([session, url]) => {
      const { connect } = await import(`${url}/client.js`);
      Object.assign(window, { got: [], gaps: [], errors: [] });
      window.client = connect({
        session,
        onMessage: ({ payload }) => void window.got.push(payload),
        onGap: (gap) => void window.gaps.push(gap),
        onError: (error) => void window.errors.push(error.message),
      });
    },
    [session, url],
  );
  await at(page);
  return page;
}

/** Waits until a page is online at a node, or at any. */
const at = (page, name) =>
  page.waitForFunction((name) => client.status.state === "online" && (!name || client.status.welcome.node === name), name);

const got = (page, count) => page.waitForFunction((count) => window.got.length >= count, count);

test("the demo shows at which node a tab is, and tabs at two nodes exchange a form", async () => {
  for (const [width, height] of [[1280, 900], [390, 844]]) {
    const options = { viewport: { width, height } };
    const [a, b] = await Promise.all([started.one, started.two].map(({ url }) => openPage(started.chromium, url, options)));
    for (const [page, name] of [[a, "one"], [b, "two"]]) {
      await page.locator('#status[data-state="online"]').waitFor();
      assert.equal(await page.locator("#node").textContent(), name);
    }
    await a.locator(`#receivers input[value="${await b.locator("#session").textContent()}"]`).check();
    await a.locator("#Form2").fill("from one to two");
    await a.locator("#send").click();
    await b.waitForFunction(() => document.getElementById("Form2").value === "from one to two");
    await a.locator("#log li.out .done").first().waitFor();
    const overflow = await a.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert.ok(overflow <= 0, `${overflow} pixels too wide at ${width}`);
    await a.screenshot({ path: `${shots}/cluster-${width}.png`, fullPage: true });
    await Promise.all([a.context().close(), b.context().close()]);
  }
});

test("a page whose node is killed resumes at the other one: nothing is lost or repeated", async () => {
  const alive = [started.one, started.two];
  const between = await proxy({ get address() { return alive[0].address; } });
  const a = await client("a", between.url);
  const b = await client("b", started.two.url);
  await at(a, "one");
  await at(b, "two");
  const send = (from, to, first, count) =>
    from.evaluate(([to, first, count]) => Promise.all(Array.from({ length: count }, (_, n) => client.send({ session: to }, first + n))).then(() => {}), [to, first, count]);
  await send(b, "a", 0, 50);
  await got(a, 50);
  await send(a, "b", 0, 10);
  await got(b, 10);
  // More is on its way to the page, and more from it, when its node ends.
  const sending = Promise.all([send(b, "a", 50, 200), send(a, "b", 10, 50)]);
  await got(a, 60);
  alive.shift();
  started.one.signal("SIGKILL");
  await at(a, "two");
  await sending;
  await post(started.two, { to: { session: "a" }, payload: 250 });
  await got(a, 251);
  await got(b, 60);
  assert.deepEqual(await a.evaluate(() => [window.got, window.gaps, window.errors]), [Array.from({ length: 251 }, (_, n) => n), [], []]);
  assert.deepEqual((await b.evaluate(() => window.got)).toSorted((one, other) => one - other), Array.from({ length: 60 }, (_, n) => n));
  await Promise.all([a.context().close(), b.context().close()]);
  between.stop();
});
