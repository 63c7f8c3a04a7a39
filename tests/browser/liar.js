// A proxy between client and broker that does to it what the field does: it lies, cuts, freezes and slows down.

import { once } from "node:events";
import { readFileSync } from "node:fs";
import { createServer, request as httpRequest } from "node:http";
import { connect } from "node:net";

const ROOT = new URL("../../", import.meta.url);

/** Waits until a stream takes more, or is closed. */
const drained = (stream) =>
  new Promise((done) => {
    const end = () => (stream.off("drain", end), stream.off("close", end), done());
    stream.on("drain", end).on("close", end);
  });

/**
 * What it does can be changed at any time:
 * - `lie(request, body)` gives `{ status, body }` in place of the broker's answer, or nothing; with `passed` the broker
 *   gets the request all the same;
 * - `sockets` is "pass", "refuse", or after how many milliseconds a WebSocket is cut;
 * - `frozen` lets no byte through in either direction, and closes nothing;
 * - `late` brings requests to the broker after the client has given them up;
 * - `uplink` is how many bytes a second go to the broker, over everything;
 * - `prefix` is the path below which it serves the broker.
 *
 * `requests` holds the addresses of all requests, `waiting` how many polls are open, and `most` the most of them at once.
 */
export async function liar(address, prefix = "") {
  const [host, port] = address.split(":");
  const state = { lie: (_request, _body) => undefined, sockets: "pass", frozen: false, late: false, uplink: Infinity, prefix, upgrades: 0, requests: [], waiting: 0, most: 0 };
  const open = new Set();
  const inner = (url) => (url.startsWith(state.prefix) ? url.slice(state.prefix.length) : "/nothing-is-here");

  /** Waits until the network lets these bytes through to the broker. */
  let busy = Promise.resolve();
  const passage = (bytes) => {
    busy = busy.then(async () => {
      if (state.uplink !== Infinity) await new Promise((done) => setTimeout(done, (bytes / state.uplink) * 1000));
    });
    return busy;
  };
  /** Copies a stream as the network does now. */
  async function copy(from, to, slow) {
    from.on("error", () => {});
    try {
      for await (const data of from) {
        for (let at = 0; at < data.length; at += 4096) {
          const part = data.subarray(at, at + 4096);
          if (slow) await passage(part.length);
          while (state.frozen && !to.destroyed) await new Promise((done) => setTimeout(done, 50));
          if (to.destroyed) return;
          if (!to.write(part)) await drained(to);
        }
      }
    } catch {
      // Cut.
    }
    if (!state.frozen) to.end();
  }

  const server = createServer(async (incoming, outgoing) => {
    const { method, url } = incoming;
    state.requests.push(url);
    const chunks = [];
    try {
      for await (const data of incoming) {
        for (let at = 0; at < data.length; at += 4096) await passage(Math.min(4096, data.length - at));
        chunks.push(data);
      }
    } catch {
      return;
    }
    const body = Buffer.concat(chunks);
    while (state.frozen && (state.late || !outgoing.destroyed)) await new Promise((done) => setTimeout(done, 50));
    if (outgoing.destroyed && !state.late) return;
    /** Passes the request on to the broker. */
    const pass = (onAnswer) => {
      const onward = httpRequest({ host, port, method, path: inner(url), headers: { ...incoming.headers, "content-length": body.length } }, onAnswer);
      onward.on("error", () => outgoing.destroy());
      onward.end(body);
      return onward;
    };
    const { X0_MSG_CLIENT: own } = process.env;
    if (own && url.endsWith("/client.js")) {
      return outgoing.writeHead(200, { "content-type": "text/javascript", "access-control-allow-origin": "*" }).end(readFileSync(new URL(own, ROOT)));
    }
    const lie = state.lie(incoming, body.toString());
    if (lie !== undefined) {
      if (lie.passed) pass((answer) => answer.resume());
      return outgoing.writeHead(lie.status ?? 200, { "content-type": "application/json", "access-control-allow-origin": "*" }).end(lie.body ?? "");
    }
    const isPoll = url.includes("/v1/messages/poll");
    if (isPoll) state.most = Math.max(state.most, ++state.waiting);
    outgoing.on("close", () => isPoll && state.waiting--);
    const onward = pass((answer) => {
      outgoing.writeHead(answer.statusCode, answer.headers);
      copy(answer, outgoing, false);
    });
    outgoing.on("close", () => state.late || onward.destroy());
  });
  server.on("connection", (socket) => (open.add(socket), socket.on("close", () => open.delete(socket))));
  server.on("upgrade", (incoming, socket, head) => {
    state.upgrades++;
    if (state.sockets === "refuse") return socket.end("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n");
    const onward = connect(Number(port), host, () => {
      const headers = incoming.rawHeaders.reduce((text, part, at) => text + part + (at % 2 ? "\r\n" : ": "), "");
      onward.write(`${incoming.method} ${inner(incoming.url)} HTTP/1.1\r\n${headers}\r\n`);
      onward.write(head);
      copy(socket, onward, true);
      copy(onward, socket, false);
    });
    const cut = () => (socket.destroy(), onward.destroy());
    if (typeof state.sockets === "number") onward.once("data", () => setTimeout(cut, state.sockets));
    for (const end of [socket, onward]) {
      open.add(end);
      end.on("error", () => {});
      end.on("close", () => (open.delete(end), state.frozen || cut()));
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  /** Cuts all connections. */
  const cut = () => open.forEach((end) => end.destroy());
  const stop = () => ((state.frozen = false), cut(), server.closeAllConnections(), server.close());
  const at = `127.0.0.1:${server.address().port}`;
  return Object.assign(state, { address: at, url: `http://${at}`, cut, stop });
}
