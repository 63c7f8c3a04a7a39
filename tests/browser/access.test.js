// Access of real pages: foreign origins, tokens that expire, sessions that end, and polls from another origin.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { binary, broker, browser, foreignOrigin, openPage, shared, shots } from "./harness.js";

const KEY = "a key of a backend that tests 0123456789".replaceAll(" ", "-");

const dir = mkdtempSync(join(tmpdir(), "x0-msg-access-"));
after(() => rmSync(dir, { recursive: true }));
const started = shared(async () => {
  writeFileSync(join(dir, "keys.toml"), `[[key]]\nname = "tests"\nkey = "${KEY}"\nfrom = "the backend"\n`);
  execFileSync(binary, ["token", "--new-key", "--key-file", join(dir, "secret"), "--user", "nobody"], { stdio: "ignore" });
  const elsewhere = await foreignOrigin();
  const origin = elsewhere.url.replace(/\/$/, "");
  const keys = ["--token-key-file", join(dir, "secret"), "--api-key-file", join(dir, "keys.toml")];
  return {
    chromium: await browser(),
    elsewhere,
    open: await broker(),
    guarded: await broker("127.0.0.1:0", "--auth", "token", ...keys, "--allow-origin", origin),
  };
});

/** A token as the command makes it. */
const token = (user, session, ...more) =>
  execFileSync(binary, ["token", "--key-file", join(dir, "secret"), "--user", user, "--session", session, ...more], { encoding: "utf8" }).trim();

/** One call of the backend. */
const backend = async (method, target, body) => {
  const headers = { authorization: `Bearer ${KEY}` };
  return fetch(`${started.guarded.url}${target}`, { method, headers, body: body && JSON.stringify(body) });
};

const pageAt = (url) => openPage(started.chromium, url);

/** What a WebSocket of a page receives, and how it ends. */
const socketFrom = (page, address) =>
  page.evaluate(
    (address) =>
      new Promise((done) => {
        const socket = new WebSocket(`${address.replace("http", "ws")}/ws?session=A`, "x0-msg.v1");
        const heard = [];
        socket.onmessage = ({ data }) => {
          heard.push(JSON.parse(data).type);
          if (heard[0] === "welcome") done({ heard });
        };
        socket.onclose = ({ code, reason }) => done({ heard, code, reason });
      }),
    address,
  );

test("a page of a foreign origin cannot open /ws, nor call /v1, unless that is configured", async () => {
  const page = await pageAt(started.elsewhere.url);
  const refused = await socketFrom(page, started.open.url);
  assert.deepEqual([refused.heard, refused.code], [[], 4503]);
  assert.match(refused.reason, /--allow-origin/);
  const called = await page.evaluate(async (url) => {
    const body = '{"to":{"session":"victim"},"payload":1}';
    // The browser lets a page send these requests, and hides the answers. The broker refuses them.
    await fetch(`${url}/v1/messages`, { method: "POST", mode: "no-cors", body }).catch(() => {});
    await new Promise((done) => Object.assign(new Image(), { onerror: done, src: `${url}/v1/messages?session=victim&wait=0&after=1` }));
    return fetch(`${url}/v1/messages?session=victim&wait=0`).then(() => "answered", () => "refused");
  }, started.open.url);
  assert.equal(called, "refused");
  const waiting = await (await fetch(`${started.open.url}/v1/messages?session=victim&wait=0`)).json();
  assert.deepEqual(waiting.messages, []);
  // client.js reports it, and stops to try.
  const told = await page.evaluate(async (url) => {
    const { connect } = await import(`${url}/client.js`);
    return new Promise((done) => connect({ session: "A", onStatus: (status) => status.state === "closed" && done(status.reason) }));
  }, started.open.url);
  assert.match(told, /--allow-origin/);
  await page.context().close();
  // A page of the broker itself is accepted.
  const own = await pageAt(`${started.open.url}/healthz`);
  assert.deepEqual((await socketFrom(own, started.open.url)).heard, ["welcome"]);
  await own.context().close();
});

/** A page of another origin with a client; `tokens` are what its function gives, one after the other. */
async function client(tokens, options = {}) {
  const page = await pageAt(started.elsewhere.url);
  await page.evaluate(
    async ([url, tokens, options]) => {
      const { connect } = await import(`${url}/client.js`);
      window.got = [];
      window.statuses = [];
      window.asked = 0;
      window.client = connect({
        token: () => tokens[Math.min(window.asked++, tokens.length - 1)],
        onMessage: (message) => window.got.push(message),
        onStatus: ({ state, transport, reason }) => window.statuses.push({ state, transport, reason }),
        ...options,
      });
    },
    [started.guarded.url, tokens, options],
  );
  return page;
}

for (const transport of ["websocket", "poll"]) {
  test(`a page of another origin that is let in sends and reads with a token, over ${transport}`, async () => {
    const page = await client([token("ann", `page-${transport}`)], { transport });
    await page.waitForFunction(() => client.status.state === "online");
    const sent = await page.evaluate(() => client.send({ user: "ann" }, { hello: 1 }));
    assert.equal(sent.sessions, 1);
    // The broker reads a large body only with the token in its header.
    await page.evaluate(() => client.send({ user: "ann" }, "x".repeat(300_000)));
    await page.waitForFunction(() => got.length === 2);
    assert.equal(await page.evaluate(() => got.pop().payload.length), 300_000);
    await backend("POST", "/v1/messages", { to: { user: "ann" }, payload: "from the backend" });
    await page.waitForFunction(() => got.length === 2);
    assert.deepEqual(await page.evaluate(() => got.map(({ from }) => from)), ["ann", "the backend"]);
    const shown = (await (await backend("GET", `/v1/sessions/page-${transport}`)).json()).connections;
    assert.equal(shown[transport], 1);
    // Handled messages are acknowledged.
    for (let pending = 1; pending > 0; ) ({ pending } = await (await backend("GET", `/v1/sessions/page-${transport}`)).json());
    await backend("DELETE", `/v1/sessions/page-${transport}`);
    await page.waitForFunction(() => client.status.state === "closed");
    assert.match(await page.evaluate(() => client.status.reason), /ended/);
    await page.context().close();
  });
}

test("a token that expires is renewed on the same socket", async () => {
  // The token has expired, by less than the allowed clock skew.
  const stale = token("ann", "renewed", "--ttl", "1ms");
  const page = await client([stale, token("ann", "renewed")], { transport: "websocket" });
  await page.waitForFunction(() => window.asked === 2);
  await page.evaluate(() => client.send({ user: "ann" }, 1));
  await page.waitForFunction(() => got.length === 1);
  assert.deepEqual(await page.evaluate(() => statuses.map(({ state }) => state)), ["connecting", "online"]);
  await page.context().close();
});

test("a token that is not renewed is asked for now and then, and not without end", async () => {
  const page = await client([token("ann", "stuck", "--ttl", "1ms")], { transport: "websocket" });
  await page.waitForFunction(() => window.asked >= 3);
  await page.evaluate(() => new Promise((done) => setTimeout(done, 2_000)));
  const asked = await page.evaluate(() => window.asked);
  assert.ok(asked <= 8, `${asked} times within seconds`);
  await page.context().close();
});

test("a token without a session gets one, over either transport, and keeps it after that was forgotten", async () => {
  const anonymous = execFileSync(binary, ["token", "--key-file", join(dir, "secret"), "--user", "ann-without"], { encoding: "utf8" }).trim();
  for (const transport of ["websocket", "poll"]) {
    const page = await client([anonymous], { transport });
    await page.waitForFunction(() => client.status.state === "online" && client.session !== undefined);
    const session = await page.evaluate(() => client.session);
    await page.evaluate(() => client.pause());
    await backend("POST", "/v1/messages", { to: { session }, payload: transport });
    await page.evaluate(() => client.resume());
    await page.waitForFunction(() => got.length === 1);
    assert.equal(await page.evaluate(() => client.session), session);
    await page.context().close();
  }
});

test("a token that is refused is asked for again some times, and then it is over", async () => {
  for (const transport of ["websocket", "poll"]) {
    const renewed = await client(["wrong", token("ann", `again-${transport}`)], { transport });
    await renewed.waitForFunction(() => client.status.state === "online");
    await renewed.context().close();
    const page = await client(["wrong"], { transport });
    await page.waitForFunction(() => client.status.state === "closed");
    // The pauses grow, so that clients do not overload a token service after an outage.
    assert.equal(await page.evaluate(() => asked), 5, transport);
    assert.match(await page.evaluate(() => client.status.reason), /token/);
    await page.context().close();
  }
});

test("the demo says what is wrong with its token, and how to get another one", async () => {
  for (const [name, proof, says] of [
    ["wrong", "a.b.c", /refuses the token of this page: .*token/],
    ["expired", token("ann", "demo-expired", "--topic", "*", "--send", "*", "--ttl", "1ms"), /refuses the token of this page: .*expired/],
    ["narrow", token("ann", "demo-narrow"), /does not allow .*x0-demo\/who/],
  ]) {
    const page = await pageAt(`${started.guarded.url}/#token=${proof}`);
    await page.waitForSelector("#no-token:not([hidden])");
    const text = await page.textContent("#no-token");
    assert.match(text ?? "", says, name);
    assert.match(text ?? "", /#token=/, name);
    assert.ok(await page.isHidden("#alone"), name);
    await page.setViewportSize({ width: 1280, height: 900 });
    await page.screenshot({ path: `${shots}/demo-token-${name}.png` });
    await page.context().close();
  }
});

test("the demo wants a token where the broker does, and two tabs meet by their handles", async () => {
  const without = await pageAt(started.guarded.url);
  await without.waitForSelector("#no-token:not([hidden])");
  assert.ok(await without.isHidden("#alone"));
  await without.setViewportSize({ width: 1280, height: 900 });
  await without.screenshot({ path: `${shots}/demo-no-token.png` });
  assert.ok(await without.isHidden("#from-shell"));
  // The token in the address of the page that is open already.
  await without.goto(`${started.guarded.url}/#token=${token("cy", "demo-cy", "--topic", "x0-demo/*", "--send", "*")}`);
  await without.waitForSelector("#status[data-state=online]");
  assert.ok(await without.isHidden("#no-token"));
  assert.match((await without.textContent("#shell")) ?? "", /send --to h-\S+ '{"hello":1}' --token-file FILE --server/);
  await without.context().close();
  const more = ["--topic", "x0-demo/*", "--send", "*"];
  const [ann, bob] = [await pageAt(`${started.guarded.url}/#token=${token("ann", "demo-ann", ...more)}`), await pageAt(`${started.guarded.url}/#token=${token("bob", "demo-bob", ...more)}`)];
  for (const page of [ann, bob]) await page.waitForFunction(() => document.querySelectorAll("#receivers input").length === 1);
  await ann.fill("#Form2", "hello bob");
  await ann.click("#send");
  await bob.waitForFunction(() => /** @type {any} */ (document.querySelector("#Form2")).value === "hello bob");
  await ann.waitForFunction(() => document.querySelector("#outcome")?.textContent?.startsWith("Stored"));
  await bob.waitForFunction(() => document.querySelector("#log")?.textContent?.includes("from ann: "));
  await bob.setViewportSize({ width: 1280, height: 900 });
  await bob.screenshot({ path: `${shots}/demo-token.png` });
  await bob.setViewportSize({ width: 390, height: 900 });
  await bob.screenshot({ path: `${shots}/demo-token-narrow.png`, fullPage: true });
  for (const [page, other] of [[ann, "demo-bob"], [bob, "demo-ann"]]) {
    assert.ok(!(await page.content()).includes(other), "the session of the other tab is not to be seen");
    await page.context().close();
  }
});

for (const transport of ["websocket", "poll"]) {
  test(`over ${transport}, the id of a session that is registered as a proof needs no token, until it is registered without`, async () => {
    const id = randomBytes(16).toString("base64url");
    assert.equal((await backend("PUT", `/v1/sessions/${id}`, { user: transport, proof: true })).status, 200);
    const page = await pageAt(`${started.guarded.url}/healthz`);
    const addresses = [];
    page.on("request", (request) => addresses.push(request.url()));
    const sent = await page.evaluate(
      async ({ id, transport }) => {
        const { connect } = await import("/client.js");
        const [got, errors] = [[], []];
        const closed = new Promise((done) => {
          const onStatus = (status) => status.state === "closed" && done(status.reason);
          const onMessage = ({ payload, from }) => got.push([payload.length, from]);
          window.client = connect({ session: id, transport, onMessage, onStatus, onError: (error) => errors.push(error.message) });
        });
        Object.assign(window, { got, clientClosed: closed });
        // More than the broker reads before it has seen a proof.
        for (const size of [1, 200_000, 100_000]) await window.client.send({ user: transport }, "x".repeat(size));
        return errors;
      },
      { id, transport },
    );
    assert.deepEqual(sent, []);
    await page.waitForFunction(() => window.got.length === 3);
    const expected = [1, 200_000, 100_000].map((size) => [size, transport]);
    assert.deepEqual(await page.evaluate(() => window.got), expected);
    assert.ok(addresses.every((address) => !address.includes(id)), "the id is in no address");
    assert.equal((await backend("DELETE", `/v1/sessions/${id}`)).status, 204);
    assert.equal((await backend("PUT", `/v1/sessions/${id}`, {})).status, 200);
    assert.match(await page.evaluate(() => window.clientClosed), /proof|ended/);
    await page.context().close();
  });
}
