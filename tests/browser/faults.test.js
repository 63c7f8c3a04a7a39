// client.js in a bad field: portals, dead and slow networks, clumsy proxies, careless pages.

import assert from "node:assert/strict";
import { test } from "node:test";
import { LIES } from "./chaos.js";
import { field } from "./field.js";
import { broker, browser, DEADLINE, openPage, post, shared } from "./harness.js";
import { liar } from "./liar.js";

const started = shared(async () => ({ browser: await browser(), server: await broker() }));

const { client, toSelf, waiting } = field(started);

test("answers that are not the broker's are tried again, for polls, sends and acknowledgements", async () => {
  const { page, session, proxy, close } = await client({ transport: "poll" });
  let lies = 0;
  proxy.lie = ({ url }) => {
    if (!url.startsWith("/v1/") || lies === LIES.length) return;
    return LIES[lies++];
  };
  await page.evaluate((session) => void client.send({ session }, "through").then(() => (window.sent = true)), session);
  // The page's pauses would add up to a minute.
  while (lies < LIES.length) await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.waitForFunction(() => window.sent && got.length === 1 && acked > 0);
  assert.deepEqual(await page.evaluate(() => got), ["through"]);
  assert.equal(await page.evaluate(() => statuses.some(({ state }) => state === "closed")), false);
  await close();
});

test("a status that is not the broker's says what answered", async () => {
  const { page, proxy, close } = await client({ transport: "poll" });
  proxy.lie = ({ url }) => (url.startsWith("/v1/") ? { status: 404, body: "nothing here" } : undefined);
  await page.evaluate(() => dispatchEvent(new Event("online")));
  await page.waitForFunction(() => client.status.state === "offline");
  assert.match(await page.evaluate(() => client.status.reason), /v1\/messages\/poll \(HTTP 404\) is not the broker/);
  await close();
});

for (const transport of ["websocket", "poll"]) {
  test(`a refused topic is told, and the rest goes on, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    await page.evaluate(() => {
      window.topics = Array.from({ length: 129 }, (_, n) => `t-${n}`);
      for (const topic of topics) client.subscribe(topic, ({ payload }) => got.push(payload));
    });
    await page.waitForFunction(() => errors.length === 1);
    assert.equal(await page.evaluate(() => errors[0].code), "forbidden");
    await post(started.server, { to: { topic: "t-127" }, payload: "topic" });
    await page.waitForFunction(() => got.length === 1);
    await toSelf(session, "mailbox");
    await page.waitForFunction(() => got.length === 2);
    assert.deepEqual(await page.evaluate(() => [errors.length, client.status.state]), [1, "online"]);
    await close();
  });

  test(`two subscriptions of a topic both hear, each until it ends, over ${transport}`, async () => {
    const { page, close } = await client({ transport });
    const topic = `twice-${transport}`;
    const publish = (payload) => post(started.server, { to: { topic }, payload });
    const { seq } = await publish(0);
    await publish(1);
    await page.evaluate(async ([topic, after]) => {
      Object.assign(window, { a: [], b: [] });
      window.endA = client.subscribe(topic, ({ payload }) => a.push(payload));
      window.endB = client.subscribe(topic, ({ payload }) => b.push(payload), { after });
    }, [topic, seq]);
    await page.waitForFunction(() => b.length === 1);
    await publish(2);
    await page.waitForFunction(() => a.includes(2) && b.includes(2));
    await page.evaluate(() => endA());
    await publish(3);
    await page.waitForFunction(() => b.includes(3));
    assert.deepEqual(await page.evaluate(() => [a.at(-1), b]), [2, [1, 2, 3]]);
    await close();
  });

  test(`sends that are no sends are rejected with what is wrong, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport });
    const outcome = await page.evaluate(async (session) => {
      const to = { session };
      const cycle = {};
      cycle.session = cycle;
      const wrong = {
        undefined: () => client.send(to, undefined),
        bigint: () => client.send(to, 1n),
        surrogate: () => client.send(to, 1, { id: "\ud800" }),
        receipt: () => client.send(to, 1, { receipt: "yes" }),
        volatile: () => client.send(to, 1, { volatile: 1 }),
        ttl: () => client.send(to, 1, { ttl: NaN }),
        options: () => client.send(to, 1, null),
        cyclic: () => client.send(cycle, 1),
        "bigint in to": () => client.send({ session: 1n }, 1),
        "surrogate in to": () => client.send({ session: "\udc00" }, 1),
        "1.1 MB in to": () => client.send({ session: "x".repeat(1_100_000) }, 1),
        "no to": () => client.send(undefined, 1),
        "two in to": () => client.send({ session: "a", user: "b" }, 1),
      };
      const codes = {};
      for (const [name, send] of Object.entries(wrong)) codes[name] = await send().then(() => "sent", ({ code }) => code);
      await client.send(to, "good");
      return codes;
    }, session);
    for (const [name, code] of Object.entries(outcome)) assert.equal(code, "bad_request", name);
    await page.waitForFunction(() => got.length === 1);
    assert.equal(await page.evaluate(() => statuses.filter(({ state }) => state === "connecting").length), 1);
    await close();
  });

  test(`close() ends all calls of handlers, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport, }, {
      script: "{ onMessage: ({ payload }) => (got.push(payload), new Promise((done) => (window.release = done))) }",
    });
    for (const n of [1, 2, 3, 4]) await toSelf(session, n);
    await page.waitForFunction(() => got.length === 1);
    await page.evaluate(async () => {
      client.close();
      release();
      await new Promise((done) => setTimeout(done));
      await new Promise((done) => setTimeout(done));
    });
    assert.deepEqual(await page.evaluate(() => got), [1]);
    assert.deepEqual(await waiting(session), [1, 2, 3, 4], "what was not handled is not acknowledged");
    await close();
  });

  test(`without a handler nothing is acknowledged, over ${transport}`, async () => {
    const { page, session, close } = await client({ transport }, { script: "{ onMessage: undefined }" });
    await toSelf(session, 1);
    await page.evaluate((session) => client.send({ session }, 2), session);
    await page.evaluate(() => client.flush());
    assert.deepEqual(await waiting(session), [1, 2]);
    assert.equal(await page.evaluate(() => acked), 0);
    await close();
  });
}

test("the session, the token and the topics are in no address", async () => {
  const { page, session, proxy, close } = await client({ transport: "poll" });
  await page.evaluate(() => void client.subscribe("a-secret-topic", () => {}));
  await page.evaluate((session) => client.send({ session }, 1), session);
  await page.waitForFunction(() => acked > 0);
  for (const url of proxy.requests) assert.doesNotMatch(url, /fault-|secret/, url);
  await close();
});

test("a frame that a proxy finds too big is rejected, and what is behind it is sent", async () => {
  // The limit of the broker stands for that of a proxy: the client does not see its own limit.
  const { page, session, close } = await client({}, {
    script: `{ WebSocket: class extends WebSocket {
      set onmessage(listener) {
        super.onmessage = listener && ((event) => listener({ data: event.data.replace('"max_payload":1048576', '"max_payload":99999999') }));
      }
    } }`,
  });
  const outcome = await page.evaluate(async (session) => {
    const code = (sending) => sending.then(() => "sent", ({ code }) => code);
    const to = { session };
    return Promise.all([code(client.send(to, 1)), code(client.send(to, "x".repeat(1_100_000))), code(client.send(to, 2))]);
  }, session);
  assert.deepEqual(outcome, ["sent", "too_large", "sent"]);
  await page.waitForFunction(() => got.length === 2);
  await close();
});

test("a proxy that kills each socket after its welcome: three attempts, then polls", async () => {
  const { page, session, proxy, close } = await client({}, { wait: "" , script: "{}" });
  proxy.sockets = 100;
  proxy.cut();
  await page.waitForFunction(() => client.status.transport === "poll");
  const { upgrades } = proxy;
  assert.ok(upgrades <= 5, `${upgrades} sockets`);
  await toSelf(session, "over polls");
  await page.waitForFunction(() => got.length === 1);
  await close();
});

for (const status of [413, 414]) {
  test(`a send that a proxy refuses with ${status} is rejected, and the others go on`, async () => {
    const { page, session, proxy, close } = await client({ transport: "poll" });
    proxy.lie = ({ url }, body) => (url === "/v1/messages" && body.includes("large") ? { status, body: "<html>" } : undefined);
    const outcome = await page.evaluate(async (session) => {
      const code = (sending) => sending.then(() => "sent", ({ code }) => code);
      return Promise.all(["large", "small"].map((payload) => code(client.send({ session }, payload))));
    }, session);
    assert.deepEqual(outcome, ["too_large", "sent"]);
    await close();
  });
}

test("a message whose handler always fails goes to onError with the message: skip goes on, hold keeps it", async () => {
  const handler = "{ onMessage: ({ payload }) => { if (payload === 'bad') throw new Error('failed'); got.push(payload); }, poison: POISON }";
  const clients = await Promise.all(["skip", "hold"].map((poison) => client({}, { script: handler.replace("POISON", `"${poison}"`) })));
  for (const { session } of clients) for (const payload of ["bad", "good"]) await toSelf(session, payload);
  for (const { page } of clients) await page.waitForFunction(() => errors.length === 5);
  const [skip, hold] = clients;
  await skip.page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await skip.page.evaluate(() => [errors.at(-1).text, errors.at(-1).payload]), ["failed", "bad"]);
  while ((await waiting(skip.session)).length > 0);
  assert.deepEqual(await waiting(hold.session), ["bad", "good"]);
  assert.deepEqual(await hold.page.evaluate(() => got), []);
  await Promise.all(clients.map(({ close }) => close()));
});

test("a send whose first transmission is older than the dedup window is rejected as unknown, one that was never transmitted waits", async () => {
  const own = await broker("127.0.0.1:0", "--dedup-window", "3s");
  const proxy = await liar(own.address);
  const page = await openPage(started.browser, `${proxy.url}/healthz`);
  await page.evaluate(async () => {
    const { connect } = await import("/client.js");
    window.client = connect({ session: "window", transport: "poll" });
  });
  await page.waitForFunction(() => client.status.state === "online");
  // The first one is answered by a gateway that has passed it on, or not.
  proxy.lie = ({ url }, body) => (url === "/v1/messages" && body.includes('"payload":1') ? { status: 502, body: "" } : undefined);
  const outcomes = await page.evaluate(() => {
    const code = (sending) => sending.then(() => "sent", ({ code }) => code);
    return Promise.all([1, 2].map((payload) => code(client.send({ session: "x" }, payload))));
  });
  assert.deepEqual(outcomes, ["unknown", "sent"]);
  await page.context().close();
  proxy.stop();
  await own.stop();
});

test("a client below a path finds its broker, with and without a url", async () => {
  const { page, session, close } = await client({}, { prefix: "/broker" });
  await toSelf(session, 1);
  await page.waitForFunction(() => got.length === 1);
  for (const url of ["/broker", "/broker/", "./"]) {
    const state = await page.evaluate(async (url) => {
      const { connect } = await import("/broker/client.js");
      return new Promise((done) => {
        const client = connect({ session: "prefixed", url, onStatus: ({ state }) => state === "online" && (client.close(), done(state)) });
      });
    }, url);
    assert.equal(state, "online", url);
  }
  await close();
});

test("a page that was blocked, and a clock that was set back, cause no reconnect", async () => {
  const { page, session, close } = await client();
  await page.evaluate(async () => {
    document.dispatchEvent(new Event("visibilitychange"));
    const { now } = Date;
    Date.now = () => now() - 3_600_000;
    // Longer than a pong may take.
    for (const end = performance.now() + 10_000; performance.now() < end; );
    await new Promise((done) => setTimeout(done, 5_000));
  });
  await toSelf(session, 1);
  await page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await page.evaluate(() => statuses.map(({ state }) => state)), ["connecting", "online"]);
  await close();
});

test("an error of the token function is the reason, and reaches onError", async () => {
  const { page, close } = await client({}, { script: "{ token: () => { throw new Error('log in first'); } }", wait: "offline" });
  assert.equal(await page.evaluate(() => client.status.reason), "log in first");
  assert.equal(await page.evaluate(() => errors[0].text), "log in first");
  await close();
});

test("a token function is called once for many polls and sends, and a slow one does not end WebSocket", async () => {
  const script = "{ token: () => (window.calls = (window.calls ?? 0) + 1, new Promise((done) => setTimeout(done, 10_000, 'a-token\\n'))) }";
  const [polling, socket] = await Promise.all([client({ transport: "poll" }, { script }), client({}, { script })]);
  for (const { page, session, close } of [polling, socket]) {
    await page.evaluate(async (session) => {
      for (let n = 0; n < 5; n++) await client.send({ session }, n);
    }, session);
    await page.waitForFunction(() => got.length === 5);
    assert.equal(await page.evaluate(() => calls), 1);
    if (session === socket.session) assert.equal(await page.evaluate(() => client.status.transport), "websocket");
    await close();
  }
});

test("a send that is aborted is rejected with the reason; pendingCount and flush count what waits", async () => {
  const { page, session, close } = await client();
  const outcome = await page.evaluate(async (session) => {
    client.pause();
    const abort = new AbortController();
    const aborted = client.send({ session }, "aborted", { signal: abort.signal }).catch(({ name }) => name);
    client.send({ session }, "waits");
    const before = client.pendingCount;
    abort.abort();
    const after = client.pendingCount;
    client.resume();
    await client.flush();
    return [before, await aborted, after, client.pendingCount];
  }, session);
  assert.deepEqual(outcome, [2, "AbortError", 1, 0]);
  await page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await page.evaluate(() => got), ["waits"]);
  await close();
});

test("acknowledgements are coalesced", async () => {
  const { page, session, close } = await client({}, {
    script: "{ onAck: (seq) => (window.acked = seq, window.acks = (window.acks ?? 0) + 1) }",
  });
  const messages = Array.from({ length: 500 }, (_, n) => ({ to: { session }, payload: n }));
  const answers = await post(started.server, messages);
  await page.waitForFunction((last) => acked === last, answers.at(-1).seq, { timeout: DEADLINE });
  const acks = await page.evaluate(() => acks);
  assert.ok(acks <= 60, `${acks} acknowledgements for 500 messages`);
  await close();
});
