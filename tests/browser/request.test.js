// Requests and replies of client.js: over each transport, in handlers, with tabs, restarts and late replies.

import assert from "node:assert/strict";
import { test } from "node:test";
import { broker, browser, openPage, openPageIn, post, shared } from "./harness.js";

const started = shared(async () => ({ chromium: await browser(), server: await broker() }));

let number = 0;

/** Runs a client in a page. The text of `onMessage` is the handler; it may use `client`, `got` and `replies`. */
async function connectIn(page, session, transport, onMessage = "(message) => void got.push(message.payload)", url = started.server.url) {
  await page.evaluate(
    async ([session, transport, onMessage, base]) => {
      const { connect } = await import(`${base}/client.js`);
      Object.assign(window, { got: [], replies: [], errors: [], acked: 0 });
      // With a time that a busy machine does not miss.
      window.ask = (to, payload, options) => client.request(to, payload, { timeout: 120_000, ...options });
      window.client = connect({
        session,
        transport,
        onMessage: eval(onMessage),
        onAck: (seq) => (window.acked = seq),
        onError: (error) => errors.push(error.message),
      });
    },
    [session, transport, onMessage, url],
  );
  await page.waitForFunction(() => client.status.state === "online");
}

/** A page with a client that has a session of its own. */
async function client(transport, onMessage, url = started.server.url) {
  const page = await openPage(started.chromium, `${url}/healthz`);
  const session = `request-${++number}`;
  await connectIn(page, session, transport, onMessage, url);
  return { page, session, close: () => page.context().close() };
}

const ECHO = "(message) => message.reply ? message.reply({ echo: message.payload }) : void got.push(message.payload)";

/** The frames that are not acknowledged yet. */
const waiting = async (session, server = started.server) => {
  const answer = await fetch(`${server.url}/v1/messages?session=${session}&wait=0`);
  return (await answer.json()).messages.map(({ type, payload }) => [type, payload]);
};

/** Waits until a session has acknowledged everything. */
async function drained(session) {
  while ((await waiting(session)).length > 0) await new Promise((done) => setTimeout(done, 20));
}

for (const transport of ["websocket", "poll"]) {
  test(`a request is answered by the handler of the receiver, over ${transport}`, async () => {
    const [from, to] = [await client(transport), await client(transport, ECHO)];
    const { reply, plain } = await from.page.evaluate(async (session) => {
      const reply = await ask({ session }, { n: 1 }, { id: "q-1" });
      const { payload: plain } = await ask({ session }, 2, { volatile: client.status.transport === "websocket" });
      return { reply, plain };
    }, to.session);
    assert.deepEqual([reply.payload, reply.from, reply.id, typeof reply.ts], [{ echo: { n: 1 } }, to.session, "q-1", "number"]);
    assert.deepEqual(plain, { echo: 2 });
    await Promise.all([drained(from.session), drained(to.session)]);
    await Promise.all([from.close(), to.close()]);
  });

  test(`a request that is awaited in a handler is answered, over ${transport}`, async () => {
    const to = await client(transport, ECHO);
    const asking = `async (message) => {
      const to = { session: ${JSON.stringify(to.session)} };
      const { payload } = await ask(to, message.payload);
      got.push(payload.echo);
    }`;
    const from = await client(transport, asking);
    const polls = [];
    from.page.on("request", (request) => request.url().endsWith("/poll") && polls.push(...[JSON.parse(request.postData())].flat()));
    for (const n of [1, 2]) await post(started.server, { to: { session: from.session }, payload: n });
    await from.page.waitForFunction(() => got.length === 2);
    // The poll that comes anyway when a handler takes long has no part in it.
    if (transport === "poll") assert.ok(polls.some(({ ack, wait }) => ack === false && wait > 0));
    assert.deepEqual(await from.page.evaluate(() => [got, errors]), [[1, 2], []]);
    await drained(from.session);
    await Promise.all([from.close(), to.close()]);
  });

  test(`a reply acknowledges no message before it, over ${transport}`, async () => {
    const to = await client(transport, ECHO);
    const from = await client(transport, "() => new Promise((done) => (window.release = done))");
    await post(started.server, { to: { session: from.session }, payload: "unhandled" });
    await from.page.waitForFunction(() => window.release);
    const payload = await from.page.evaluate(async (session) => (await ask({ session }, 1)).payload, to.session);
    assert.deepEqual(payload, { echo: 1 });
    assert.deepEqual(await waiting(from.session), [["message", "unhandled"], ["reply", { echo: 1 }]]);
    await from.page.evaluate(() => release());
    await drained(from.session);
    await Promise.all([from.close(), to.close()]);
  });

  test(`a late reply is dropped and acknowledged, over ${transport}`, async () => {
    const to = await client(transport, "(message) => void (window.late = message)");
    const from = await client(transport);
    const codes = await from.page.evaluate(async (session) => {
      const short = client.request({ session }, 1, { timeout: 400 }).catch(({ name, code }) => [name, code]);
      const abort = new AbortController();
      const aborted = client.request({ session }, 2, { signal: abort.signal }).catch(({ name }) => name);
      abort.abort();
      return [await short, await aborted, client.pendingCount];
    }, to.session);
    assert.deepEqual(codes, [["Refused", "timeout"], "AbortError", 0]);
    // The reply to a request whose requester gave up, but whose time is not over.
    const asked = from.page.evaluate((session) => {
      const abort = new AbortController();
      window.giveUp = () => abort.abort();
      return ask({ session }, 3, { signal: abort.signal }).catch(({ name }) => name);
    }, to.session);
    await to.page.waitForFunction(() => window.late?.payload === 3);
    await from.page.evaluate(() => giveUp());
    assert.equal(await asked, "AbortError");
    await to.page.evaluate(() => late.reply("late"));
    await drained(from.session);
    assert.deepEqual(await from.page.evaluate(() => [got, errors]), [[], []]);
    await Promise.all([from.close(), to.close()]);
  });
}

test("the second reply is refused, and so is a request to nobody", async () => {
  const to = await client("websocket", "(message) => void (window.asked = message)");
  const from = await client("websocket");
  const first = from.page.evaluate(async (session) => (await ask({ session }, 1)).payload, to.session);
  await to.page.waitForFunction(() => window.asked);
  const codes = await to.page.evaluate(async () => {
    await asked.reply("first");
    const { seq } = await asked.reply("first");
    return [typeof seq, await asked.reply("second").catch(({ code }) => code)];
  });
  assert.deepEqual(codes, ["number", "forbidden"]);
  assert.equal(await first, "first");
  const refused = await from.page.evaluate(async () => [
    await client.request({ user: "nobody" }, 1).catch(({ code }) => code),
    await client.request({ topic: "t" }, 1).catch(({ code }) => code),
    await client.request({ session: "x" }, 1, { timeout: 0 }).catch(({ code }) => code),
    await client.request({ session: "x" }, undefined).catch(({ code }) => code),
    client.pendingCount,
  ]);
  assert.deepEqual(refused, ["not_found", "bad_request", "bad_request", "bad_request", 0]);
  const ended = await from.page.evaluate(async () => {
    const request = client.request({ session: "x" }, 1).catch(({ code }) => code);
    client.close();
    return request;
  });
  assert.equal(ended, "unavailable");
  await Promise.all([from.close(), to.close()]);
});

test("a request survives a restart of the broker and another transport", async () => {
  const server = await broker();
  const to = await client("websocket", "(message) => void (window.asked = message)", server.url);
  const from = await client("websocket", undefined, server.url);
  const reply = from.page.evaluate(async (session) => (await ask({ session }, 1)).payload, to.session);
  await to.page.waitForFunction(() => window.asked);
  await server.restart("SIGKILL");
  await from.page.evaluate(() => client.use("poll"));
  await to.page.evaluate(() => asked.reply("after the restart"));
  assert.equal(await reply, "after the restart");
  await Promise.all([from.close(), to.close()]);
  await server.stop();
});

test("a reply reaches all tabs of a session, and the one that asked uses it", async () => {
  const to = await client("websocket", ECHO);
  for (const transport of ["websocket", "poll"]) {
    const context = await started.chromium.newContext();
    const session = `request-${++number}`;
    const tabs = [];
    for (let n = 0; n < 3; n++) {
      const page = await openPageIn(context, `${started.server.url}/healthz`);
      await connectIn(page, session, transport);
      tabs.push(page);
    }
    const asking = tabs.map((page, n) =>
      page.evaluate(async ([session, n]) => (await ask({ session }, n)).payload, [to.session, n]),
    );
    assert.deepEqual(await Promise.all(asking), [{ echo: 0 }, { echo: 1 }, { echo: 2 }]);
    await drained(session);
    for (const page of tabs) assert.deepEqual(await page.evaluate(() => [got, errors]), [[], []]);
    await context.close();
  }
  await to.close();
});
