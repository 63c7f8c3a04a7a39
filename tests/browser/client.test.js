// client.js alone: acknowledgement after the handler, retries, restarts of the broker.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, DEADLINE, openPage, post, shared } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

let number = 0;

/** A page with a client that has a session of its own. What it receives is in `got`. */
async function client(options = {}, url = started.server.url) {
  const page = await openPage(started.chromium, `${url}/healthz`);
  const session = `client-${++number}`;
  await page.evaluate(
    async ([session, options, base]) => {
      const { connect } = await import(`${base}/client.js`);
      window.got = [];
      window.errors = [];
      window.gaps = [];
      window.acked = 0;
      window.fail = 0;
      window.hold = null;
      window.client = connect({
        session,
        async onMessage(message) {
          if (window.fail > 0) {
            window.fail--;
            throw new Error("the handler failed");
          }
          await window.hold;
          window.got.push(message.payload);
        },
        onReceipt: ({ id, state }) => window.got.push({ id, state }),
        onAck: (seq) => (window.acked = seq),
        onGap: (gap) => window.gaps.push(gap),
        onError: (error) => window.errors.push(error.message),
        ...options,
      });
    },
    [session, options, url],
  );
  await page.waitForFunction(() => client.status.state === "online");
  return { page, session, close: () => page.context().close() };
}

test("a receipt comes when the receiver has acknowledged, over WebSocket and over polls", async () => {
  for (const transport of ["websocket", "poll"]) {
    const from = await client({ transport });
    const to = await client();
    await from.page.evaluate((to) => client.send({ session: to }, 1, { id: "c-1", receipt: true }), to.session);
    await to.page.waitForFunction(() => window.got.length === 1);
    await from.page.waitForFunction(() => window.got.length === 1);
    assert.deepEqual(await from.page.evaluate(() => window.got), [{ id: "c-1", state: "acknowledged" }]);
    await Promise.all([from.close(), to.close()]);
  }
});

/** Sends to a session; the seq. */
const send = async (session, payload) => (await post(started.server, { to: { session }, payload })).seq;

/** The payloads that are not acknowledged yet. */
const waiting = async (session) => {
  const answer = await fetch(`${started.server.url}/v1/messages?session=${session}&wait=0`);
  return (await answer.json()).messages.map(({ payload }) => payload);
};

for (const transport of ["websocket", "poll"]) {
  test(`a message is acknowledged after its handler has returned, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    await page.evaluate(() => void (window.hold = new Promise((done) => (window.release = done))));
    const seq = await send(session, 1);
    // The handler has not returned, so a second client of the session gets the message too.
    assert.deepEqual(await waiting(session), [1]);
    await page.evaluate(() => release());
    await page.waitForFunction((seq) => acked === seq, seq);
    assert.deepEqual(await page.evaluate(() => got), [1]);
    await close();
    assert.deepEqual(await waiting(session), []);
  });

  test(`a handler that throws is given the message again, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    await page.evaluate(() => (window.fail = 1));
    await send(session, 1);
    await send(session, 2);
    await page.waitForFunction(() => got.length === 2);
    assert.deepEqual(await page.evaluate(() => [got, errors]), [[1, 2], ["the handler failed"]]);
    await close();
  });

  test(`a page that dies before its handler returned gets the message again, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    await page.evaluate(() => void (window.hold = new Promise(() => {})));
    await send(session, 1);
    assert.deepEqual(await waiting(session), [1]);
    await close();
    assert.deepEqual(await waiting(session), [1]);
  });

  test(`sends are answered with their seq or the refusal, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    const outcome = await page.evaluate(async (session) => {
      const { seq, id } = await client.send({ session }, "to myself", { id: "mine" });
      const again = await client.send({ session }, "to myself", { id: "mine" });
      const refused = await client.send({ user: "nobody" }, 1).catch((error) => error.code);
      const volatile = await client.send({ topic: "t" }, 1, { volatile: true });
      return { seq, id, same: again.seq === seq, refused, volatile: volatile.seq ?? "none" };
    }, session);
    assert.equal(typeof outcome.seq, "number");
    assert.deepEqual({ ...outcome, seq: 0 }, { seq: 0, id: "mine", same: true, refused: "not_found", volatile: "none" });
    await page.waitForFunction(() => got.length === 1);
    await close();
  });

  test(`sends that cannot work are refused and stand in nobody's way, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    const outcome = await page.evaluate(async (session) => {
      const to = { session };
      const code = (sending) => sending.then(() => "sent", (error) => error.code);
      const cycle = {};
      cycle.cycle = cycle;
      const nested = JSON.parse("[".repeat(200) + "]".repeat(200));
      const refused = [
        code(client.send(to, "x".repeat(1_100_000))),
        code(client.send(to, cycle)),
        code(client.send(to, undefined)),
        code(client.send(to, nested)),
        code(client.send(to, 1, { id: "" })),
      ];
      const twins = await Promise.all([client.send(to, "twin", { id: "twin" }), client.send(to, "twin", { id: "twin" })]);
      return { refused: await Promise.all(refused), same: twins[0].seq === twins[1].seq };
    }, session);
    assert.deepEqual(outcome, { refused: ["too_large", "bad_request", "bad_request", "bad_request", "bad_request"], same: true });
    await page.waitForFunction(() => got.length === 1 && client.status.state === "online");
    await close();
  });

  test(`a gap is told once and reading goes on after it, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    await page.evaluate(() => void client.pause());
    const [first, last] = [await send(session, 1), await send(session, 2)];
    await page.evaluate(() => void client.resume());
    await page.waitForFunction(() => got.length === 2);
    await page.waitForFunction((seq) => acked >= seq, last);
    await page.evaluate(() => void client.pause());
    const { seq: lost } = await post(started.server, { to: { session }, payload: 3, ttl: 0.2 });
    while ((await waiting(session)).length > 0);
    await page.evaluate(() => void (performance.clearResourceTimings(), client.resume()));
    await page.waitForFunction(() => gaps.length > 0);
    await send(session, 4);
    await page.waitForFunction(() => got.length === 3);
    assert.deepEqual(await page.evaluate(() => [got, gaps]), [[1, 2, 4], [{ from: last, to: lost, reason: "expired" }]]);
    assert.ok(first < last);
    const requests = await page.evaluate(() => performance.getEntriesByType("resource").length);
    assert.ok(requests < 12, `${requests} requests: it polls in a hot loop`);
    await close();
  });

  test(`history asked for at once comes, over ${transport}`, async () => {
    const topic = `early-${transport}`;
    const publish = (payload) => post(started.server, { to: { topic }, payload });
    const { seq: after } = await publish(0);
    await publish(1);
    const { page, close } = await client({ transport });
    await page.evaluate(async ([transport, topic, after]) => {
      const { connect } = await import("/client.js");
      window.early = [];
      const second = connect({ session: "early", transport });
      second.subscribe(topic, ({ payload }) => early.push(payload), { after });
    }, [transport, topic, after]);
    await page.waitForFunction(() => early.length === 1);
    await publish(2);
    await page.waitForFunction(() => early.length === 2);
    assert.deepEqual(await page.evaluate(() => early), [1, 2]);
    await close();
  });

  test(`topics come over ${transport}, live and with history`, async () => {
    const { page, close } = await client({ transport });
    const topic = `topic-${number}`;
    const publish = (payload, more) => post(started.server, { to: { topic }, payload, ...more });
    const first = await publish(0);
    await publish(1);
    await page.evaluate(([topic, after]) => {
      window.news = [];
      window.stop = client.subscribe(topic, ({ payload }) => news.push(payload), { after });
    }, [topic, first.seq]);
    await page.waitForFunction(() => news.length === 1);
    await publish(2);
    await page.waitForFunction(() => news.length === 2);
    await publish(3, { volatile: true });
    await page.waitForFunction(() => news.length === 3);
    assert.deepEqual(await page.evaluate(() => news), [1, 2, 3]);
    await page.evaluate(() => stop());
    await close();
  });
}

test("a send while offline waits, and is delivered once the client is back", async () => {
  const { page, session, close } = await client();
  await page.evaluate((session) => {
    client.pause();
    window.outcomes = [];
    for (let n = 0; n < 3; n++) client.send({ session }, n).then(({ seq }) => outcomes.push(seq));
  }, session);
  assert.deepEqual(await waiting(session), []);
  await page.evaluate(() => client.resume());
  await page.waitForFunction(() => got.length === 3 && outcomes.length === 3);
  assert.deepEqual(await page.evaluate(() => got), [0, 1, 2]);
  await close();
});

test("the client survives a restart of the broker, sends included", async () => {
  const own = await broker();
  const { page, session, close } = await client({}, own.url);
  await own.stop();
  await page.waitForFunction(() => client.status.state !== "online");
  await page.evaluate((session) => {
    window.outcome = null;
    client.send({ session }, "sent while the broker was away").then(({ seq }) => (window.outcome = seq));
  }, session);
  const again = await broker(own.address);
  await page.waitForFunction(() => got.length === 1 && outcome > 0, null, { timeout: 2 * DEADLINE });
  assert.deepEqual(await page.evaluate(() => got), ["sent while the broker was away"]);
  await close();
  await again.stop();
});

test("many messages through switches of transport: each once, in order", async () => {
  const { page, session, close } = await client();
  const sender = (async () => {
    for (let n = 0; n < 300; n++) await send(session, n);
  })();
  for (const transport of ["poll", "websocket", "poll", "auto"]) {
    await page.evaluate((transport) => client.use(transport), transport);
    await page.waitForFunction(() => client.status.state === "online");
  }
  await sender;
  await page.waitForFunction(() => got.length >= 300);
  assert.deepEqual(await page.evaluate(() => got), Array.from({ length: 300 }, (_, n) => n));
  await close();
});

test("a closed client refuses to send", async () => {
  const { page, close } = await client();
  const closed = await page.evaluate(async () => {
    client.close();
    return [client.status.state, await client.send({ session: "x" }, 1).catch((error) => error.code)];
  });
  assert.deepEqual(closed, ["closed", "unavailable"]);
  await close();
});

test("a session the broker refuses closes the client for good, with the reason", async () => {
  const page = await openPage(started.chromium, `${started.server.url}/healthz`);
  const reason = await page.evaluate(async () => {
    const { connect } = await import("/client.js");
    return new Promise((done) => connect({ session: "a\u0001", onStatus: ({ state, reason }) => state === "closed" && done(reason) }));
  });
  assert.match(reason, /session.*control characters/);
  await page.context().close();
});
