// client.js in chaos: cuts, freezes, crashes of the broker, proxies that lie, changes of the transport.
//
// Two pages of an origin, each with its session, read numbered messages of several senders, send to each other, and read a
// topic. Some handlers throw. Each message comes to its handler once, or again only where it threw, in the order of its
// sender; each send is settled, and stored once.
//
// X0_MSG_SEED repeats a seed: the same events, though not at the same moments. With X0_MSG_LONG_TESTS there are 10,000 messages.

import assert from "node:assert/strict";
import { appendFileSync, writeFileSync } from "node:fs";
import { test } from "node:test";
import { setTimeout as pause } from "node:timers/promises";
import { LIES, randomly, violations } from "./chaos.js";
import { broker, browser, DEADLINE, openPageIn, shots } from "./harness.js";
import { liar } from "./liar.js";

const long = Boolean(process.env.X0_MSG_LONG_TESTS);
/** How many messages each sender sends. There are nine senders: three to each page, each page to the other one, one of a topic. */
const EACH = long ? 1_112 : 70;
const seed = Number(process.env.X0_MSG_SEED ?? Math.floor(Math.random() * 2 ** 31));

test("the checker finds what is lost, repeated, out of order, or handled while another one is held", () => {
  const sent = [0, 1, 2].map((n) => ({ from: "a", n, outcome: "sent" }));
  const unknown = { from: "b", n: 0, outcome: "unknown" };
  const check = (numbers, extra = []) => violations([...numbers.map((n) => ({ from: "a", n })), ...extra], [...sent, unknown]);
  assert.deepEqual(check([0, 1, 2]), []);
  assert.deepEqual(check([0, 1, 2], [{ from: "b", n: 0 }]), []);
  assert.deepEqual(check([0, 2]), ["a 1 was sent and did not come"]);
  assert.deepEqual(check([0, 2, 1]), ["a 1 came after 2"]);
  assert.deepEqual(check([0, 1, 1, 2]), ["a 1 came again after it was handled"]);
  assert.deepEqual(check([0, 1, 2], [{ from: "c", n: 9 }]), ["c 9 was never sent"]);
  const throwing = [{ from: "a", n: 0, threw: true }, { from: "a", n: 0 }, { from: "a", n: 1 }, { from: "a", n: 2 }];
  assert.deepEqual(violations(throwing, sent), []);
  assert.deepEqual(violations(throwing.toSpliced(1, 1), sent), ["a 1 came while a 0 had thrown", "a 0 was sent and did not come"]);
});

/** Opens a page with a client whose handler is slow at times, and throws at times. */
async function reader(context, url, name, seed) {
  const page = await openPageIn(context, `${url}/healthz`);
  await page.evaluate(async ([name, seed, randomly]) => {
    const { connect } = await import("/client.js");
    const { chance, between } = eval(`(${randomly})`)(seed);
    const thrown = new Set();
    Object.assign(window, { mailbox: [], topic: [], gaps: [], states: [], sends: [], settled: 0 });
    const take = (into, mayThrow) => async ({ payload: { from, n } }) => {
      if (chance(0.05)) await new Promise((done) => setTimeout(done, between(1, 600)));
      const key = `${from} ${n}`;
      const threw = mayThrow && chance(0.01) && !thrown.has(key);
      into.push({ from, n, ...(threw ? { threw } : {}) });
      if (!threw) return;
      thrown.add(key);
      throw new Error("the handler throws");
    };
    window.client = connect({
      session: name,
      onMessage: take(mailbox, true),
      onGap: (gap) => gaps.push(gap),
      onStatus: ({ state, transport, reason }) => states.push([state, transport, reason]),
    });
    client.subscribe("chaos", take(topic, false), { after: 0 });
    /** Sends the next ones at once. */
    window.burst = (to, count) => {
      for (; count > 0; count--) {
        const send = { from: name, n: sends.length, outcome: "open" };
        sends.push(send);
        client.send({ session: to }, { from: name, n: send.n }).then(
          () => (send.outcome = "sent"),
          ({ code, message }) => (send.outcome = `${code}: ${message}`),
        ).finally(() => settled++);
      }
    };
  }, [name, seed, String(randomly)]);
  await page.waitForFunction(() => client.status.state === "online");
  return page;
}

/** Sends numbered messages over HTTP in batches, each until it is answered. What is sent is in the array. */
async function sender(server, from, to, { between, chance }, sent) {
  while (sent.length < EACH) {
    const count = Math.min(chance(0.2) ? between(2, 12) : 1, EACH - sent.length);
    const batch = Array.from({ length: count }, (_, at) => ({ from, n: sent.length + at, outcome: "sent" }));
    const body = JSON.stringify(batch.map(({ n }) => ({ id: `${from}-${n}`, to, payload: { from, n } })));
    for (let stored = false; !stored; ) {
      try {
        const response = await fetch(`${server.url}/v1/messages?session=${from}`, { method: "POST", body, signal: AbortSignal.timeout(10_000) });
        stored = response.ok && (await response.json()).every(({ seq }) => seq > 0);
      } catch {
        // The broker is frozen, or crashed.
      }
      if (!stored) await pause(100);
    }
    sent.push(...batch);
    await pause(between(0, long ? 500 : 250));
  }
}

test(`each message is handled once and in order, through cuts, freezes, crashes, lies and changes of transport (seed ${seed})`, { timeout: long ? 3_600_000 : undefined }, async () => {
  const trace = `${shots}/../chaos-${seed}.log`;
  writeFileSync(trace, "");
  const began = performance.now();
  const note = (...words) => appendFileSync(trace, `${Math.round(performance.now() - began)} ${words.join(" ")}\n`);
  const dice = randomly(seed);
  const { between, chance, one } = dice;
  const server = await broker();
  const proxy = await liar(server.address);
  const chromium = await browser();
  const context = await chromium.newContext();
  const names = ["left", "right"];
  const pages = await Promise.all(names.map((name, at) => reader(context, proxy.url, name, seed + at)));
  const somewhere = () => one(pages);

  const calm = () => Object.assign(proxy, { lie: () => undefined, sockets: "pass", frozen: false, late: false });
  /** Things that happen, and how often. */
  const events = {
    cut: [4, () => proxy.cut()],
    freeze: [2, async () => {
      Object.assign(proxy, { frozen: true, late: chance(0.5) });
      await pause(chance(0.2) ? between(8_000, 12_000) : between(100, 2_000));
      if (chance(0.5)) proxy.cut();
      proxy.frozen = false;
    }],
    crash: [2, () => server.restart("SIGKILL")],
    restart: [1, () => server.restart()],
    stall: [1, async () => {
      server.signal("SIGSTOP");
      await pause(between(100, 3_000));
      server.signal("SIGCONT");
    }],
    lies: [3, () => {
      const part = one([0.1, 0.5, 1]);
      proxy.lie = ({ url }) => (url.startsWith("/v1/") && chance(part) ? one(LIES) : undefined);
    }],
    truth: [4, () => (proxy.lie = () => undefined)],
    "no sockets": [1, () => ((proxy.sockets = "refuse"), proxy.cut())],
    "short-lived sockets": [1, () => (proxy.sockets = between(1, 1_500))],
    "sockets again": [3, () => (proxy.sockets = "pass")],
    transport: [3, () => {
      const transport = one(["auto", "auto", "poll", "poll", "websocket"]);
      return somewhere().evaluate((transport) => client.use(transport), transport);
    }],
    rest: [1, async () => {
      const page = somewhere();
      await page.evaluate(() => client.pause());
      await pause(between(0, 500));
      await page.evaluate(() => client.resume());
    }],
    online: [3, () => somewhere().evaluate(() => void dispatchEvent(new Event("online")))],
    calm: [2, async () => (calm(), pause(between(500, 3_000)))],
  };
  const wheel = Object.entries(events).flatMap(([name, [often]]) => Array(often).fill(name));

  const from = [0, 1, 2].flatMap((n) => names.map((to) => ({ name: `${to}-${n}`, to: { session: to }, sent: [] })));
  const topic = { name: "publisher", to: { topic: "chaos" }, sent: [] };
  let sending = true;
  const senders = [...from, topic].map(({ name, to, sent }, at) => sender(server, name, to, randomly(seed + 10 + at), sent));
  const pagesSend = pages.map(async (page, at) => {
    const { between } = randomly(seed + 100 + at);
    for (let left = EACH; left > 0; await pause(between(100, 1_500))) {
      const count = Math.min(left, between(1, 10));
      await page.evaluate(([to, count]) => burst(to, count), [names[1 - at], count]);
      left -= count;
    }
  });
  const allSent = Promise.all([...senders, ...pagesSend]).finally(() => (sending = false));
  allSent.catch(() => {});
  let happened = 0;
  while (sending) {
    const name = one(wheel);
    note(name);
    await events[name][1]();
    happened++;
    await pause(between(50, 1_000));
  }
  await allSent;
  calm();
  note("the end");
  await Promise.all(pages.map((page) => page.evaluate(() => (client.use("auto"), void dispatchEvent(new Event("online"))))));

  const problems = [];
  const sendsOf = await Promise.all(pages.map(async (page) => {
    await page.waitForFunction((each) => settled === each, EACH, { timeout: 4 * DEADLINE });
    return page.evaluate(() => sends);
  }));
  for (const [at, page] of pages.entries()) {
    const name = names[at];
    const sent = [...from.filter(({ to }) => to.session === name).flatMap(({ sent }) => sent), ...sendsOf[1 - at]];
    const expected = sent.filter(({ outcome }) => outcome === "sent").length;
    await page.waitForFunction(
      ([mailboxed, published]) => mailbox.filter(({ threw }) => !threw).length >= mailboxed && topic.length >= published,
      [expected, EACH], { timeout: 4 * DEADLINE },
    ).catch(() => problems.push(`${name} does not get everything`));
    await page.evaluate(() => client.flush());
    const { mailbox, topics, gaps, states } = await page.evaluate(() => ({ mailbox, topics: topic, gaps, states }));
    note(name, "states", JSON.stringify(states));
    note(name, "handled", JSON.stringify(mailbox));
    problems.push(...violations(mailbox, sent).map((text) => `${name}: ${text}`));
    problems.push(...violations(topics, topic.sent).map((text) => `${name}, topic: ${text}`));
    problems.push(...gaps.map((gap) => `${name}: ${JSON.stringify(gap)}`));
    for (const { n, outcome } of sendsOf[at]) if (!/^(sent$|unknown:)/.test(outcome)) problems.push(`${name} ${n} is ${outcome}`);
    if (states.some(([state]) => state === "closed")) problems.push(`${name}: closed, ${JSON.stringify(states.at(-1))}`);
    const over = (transport) => states.filter((state) => state[0] === "online" && state[1] === transport).length;
    const given = sendsOf[at].filter(({ outcome }) => outcome !== "sent");
    console.log(
      `${name}: ${mailbox.length} calls of the handler, ${mailbox.filter(({ threw }) => threw).length} threw; online ${over("websocket")} times over ` +
        `WebSocket and ${over("poll")} over polls; ${given.length} of ${EACH} sends are not known to be stored ${[...new Set(given.map(({ outcome }) => outcome))]}`,
    );
  }
  console.log(`seed ${seed}: ${happened} events in ${Math.round((performance.now() - began) / 1000)} s; ${trace}`);
  for (const problem of problems) note(problem);
  await chromium.close();
  proxy.stop();
  await server.stop();
  assert.deepEqual(problems.slice(0, 20), []);
});
