/**
 * The client of x0-msg-server for React: two hooks.
 *
 * @module
 */

import { useEffect, useRef, useState } from "react";
import { connect } from "./client.js";

/** @typedef {import("./client.js").Status} Status */

/** @template T @typedef {import("./client.js").Options<T>} Options */
/** @template T @typedef {import("./client.js").Client<T>} Client */
/** @template T @typedef {import("./client.js").Message<T>} Message */

/** @type {Status} */
const CONNECTING = { state: "connecting", transport: null };

/**
 * A value of the last rendering, for functions that are called later.
 *
 * @template T
 * @param {T} value
 */
function useLatest(value) {
  const latest = useRef(value);
  useEffect(() => {
    latest.current = value;
  });
  return latest;
}

/**
 * Connects while the component is mounted. It connects anew when the session, a token that is a string, the url, the transport or
 * `poison` changes, and not when a function changes: always the function of the last rendering is called.
 *
 * @template [T=any] the type of the payloads that are received
 * @param {Options<T>} options those of `connect`
 * @returns {{client: Client<T> | null, status: Status}} `client` is null until the component is mounted
 */
export function useBroker(options) {
  const [state, setState] = useState(/** @type {{client: Client<T> | null, status: Status}} */ ({ client: null, status: CONNECTING }));
  const latest = useLatest(options);
  const { session, transport, poison, WebSocket } = options;
  const url = options.url === undefined ? undefined : String(options.url);
  const token = typeof options.token === "function" ? ask : options.token;
  // Without a handler nothing is acknowledged.
  const handles = options.onMessage !== undefined;
  useEffect(() => {
    let ended = false;
    const client = /** @type {Client<T>} */ (connect({
      session, url, transport, poison, WebSocket,
      token: token === ask ? () => /** @type {() => any} */ (latest.current.token)() : token,
      onMessage: handles ? (message) => latest.current.onMessage?.(message) : undefined,
      onReceipt: (receipt) => latest.current.onReceipt?.(receipt),
      onGap: (gap) => latest.current.onGap?.(gap),
      onAck: (seq) => latest.current.onAck?.(seq),
      onError: (error, message) => latest.current.onError?.(error, message),
      onStatus: (status) => {
        if (ended) return;
        setState({ client, status });
        latest.current.onStatus?.(status);
      },
    }));
    setState({ client, status: client.status });
    return () => {
      ended = true;
      client.close();
    };
  }, [session, url, token, transport, poison, WebSocket, handles]);
  return state;
}

/** Stands for a token function. */
const ask = () => undefined;

/**
 * Reads a topic while the component is mounted.
 *
 * @template [T=any] the type of the payloads
 * @param {Client<any> | null} client
 * @param {string} topic
 * @param {(message: Message<T>) => any} handler always the one of the last rendering is called
 */
export function useTopic(client, topic, handler) {
  const latest = useLatest(handler);
  useEffect(() => client?.subscribe(topic, (message) => latest.current(message)), [client, topic]);
}
