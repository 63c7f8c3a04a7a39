// Who reads a topic, as client.js tells it: two pages, both transports, a restart.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, openPage, shared } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

/** A page with a client. What its handlers of presence were told is in `events`. */
async function client(session, transport) {
  const page = await openPage(started.chromium, `${started.server.url}/healthz`);
  await page.evaluate(
    async ([session, transport, base]) => {
      const { connect } = await import(`${base}/client.js`);
      window.events = [];
      window.errors = [];
      window.client = connect({ session, transport, onError: (error) => window.errors.push(error.message) });
      window.watch = (topic) => client.subscribe(topic, () => {}, { presence: (event) => window.events.push(event) });
    },
    [session, transport, started.server.url],
  );
  await page.waitForFunction(() => client.status.state === "online");
  const members = (topic, expected) =>
    page.waitForFunction(([topic, expected]) => client.presence(topic)?.join() === expected, [topic, expected.join()]);
  return { page, members, close: () => page.context().close() };
}

for (const transport of ["websocket", "poll"]) {
  test(`two pages see each other come and go, over ${transport}`, async () => {
    const topic = `room-${transport}`;
    const ann = await client("ann", transport);
    await ann.page.evaluate((topic) => void watch(topic), topic);
    await ann.members(topic, ["ann"]);
    const bob = await client("bob", "websocket");
    await bob.page.evaluate((topic) => void watch(topic), topic);
    await Promise.all([ann.members(topic, ["ann", "bob"]), bob.members(topic, ["ann", "bob"])]);
    // Another tab of bob changes nothing; who comes after it is told.
    const [tab, cid] = [await client("bob", "websocket"), await client("cid", "websocket")];
    for (const { page } of [tab, cid]) await page.evaluate((topic) => void client.subscribe(topic, () => {}), topic);
    await ann.members(topic, ["ann", "bob", "cid"]);
    await Promise.all([tab, bob, cid].map(({ close }) => close()));
    await ann.members(topic, ["ann"]);
    const events = await ann.page.evaluate(() => window.events);
    assert.deepEqual(events[0], { topic, count: 1, joined: ["ann"], left: [], members: ["ann"] });
    const all = (field) => events.flatMap((event) => event[field]).sort();
    assert.deepEqual([all("joined"), all("left")], [["ann", "bob", "cid"], ["bob", "cid"]]);
    assert.deepEqual(await ann.page.evaluate(() => window.errors), []);
    await ann.close();
  });

  test(`after a restart the list is right again, over ${transport}`, async () => {
    const topic = `again-${transport}`;
    const [ann, bob, cid] = [await client("ann", transport), await client("bob", transport), await client("cid", "websocket")];
    for (const { page } of [ann, bob, cid]) await page.evaluate((topic) => void watch(topic), topic);
    await ann.members(topic, ["ann", "bob", "cid"]);
    await cid.page.evaluate(() => client.pause());
    await started.server.restart("SIGKILL");
    await ann.members(topic, ["ann", "bob"]);
    await cid.page.evaluate(() => client.resume());
    await ann.members(topic, ["ann", "bob", "cid"]);
    await Promise.all([ann, bob, cid].map(({ close }) => close()));
  });
}

test("a later handler is told all members at once, and an ended one nothing more", async () => {
  const ann = await client("ann", "websocket");
  await ann.page.evaluate(() => void (window.end = watch("late")));
  await ann.members("late", ["ann"]);
  await ann.page.evaluate(() => void (window.second = watch("late")));
  await ann.page.waitForFunction(() => window.events.length === 2);
  assert.deepEqual(await ann.page.evaluate(() => window.events[1].joined), ["ann"]);
  await ann.page.evaluate(() => (end(), second()));
  assert.equal(await ann.page.evaluate(() => client.presence("late")), undefined);
  // Messages of the topic are read on, without presence.
  const counts = await ann.page.evaluate(async () => {
    const messages = [];
    client.subscribe("late", (message) => messages.push(message.payload));
    const end = watch("late");
    end();
    await client.send({ topic: "late" }, 1);
    while (!messages.length) await new Promise((done) => setTimeout(done, 20));
    return [messages.length, window.events.length];
  });
  assert.deepEqual(counts, [1, 2]);
  await ann.close();
});

test("what cannot be a handler of presence is refused at once", async () => {
  const ann = await client("ann", "websocket");
  const error = await ann.page.evaluate(() => {
    try {
      client.subscribe("t", () => {}, { presence: true });
    } catch (error) {
      return error.message;
    }
  });
  assert.match(error, /presence/);
  await ann.close();
});
