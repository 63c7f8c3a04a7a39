// A broker, Chromium and a proxy for the tests.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before } from "node:test";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import { firefox } from "./firefox.js";

const root = fileURLToPath(new URL("../..", import.meta.url));
const target = process.env.CARGO_TARGET_DIR ?? `${root}/target`;
export const binary = process.env.X0_MSG_BINARY ?? `${target}/debug/x0-msg-server`;

/** Where screenshots go. */
export const shots = `${target}/screenshots`;
mkdirSync(shots, { recursive: true });

/** Every event comes earlier, also on a busy machine. In milliseconds. */
export const DEADLINE = 60_000;

/**
 * Starts what the tests of a file share, before the first of them, and stops it after the last one.
 * @template T
 * @param {() => Promise<T>} start an object of brokers, browsers and servers
 * @returns {T} filled before the first test
 */
export function shared(start) {
  const things = {};
  before(async () => Object.assign(things, await start()));
  after(async () => {
    for (const thing of Object.values(things)) await (thing.stop ?? thing.close).call(thing);
  });
  return things;
}

/** Starts the binary on a directory; its process and address, once it is ready. */
async function launch(dir, listen, args) {
  const child = spawn(binary, ["--listen", listen, "--data-dir", dir, ...args], { stdio: ["ignore", "ignore", "pipe"] });
  for await (const line of createInterface(child.stderr)) {
    const entry = JSON.parse(line);
    if (entry.message === "ready") {
      child.stderr.resume();
      return { child, address: entry.address };
    }
  }
  throw new Error("the broker did not start");
}

/**
 * Starts a broker with a store of its own, on a free port. `restart` ends it by a signal and starts it again with its
 * store at its address; `signal` sends it a signal.
 */
export async function broker(listen = "127.0.0.1:0", ...args) {
  const dir = mkdtempSync(join(tmpdir(), "x0-msg-"));
  let { child, address } = await launch(dir, listen, args);
  const end = async (signal) => {
    if (child.exitCode !== null || child.signalCode !== null) return;
    child.kill(signal);
    await once(child, "exit");
  };
  const restart = async (signal = "SIGTERM") => {
    await end(signal);
    ({ child } = await launch(dir, address, args));
  };
  const stop = async () => {
    await end("SIGTERM");
    rmSync(dir, { recursive: true, force: true });
  };
  return { address, url: `http://${address}`, stop, restart, signal: (signal) => child.kill(signal) };
}

/** Starts a NATS server that stores, with a store of its own, on a free port. X0_MSG_NATS_SERVER names the program. */
export async function nats() {
  const dir = mkdtempSync(join(tmpdir(), "x0-nats-"));
  const program = process.env.X0_MSG_NATS_SERVER ?? "nats-server";
  const child = spawn(program, ["-a", "127.0.0.1", "-p", "-1", "-js", "-sd", dir], { stdio: ["ignore", "ignore", "pipe"] });
  await once(child, "spawn");
  let url;
  for await (const line of createInterface(child.stderr)) {
    url = /client connections on (\S+)/.exec(line)?.[1] ?? url;
    if (line.includes("Server is ready")) break;
  }
  child.stderr.resume();
  const stop = async () => {
    child.kill("SIGKILL");
    await once(child, "exit");
    rmSync(dir, { recursive: true, force: true });
  };
  return { url: `nats://${url}`, stop };
}

/** Chromium, and the flags that it needs. */
export const browserPath = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const browserArgs = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];

/** Starts Chromium, with further flags. With X0_MSG_BROWSER=firefox, Firefox takes its place where flags are not needed. */
export async function browser(...flags) {
  if (process.env.X0_MSG_BROWSER === "firefox" && flags.length === 0) return firefox();
  return chromium.launch({ executablePath: browserPath, args: [...browserArgs, ...flags] });
}

/** Opens a page in a context of its own. An error in the page fails the test. */
export async function openPage(chromium, url, options = {}) {
  return openPageIn(await chromium.newContext(options), url);
}

/** Opens a page in this context. X0_MSG_CLIENT names a client.js that takes the place of the one in the binary; in liar.js too. */
export async function openPageIn(context, url) {
  const page = await context.newPage();
  const { X0_MSG_CLIENT: path } = process.env;
  if (path && page.route) await page.route("**/client.js", (route) => route.fulfill({ path: resolve(root, path), contentType: "text/javascript" }));
  page.setDefaultTimeout(DEADLINE);
  page.on("pageerror", (error) => assert.fail(error));
  await page.goto(url);
  return page;
}

/** Sends a message as a session; the answer of the broker. */
export async function post(broker, body, session = "tester") {
  const answer = await fetch(`${broker.url}/v1/messages?session=${session}`, { method: "POST", body: JSON.stringify(body) });
  return answer.json();
}

/** Another origin: a server of one empty page. */
export async function foreignOrigin() {
  const server = createServer((_, response) => response.setHeader("content-type", "text/html").end("<!doctype html><title>x0</title>"));
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return { url: `http://127.0.0.1:${server.address().port}/`, stop: () => (server.closeAllConnections(), server.close()) };
}

/**
 * A proxy between page and broker, whose `address` may change. `sockets` is what it does with WebSockets: "pass" them on, "refuse" the upgrade, or
 * "kill" the connection after the upgrade, before the first frame.
 */
export async function proxy(broker) {
  const state = { sockets: "pass", upgrades: 0 };
  const server = createServer((incoming, outgoing) => {
    const { method, url, headers } = incoming;
    const [host, port] = broker.address.split(":");
    const onward = httpRequest({ host, port, method, path: url, headers }, (answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      answer.pipe(outgoing);
    });
    onward.on("error", () => outgoing.destroy());
    outgoing.on("close", () => onward.destroy());
    incoming.pipe(onward);
  });
  const open = new Set();
  server.on("upgrade", (incoming, socket, head) => {
    state.upgrades++;
    if (state.sockets === "refuse") return socket.end("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
    const [host, port] = broker.address.split(":");
    const onward = connect(Number(port), host, () => {
      const headers = incoming.rawHeaders.reduce((text, part, at) => text + part + (at % 2 ? "\r\n" : ": "), "");
      onward.write(`${incoming.method} ${incoming.url} HTTP/1.1\r\n${headers}\r\n`);
      onward.write(head);
    });
    for (const end of [socket, onward]) {
      open.add(end);
      end.on("error", () => {});
      end.on("close", () => (open.delete(end), socket.destroy(), onward.destroy()));
    }
    if (state.sockets === "pass") onward.pipe(socket), socket.pipe(onward);
    else onward.once("data", (data) => socket.write(data.subarray(0, data.indexOf("\r\n\r\n") + 4), () => socket.destroy()));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const stop = () => (open.forEach((end) => end.destroy()), server.closeAllConnections(), server.close());
  return Object.assign(state, { url: `http://127.0.0.1:${server.address().port}`, stop });
}
