/**
 * The browser client of x0-msg-server: one module, no dependencies, no build step.
 *
 *     import { connect } from "https://broker.example/client.js";
 *
 *     const client = connect({ session: "A", onMessage: (message) => console.log(message.payload) });
 *     await client.send({ session: "B" }, { hello: "world" });
 *
 * In `token` mode, `token` takes the place of `session`: a token, or better a function that returns one.
 *
 * It uses WebSocket, falls back to long-poll if WebSocket does not work, and returns to WebSocket later. A message is
 * acknowledged when its handler has returned, or when the promise that it returned is fulfilled. A page that closes
 * before that gets the message again. A send is repeated with the same id until it is answered, so it is stored once.
 *
 * @module
 */

/**
 * @typedef {{session: string} | {user: string} | {topic: string}} Address
 *
 * @typedef {object} Message
 * @property {number} [seq] its position; absent when volatile
 * @property {string} [from] the sender: a session in `open` mode, a user or a handle in `token` mode; absent if the
 *   sender has no name
 * @property {string} [topic] the topic; absent for messages to this session
 * @property {true} [backend] a backend sent it, with an API key; absent otherwise
 * @property {number} ts when it was accepted, in Unix milliseconds
 * @property {any} payload what was sent
 * @property {"message" | "receipt"} [type]
 *
 * @typedef {object} Receipt what became of a message that was sent with `receipt: true`
 * @property {string} id the sender's name for it
 * @property {"acknowledged" | "expired"} state
 * @property {number} seq its position in the mailbox of the sender
 * @property {number} ts when that happened, in Unix milliseconds
 *
 * @typedef {object} Gap messages after `from`, up to and including `to`, are not coming
 * @property {string} [topic]
 * @property {number} from
 * @property {number} to
 * @property {"acknowledged" | "expired" | "epoch" | "lost"} reason
 *
 * @typedef {"connecting" | "online" | "offline" | "closed"} State
 * @typedef {"websocket" | "poll"} Transport
 *
 * @typedef {object} Status
 * @property {State} state
 * @property {Transport | null} transport what carries messages now
 * @property {string} [reason] why the client is offline or closed
 * @property {Welcome} [welcome] what the broker says about itself
 *
 * @typedef {object} Welcome
 * @property {string} epoch
 * @property {string} [session] the session that is read
 * @property {string} [user] the user that the session belongs to, in `token` mode
 * @property {string} [handle] the public name of the session, in `token` mode: others send to it
 * @property {string} [durability]
 * @property {number} [heartbeat]
 * @property {number} [max_payload]
 * @property {string} [server]
 *
 * @typedef {object} Options
 * @property {string} [session] the session to read and to send as; a token may name it instead
 * @property {string | (() => string | Promise<string>)} [token] the proof. A function is called whenever a fresh
 *   token is needed
 * @property {string} [url] the broker; by default the one that served this module
 * @property {(message: Message) => any} [onMessage] called with each message to this session; may return a promise
 * @property {(receipt: Receipt) => any} [onReceipt] called with the receipt of a message sent with `receipt: true`
 * @property {(status: Status) => void} [onStatus] called when the state or the transport changes
 * @property {(gap: Gap) => void} [onGap]
 * @property {(seq: number) => void} [onAck] called when everything up to seq was acknowledged
 * @property {(error: Error) => void} [onError] called with an error that no promise reports
 * @property {Transport | "auto"} [transport] "auto" by default
 *
 * @typedef {object} SendOptions
 * @property {string} [id] your own name for the message; a send that is repeated with it is stored once
 * @property {number} [ttl] how many seconds it is kept unread
 * @property {boolean} [receipt] call `onReceipt` when the message is acknowledged or expires
 * @property {boolean} [volatile] store nothing, and reach only current readers
 */

/** Pauses between attempts to connect, in milliseconds. Each is twice the one before, and half of it is random. */
const FIRST_PAUSE = 400;
const LONGEST_PAUSE = 20_000;

/** How long a WebSocket may take until `welcome`, in milliseconds. Then long-poll is tried. */
const OPENING = 8_000;

/** How long to poll before WebSocket is tried again, in milliseconds. Doubled each time. */
const FIRST_RETURN = 15_000;
const LONGEST_RETURN = 300_000;

/** How long a poll waits at the broker, in seconds. */
const WAIT = 20;

/** How long the answer to a ping, or to an acknowledgement over HTTP, may take, in milliseconds. */
const PONG = 10_000;

/** How often a handler that throws is called with the same message. */
const ATTEMPTS = 5;

/** How many sends may be without an answer at the same time. */
const MOST_PENDING = 1_000;

/** How long the token function of the page may take, in milliseconds. */
const TOKEN = 15_000;

/** After how many refused tokens in a row the client closes. */
const REFUSALS = 5;

/** Error codes of temporary failures. */
const PASSING = ["unavailable", "overloaded", "rate_limited"];

/** A refusal by the broker. `code` is one of its error codes, like "mailbox_full". */
export class Refused extends Error {
  /**
   * @param {string} code
   * @param {string} message
   */
  constructor(code, message) {
    super(message);
    this.name = "Refused";
    this.code = code;
  }
}

/** @param {number} ms */
const jittered = (ms) => ms / 2 + Math.random() * (ms / 2);

const utf8 = new TextEncoder();

/** How deep arrays and objects may nest in a frame, including the frame itself. */
const DEPTH = 128;

/** @param {string} json */
function depth(json) {
  let depth = 0;
  let deepest = 0;
  for (let at = 0, quoted = false; at < json.length; at++) {
    const char = json[at];
    if (quoted) {
      if (char === "\\") at++;
      else if (char === '"') quoted = false;
    } else if (char === '"') quoted = true;
    else if (char === "{" || char === "[") deepest = Math.max(deepest, ++depth);
    else if (char === "}" || char === "]") depth--;
  }
  return deepest;
}

/** A unique id. `crypto.randomUUID` exists only on secure origins. */
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Connects to a broker, and stays connected until `close`.
 *
 * @param {Options} options
 */
export function connect(options) {
  return new Client(options);
}

/** A connection to a broker for one session. Made by {@link connect}. */
export class Client {
  /** @type {Options} */ #options;
  /** @type {URL} */ #base;
  /** @type {Status} */ #status = { state: "connecting", transport: null };
  /** @type {Transport | "auto"} */ #wanted;

  /** The session that is read, once it is known. @type {string | undefined} */ #session;
  /** How often in a row a token was refused. */ #refused = 0;
  /** The token that was sent last. @type {string | undefined} */ #shown;
  #renewing = false;

  /** @type {WebSocket | null} */ #socket = null;
  /** Aborts the current poll, pause or attempt to connect. */
  #run = new AbortController();
  #pause = FIRST_PAUSE;
  #return = FIRST_RETURN;

  /** The epoch that the seqs below belong to. @type {string | null} */ #epoch = null;
  /** The newest seq put into the queue. */ #queued = 0;
  /** The newest seq whose handler has returned. */ #handled = 0;
  /** The newest seq that was acknowledged. */ #acknowledged = 0;
  /** @type {Message[]} */ #queue = [];
  #pumping = false;
  /** Called when the queue is empty. @type {(() => void)[]} */ #drained = [];

  /** @type {Map<string, Topic>} */ #topics = new Map();
  /** Sends without an answer, oldest first. @type {Map<string, Pending>} */ #pending = new Map();
  #posting = false;

  /** @param {Options} options */
  constructor(options) {
    const { session, token } = options ?? {};
    if (typeof session === "string" ? session === "" : session !== undefined || !token) {
      throw new TypeError("connect needs a session or a token, like connect({ session: \"A\" })");
    }
    this.#session = session;
    this.#options = options;
    this.#wanted = options.transport ?? "auto";
    this.#base = new URL(options.url ?? "/", options.url ? location.href : import.meta.url);
    this.#base.protocol = this.#base.protocol.replace("ws", "http");
    addEventListener("online", this.#hurry);
    addEventListener("offline", this.#probe);
    globalThis.document?.addEventListener("visibilitychange", this.#probe);
    this.#start();
  }

  /** The session that is read. Undefined until the broker has named the session of the token. */
  get session() {
    return this.#session;
  }

  /** The current state and transport. */
  get status() {
    return this.#status;
  }

  /**
   * Sends a message. The promise is fulfilled when the message is stored, with its seq (none if it is volatile), or
   * rejected with {@link Refused}. Without a connection the message waits. A volatile message is rejected then.
   *
   * @param {Address} to
   * @param {any} payload any JSON value
   * @param {SendOptions} [options]
   * @returns {Promise<{id: string, seq?: number, sessions?: number}>} `sessions`: sent to a user, in how many mailboxes
   */
  send(to, payload, { id = newId(), ttl, receipt = false, volatile = false } = {}) {
    const refuse = (/** @type {string} */ code, /** @type {string} */ text) => Promise.reject(new Refused(code, text));
    let json;
    try {
      json = JSON.stringify(payload);
    } catch (error) {
      return refuse("bad_request", `the payload is no JSON value: ${error}`);
    }
    if (json === undefined) return refuse("bad_request", "the payload is no JSON value");
    if (depth(json) >= DEPTH) return refuse("bad_request", `the payload is nested deeper than ${DEPTH - 1} levels`);
    if (typeof id !== "string" || id === "" || utf8.encode(id).length > 256 || /\p{Cc}/u.test(id)) {
      return refuse("bad_request", "the id must be a string of 1 to 256 bytes without control characters");
    }
    if (this.#status.state === "closed") return refuse("unavailable", this.#status.reason ?? "the client is closed");
    if (volatile && this.#status.state !== "online") {
      return refuse("unavailable", "a volatile message is not kept while offline");
    }
    const known = this.#pending.get(id);
    if (known) return known.promise;
    if (this.#pending.size >= MOST_PENDING) {
      return refuse("overloaded", `${MOST_PENDING} messages wait for their answer already`);
    }
    const body = `{"type":"send","id":${JSON.stringify(id)},"to":${JSON.stringify(to)},"payload":${json}${
      ttl === undefined ? "" : `,"ttl":${JSON.stringify(ttl)}`},"receipt":${receipt},"volatile":${volatile}}`;
    const { promise, resolve, reject } = withResolvers();
    const pending = { body, size: utf8.encode(json).length, volatile, promise, resolve, reject };
    this.#pending.set(id, pending);
    if (this.#status.transport === "websocket") this.#transmit(id, pending);
    else if (this.#status.transport === "poll") this.#post();
    return promise;
  }

  /**
   * Reads a topic until the returned function is called. After a reconnect it goes on where it was.
   *
   * @param {string} topic
   * @param {(message: Message) => any} handler
   * @param {{after?: number}} [options] `after` asks for what the topic's history holds after that seq
   * @returns {() => void}
   */
  subscribe(topic, handler, { after } = {}) {
    const entry = { handler, after: after ?? null, epoch: after === undefined ? null : this.#epoch };
    this.#topics.set(topic, entry);
    if (this.#status.transport === "websocket") this.#say(this.#subscription(topic, entry));
    else this.#askAgain();
    return () => {
      if (this.#topics.get(topic) !== entry) return;
      this.#topics.delete(topic);
      if (this.#status.transport === "websocket") this.#say({ type: "unsubscribe", topic });
      else this.#askAgain();
    };
  }

  /**
   * Chooses the transport: "websocket", "poll", or "auto" for WebSocket if it works.
   *
   * @param {Transport | "auto"} transport
   */
  use(transport) {
    if (transport === this.#wanted) return;
    this.#wanted = transport;
    if (this.#status.state !== "closed" && !this.#paused) this.#restart();
  }

  #paused = false;

  /** Closes the connection until `resume`. Messages to this session wait at the broker. */
  pause() {
    if (this.#status.state === "closed") return;
    this.#paused = true;
    this.#stop();
    this.#tell({ state: "offline", transport: null, reason: "paused" });
  }

  /** Connects again after `pause`. */
  resume() {
    if (!this.#paused || this.#status.state === "closed") return;
    this.#paused = false;
    this.#start();
  }

  /** Closes the client. Sends without an answer are rejected. */
  close() {
    this.#end("the client is closed");
  }

  // ── the connection ────────────────────────────────────────────────────────────────────────────────────

  #stop() {
    this.#run.abort();
    clearInterval(this.#heartbeat);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close(1000);
  }

  #restart() {
    this.#stop();
    this.#start();
  }

  #start() {
    this.#run = new AbortController();
    this.#pause = FIRST_PAUSE;
    this.#return = FIRST_RETURN;
    this.#tell({ state: "connecting", transport: null });
    this.#talk(this.#run.signal).catch((error) => this.#end(String(error?.message ?? error), error));
  }

  /** @param {string} reason @param {Error} [error] */
  #end(reason, error) {
    if (this.#status.state === "closed") return;
    removeEventListener("online", this.#hurry);
    removeEventListener("offline", this.#probe);
    globalThis.document?.removeEventListener("visibilitychange", this.#probe);
    this.#tell({ state: "closed", transport: null, reason });
    this.#stop();
    for (const { reject } of this.#pending.values()) reject(new Refused("unavailable", reason));
    this.#pending.clear();
    if (error) this.#call(() => this.#options.onError?.(error));
  }

  /** @param {Status} status */
  #tell(status) {
    this.#status = { welcome: this.#status.welcome, ...status };
    if (status.state !== "online") {
      // A volatile message is sent at most once. Whether it was sent is not known.
      for (const [id, { volatile }] of this.#pending) {
        if (volatile) this.#settle(id, new Refused("unavailable", "the connection was lost before it was confirmed"));
      }
    }
    const told = this.#status;
    // After `connect` has returned, because the listener may use the client.
    queueMicrotask(() => this.#call(() => this.#options.onStatus?.(told)));
  }

  /** Calls a callback of the page. What it throws is reported, and does not stop the client. @param {() => void} callback */
  #call(callback) {
    try {
      callback();
    } catch (error) {
      reportError(error);
    }
  }

  /** Keeps a connection on a transport that works, until the signal fires. @param {AbortSignal} signal */
  async #talk(signal) {
    while (!signal.aborted) {
      let reason = "the connection was lost";
      if (this.#wanted !== "poll") {
        const outcome = await this.#talkOverSocket(signal);
        if (signal.aborted) return;
        if (outcome === "worked") this.#pause = FIRST_PAUSE;
        else reason = "the broker cannot be reached";
        // The broker did not answer: a proxy blocks WebSocket, or the broker is not there.
        if (outcome === "never" && this.#wanted === "auto") await this.#talkOverPolls(signal);
      } else {
        await this.#talkOverPolls(signal);
      }
      if (signal.aborted) return;
      // Long-poll ended because a WebSocket opened, which is in use now.
      if (this.#status.transport === "websocket") {
        await this.#untilClosed(signal);
        if (signal.aborted) return;
      }
      this.#tell({ state: "offline", transport: null, reason });
      await this.#rest(this.#pause, signal);
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
      if (!signal.aborted) this.#tell({ state: "connecting", transport: null });
    }
  }

  /** Ends the current pause. @type {(() => void) | null} */ #wake = null;

  #hurry = () => this.#wake?.();

  /** @param {number} ms @param {AbortSignal} signal */
  #rest(ms, signal) {
    return rest(ms, signal, (wake) => (this.#wake = wake)).then(() => (this.#wake = null));
  }

  // ── WebSocket ─────────────────────────────────────────────────────────────────────────────────────────

  /** @type {Promise<"worked" | "never"> | null} */ #closing = null;

  /** @param {AbortSignal} signal */
  async #untilClosed(signal) {
    const aborted = withResolvers();
    signal.addEventListener("abort", aborted.resolve);
    await Promise.race([this.#closing, aborted.promise]);
    signal.removeEventListener("abort", aborted.resolve);
  }

  /** Opens a WebSocket and waits until it is over. @param {AbortSignal} signal */
  async #talkOverSocket(signal) {
    return (await this.#openSocket(signal)) ? this.#closing : "never";
  }

  /**
   * Opens a WebSocket. Resolves to true when the broker has sent `welcome`. From then on it carries all messages.
   *
   * @param {AbortSignal} signal ends it at any time
   * @param {AbortSignal} [attempt] ends it before the welcome
   * @returns {Promise<boolean>}
   */
  #openSocket(signal, attempt) {
    const address = new URL("ws", this.#base);
    address.protocol = address.protocol.replace("http", "ws");
    return new Promise((opened) => {
      /** @type {WebSocket} */ let socket;
      try {
        socket = new WebSocket(address, "x0-msg.v1");
      } catch {
        return opened(false);
      }
      let welcomed = false;
      const limit = setTimeout(() => socket.close(), OPENING);
      const { promise, resolve } = withResolvers();
      const abort = () => socket.close(1000);
      const giveUp = () => !welcomed && (abort(), opened(false));
      signal.addEventListener("abort", abort);
      attempt?.addEventListener("abort", giveUp);
      socket.onopen = async () => {
        const resume = this.#epoch === null ? {} : { after: this.#handled, epoch: this.#epoch };
        try {
          const [session, token] = [this.session, await this.#token()];
          this.#shown = token;
          if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "hello", session, token, ...resume }));
        } catch (error) {
          // There is no token now. The next attempt asks again.
          this.#fail(error);
          socket.close(1000);
        }
      };
      socket.onmessage = ({ data }) => {
        if (signal.aborted || (!welcomed && attempt?.aborted) || (welcomed && this.#socket !== socket)) return;
        this.#heard = Date.now();
        const frame = JSON.parse(data);
        if (frame.type === "welcome" && !welcomed) {
          welcomed = true;
          clearTimeout(limit);
          attempt?.removeEventListener("abort", giveUp);
          this.#closing = promise;
          this.#welcome(socket, frame);
          opened(true);
        } else if (welcomed) {
          this.#hear(frame);
        } else if (frame.type === "error" && !PASSING.includes(frame.code) && !this.#mayAskAgain(frame.code)) {
          this.#end(frame.message, new Refused(frame.code, frame.message));
        }
      };
      socket.onclose = ({ code, reason }) => {
        clearTimeout(limit);
        signal.removeEventListener("abort", abort);
        attempt?.removeEventListener("abort", giveUp);
        if (this.#socket === socket) {
          this.#socket = null;
          clearInterval(this.#heartbeat);
        }
        // The next attempt sends a fresh token in place of the expired one.
        const renewable = code === 4501 && typeof this.#options.token === "function" && (welcomed || this.#refused < REFUSALS);
        if (code >= 4500 && code <= 4999 && !signal.aborted && !renewable) {
          this.#end(reason || `the broker closed for good (${code})`, new Refused(String(code), reason));
        }
        resolve(welcomed ? "worked" : "never");
        opened(false);
      };
    });
  }

  /** @param {WebSocket} socket @param {Welcome} welcome */
  #welcome(socket, welcome) {
    this.#socket = socket;
    this.#refused = 0;
    this.#session = welcome.session ?? this.#session;
    this.#enter(welcome.epoch);
    this.#pause = FIRST_PAUSE;
    this.#status.welcome = welcome;
    for (const [topic, entry] of this.#topics) this.#say(this.#subscription(topic, entry));
    // Acknowledge what was handled while there was no socket.
    if (this.#handled > /** @type {any} */ (welcome).seq) this.#ackOverSocket();
    for (const [id, pending] of this.#pending) if (!pending.volatile) this.#transmit(id, pending);
    clearInterval(this.#heartbeat);
    this.#heartbeat = setInterval(this.#probe, (welcome.heartbeat ?? 25) * 1000);
    this.#tell({ state: "online", transport: "websocket", welcome });
  }

  /** The token. If the option is a function, it is called. */
  async #token() {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    const late = withResolvers();
    const limit = setTimeout(() => late.reject(new Error("no token came")), TOKEN);
    try {
      return await Promise.race([token(), late.promise]);
    } finally {
      clearTimeout(limit);
    }
  }

  /** Whether a fresh token may help after a refusal. @param {string} code */
  #mayAskAgain(code) {
    return code === "unauthorized" && typeof this.#options.token === "function" && ++this.#refused < REFUSALS;
  }

  /** Reports an error of the token function. @param {unknown} error */
  #fail(error) {
    this.#call(() => this.#options.onError?.(error instanceof Error ? error : new Error(String(error))));
  }

  /** The headers of HTTP requests: the token. */
  async #headers() {
    const token = await this.#token();
    return token === undefined ? undefined : { authorization: `Bearer ${token}` };
  }

  /** Sends a fresh token over the socket. Asks for one until it differs from the last. */
  async #renew() {
    if (this.#renewing) return;
    this.#renewing = true;
    const { signal } = this.#run;
    const socket = this.#socket;
    for (let pause = FIRST_PAUSE; this.#socket === socket && !signal.aborted; pause *= 2) {
      try {
        const token = await this.#token();
        if (token !== this.#shown) {
          this.#shown = token;
          if (this.#socket === socket) this.#say({ type: "hello", token });
          break;
        }
      } catch (error) {
        this.#fail(error);
      }
      await rest(pause, signal);
    }
    this.#renewing = false;
  }

  /** @type {ReturnType<typeof setInterval> | undefined} */ #heartbeat;
  #heard = 0;

  /** Checks whether the socket is alive. Pages do not see the pings of the broker. */
  #probe = () => {
    const socket = this.#socket;
    if (socket?.readyState !== WebSocket.OPEN) return;
    const asked = Date.now();
    socket.send('{"type":"ping"}');
    setTimeout(() => {
      if (this.#socket === socket && this.#heard < asked) socket.close(4000);
    }, PONG);
  };

  /** Sends over the socket. Refuses what is so large that the broker would close the socket. @param {string} id @param {Pending} pending */
  #transmit(id, { body, size }) {
    const most = this.#status.welcome?.max_payload ?? Infinity;
    if (size > most) {
      const text = `the payload is ${size} bytes long; at most ${most} are allowed`;
      this.#settle(id, new Refused("too_large", text));
    } else if (this.#socket?.readyState === WebSocket.OPEN) {
      this.#socket.send(body);
    }
  }

  /** @param {object} frame */
  #say(frame) {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(frame));
  }

  /** @param {string} topic @param {Topic} entry */
  #subscription(topic, { after, epoch }) {
    return { type: "subscribe", topic, ...(after === null ? {} : { after }), ...(epoch === null ? {} : { epoch }) };
  }

  /** @param {any} frame */
  #hear(frame) {
    switch (frame.type) {
      case "message":
      case "receipt":
        return this.#take(frame);
      case "sent":
        return this.#settle(frame.id, null, frame);
      case "gap":
        return this.#gap(frame);
      case "subscribed": {
        const entry = this.#topics.get(frame.topic);
        if (entry) {
          entry.after ??= frame.seq;
          if (frame.recovered) entry.epoch = this.#epoch;
        }
        return;
      }
      case "error": {
        if (frame.code === "unauthorized" && frame.id === undefined && typeof this.#options.token === "function") {
          this.#renew();
          return;
        }
        const refused = new Refused(frame.code, frame.message);
        if (frame.id === undefined || !this.#settle(frame.id, refused)) this.#call(() => this.#options.onError?.(refused));
      }
    }
  }

  // ── long-poll ─────────────────────────────────────────────────────────────────────────────────────────

  /** Polls until polling fails or WebSocket works again. @param {AbortSignal} outer */
  async #talkOverPolls(outer) {
    const inner = new AbortController();
    const stop = () => inner.abort();
    outer.addEventListener("abort", stop);
    const { signal } = inner;
    // Tries WebSocket in the meantime. When it opens, polling ends.
    if (this.#wanted === "auto") {
      (async () => {
        while (!signal.aborted) {
          await rest(this.#return, signal);
          this.#return = Math.min(this.#return * 2, LONGEST_RETURN);
          if (!signal.aborted && (await this.#openSocket(outer, signal))) {
            this.#return = FIRST_RETURN;
            stop();
          }
        }
      })();
    }
    try {
      let wait = 0; // The first poll shows at once whether polling works.
      while (!signal.aborted) {
        const answer = await this.#ask(wait, signal);
        const again = this.#again;
        this.#again = false;
        if (signal.aborted) return;
        if (answer === null && again) continue;
        if (answer === null) return;
        wait = WAIT;
        this.#enter(answer.epoch);
        if (this.#status.transport !== "poll") {
          this.#pause = FIRST_PAUSE;
          this.#tell({ state: "online", transport: "poll" });
          this.#post();
        }
        for (const gap of answer.gaps ?? []) this.#gap(gap);
        for (const message of answer.messages) this.#take(message);
        for (const [topic, seq] of Object.entries(answer.topics ?? {})) {
          const entry = this.#topics.get(topic);
          if (entry) [entry.after, entry.epoch] = [/** @type {number} */ (seq), this.#epoch];
        }
        // Acknowledges when the handlers have returned. The next poll would acknowledge too, but it comes later.
        await this.#untilDrained(signal);
        if (signal.aborted) return;
        // The end of this answer, which may be a gap.
        this.#queued = Math.max(this.#queued, answer.seq);
        this.#handled = Math.max(this.#handled, answer.seq);
        if (answer.messages.every((/** @type {Message} */ { seq, topic }) => seq === undefined || topic !== undefined)) {
          this.#acknowledged = this.#handled;
        }
        if (this.#handled > this.#acknowledged) await this.#acknowledge(signal);
      }
    } finally {
      outer.removeEventListener("abort", stop);
      stop();
    }
  }

  /** One poll. Null if it failed. @param {number} wait @param {AbortSignal} signal */
  async #ask(wait, signal) {
    const address = new URL("v1/messages", this.#base);
    const query = address.searchParams;
    if (this.session !== undefined) query.set("session", this.session);
    query.set("wait", String(wait));
    const after = this.#handled;
    if (this.#epoch !== null) {
      query.set("epoch", this.#epoch);
      query.set("after", String(after));
    }
    for (const [topic, entry] of this.#topics) {
      query.append("topic", topic);
      if (entry.after !== null) query.append(`after.${topic}`, String(entry.after));
    }
    const limit = limited(signal, (wait + 15) * 1000);
    this.#asking = limit;
    try {
      const headers = await this.#headers();
      // The broker takes a cursor from the browser only with the page's address, or an origin.
      const referrerPolicy = /** @type {const} */ ("same-origin");
      const response = await fetch(address, { signal: limit.signal, cache: "no-store", referrerPolicy, headers });
      const answer = await response.json();
      if (response.ok) {
        this.#refused = 0;
        // The broker names the session that it made for the token.
        this.#session ??= answer.session;
        return answer;
      }
      if (response.status < 500 && response.status !== 429 && !this.#mayAskAgain(answer.error.code)) {
        this.#end(answer.error.message, new Refused(answer.error.code, answer.error.message));
      }
    } catch {
      // Aborted, no network, no token, or an answer that is not from the broker: try again later.
    } finally {
      this.#asking = null;
      limit.release();
    }
    return null;
  }

  /** The current poll. @type {{abort: () => void} | null} */ #asking = null;
  /** Whether the poll was aborted to ask for other topics. */ #again = false;

  #askAgain() {
    if (this.#asking === null) return;
    this.#again = true;
    this.#asking.abort();
  }

  #ackOverSocket() {
    if (this.#socket?.readyState !== WebSocket.OPEN) return;
    const seq = this.#handled;
    this.#say({ type: "ack", seq });
    this.#acknowledged = seq;
    this.#call(() => this.#options.onAck?.(seq));
  }

  /** @param {AbortSignal} signal */
  async #acknowledge(signal) {
    const seq = this.#handled;
    const body = JSON.stringify({ session: this.session, seq, epoch: this.#epoch });
    const limit = limited(signal, PONG);
    try {
      const headers = await this.#headers();
      const response = await fetch(new URL("v1/ack", this.#base), { method: "POST", body, signal: limit.signal, headers });
      if (!response.ok) return;
      this.#acknowledged = seq;
      this.#call(() => this.#options.onAck?.(seq));
    } catch {
      // The next poll acknowledges.
    } finally {
      limit.release();
    }
  }

  /** Sends what waits, one after the other, which keeps the order. */
  async #post() {
    if (this.#posting) return;
    this.#posting = true;
    let pause = FIRST_PAUSE;
    try {
      while (this.#status.transport === "poll") {
        const [first] = this.#pending;
        if (!first) return;
        const [id, { body, size, volatile }] = first;
        const address = new URL("v1/messages", this.#base);
        if (this.session !== undefined) address.searchParams.set("session", this.session);
        try {
          const headers = await this.#headers();
          const signal = AbortSignal.timeout(15_000);
          // A body of plain text needs no preflight. The broker ignores its type.
          const response = await fetch(address, { method: "POST", body, signal, headers, keepalive: size < 16_000 });
          const answer = await response.json();
          // The token is refused. The polls count how often.
          if (response.status === 401 && this.#refused < REFUSALS && typeof this.#options.token === "function") {
            await rest(pause, this.#run.signal);
            pause = Math.min(pause * 2, LONGEST_PAUSE);
            continue;
          }
          if (response.ok) this.#settle(id, null, answer);
          else this.#settle(id, new Refused(answer.error.code, answer.error.message));
          pause = FIRST_PAUSE;
        } catch {
          if (volatile) this.#settle(id, new Refused("unavailable", "the broker cannot be reached"));
          await rest(pause, this.#run.signal);
          pause = Math.min(pause * 2, LONGEST_PAUSE);
        }
      }
    } finally {
      this.#posting = false;
    }
  }

  // ── messages ──────────────────────────────────────────────────────────────────────────────────────────

  /** @param {string} epoch */
  #enter(epoch) {
    if (epoch === this.#epoch) return;
    // Seqs of another epoch mean nothing.
    this.#epoch = epoch;
    this.#queued = 0;
    this.#handled = 0;
    this.#acknowledged = 0;
    this.#queue = this.#queue.filter((message) => message.seq === undefined);
  }

  /** @param {Message} message */
  #take(message) {
    const { seq, topic } = message;
    if (topic !== undefined) {
      const entry = this.#topics.get(topic);
      if (!entry || (seq !== undefined && entry.after !== null && seq <= entry.after)) return;
      if (seq !== undefined) entry.after = seq;
    } else if (seq !== undefined) {
      if (seq <= this.#queued) return; // A repetition of one that is being handled.
      this.#queued = seq;
    }
    this.#queue.push(message);
    this.#pump();
  }

  async #pump() {
    if (this.#pumping) return;
    this.#pumping = true;
    for (let message; (message = this.#queue[0]); ) {
      const epoch = this.#epoch;
      await this.#handle(message, epoch);
      if (this.#queue[0] === message) this.#queue.shift();
      if (message.seq !== undefined && message.topic === undefined && epoch === this.#epoch) {
        this.#handled = Math.max(this.#handled, message.seq);
        this.#ackOverSocket();
      }
    }
    this.#pumping = false;
    for (const done of this.#drained.splice(0)) done();
  }

  /** @param {Message} message @param {string | null} epoch */
  async #handle(message, epoch) {
    const { topic } = message;
    const own = message.type === "receipt" ? this.#options.onReceipt : this.#options.onMessage;
    const handler = /** @type {((message: any) => any) | undefined} */ (
      topic === undefined ? own : this.#topics.get(topic)?.handler
    );
    let pause = 1_000;
    for (let attempt = 1; ; attempt++) {
      try {
        return await handler?.(message);
      } catch (error) {
        this.#call(() => this.#options.onError?.(error instanceof Error ? error : new Error(String(error))));
        // The messages behind it wait, to keep the order. Messages of topics are not repeated.
        if (topic !== undefined || attempt === ATTEMPTS || epoch !== this.#epoch) return;
        await new Promise((done) => setTimeout(done, jittered(pause)));
        pause *= 2;
      }
    }
  }

  /** @param {AbortSignal} signal */
  #untilDrained(signal) {
    if (!this.#pumping) return;
    return new Promise((done) => {
      const end = () => {
        signal.removeEventListener("abort", end);
        done(undefined);
      };
      this.#drained.push(end);
      signal.addEventListener("abort", end);
    });
  }

  /** @param {Gap & {type?: string, epoch?: string}} frame */
  #gap({ topic, from, to, reason, epoch }) {
    // The positions of the mailbox move to the new epoch here, those of a topic with its own gap.
    if (topic === undefined && epoch !== undefined) this.#epoch = epoch;
    const entry = topic === undefined ? null : this.#topics.get(topic);
    // A position of another epoch means nothing, however high it is.
    const known = reason === "epoch" ? 0 : entry ? (entry.after ?? 0) : this.#queued;
    if (entry) {
      entry.after = Math.max(known, to);
      entry.epoch = epoch ?? this.#epoch;
    } else if (topic === undefined) {
      this.#queued = Math.max(known, to);
      if (reason === "epoch" || !this.#pumping) this.#handled = this.#queued;
    }
    this.#call(() => this.#options.onGap?.({ ...(topic === undefined ? {} : { topic }), from, to, reason }));
  }

  /**
   * Settles the promise of a send. False if there is none.
   *
   * @param {string} id
   * @param {Error | null} error
   * @param {{seq?: number, sessions?: number}} [answer]
   */
  #settle(id, error, answer) {
    const pending = this.#pending.get(id);
    if (!pending) return false;
    this.#pending.delete(id);
    if (error) pending.reject(error);
    else {
      const { seq, sessions } = answer ?? {};
      pending.resolve({ id, ...(seq === undefined ? {} : { seq }), ...(sessions === undefined ? {} : { sessions }) });
    }
    return true;
  }
}

/**
 * @typedef {object} Topic
 * @property {(message: Message) => any} handler
 * @property {number | null} after the newest seq, null for "from now on"
 * @property {string | null} epoch the epoch of `after`, null if it is not known
 */

/**
 * @typedef {object} Pending
 * @property {string} body the send as JSON
 * @property {number} size of its payload, in bytes
 * @property {boolean} volatile
 * @property {Promise<any>} promise
 * @property {(value: any) => void} resolve
 * @property {(error: Error) => void} reject
 */

/** `Promise.withResolvers`, which browsers have only since 2024. */
function withResolvers() {
  /** @type {(value: any) => void} */ let resolve = () => {};
  /** @type {(error: Error) => void} */ let reject = () => {};
  const promise = new Promise((res, rej) => ([resolve, reject] = [res, rej]));
  return { promise, resolve, reject };
}

/**
 * A pause with jitter. The signal ends it early, and so does the function that `early` gets.
 *
 * @param {number} ms
 * @param {AbortSignal} signal
 * @param {(end: () => void) => void} [early]
 * @returns {Promise<void>}
 */
function rest(ms, signal, early) {
  return new Promise((done) => {
    const end = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
      done();
    };
    const timer = setTimeout(end, jittered(ms));
    signal.addEventListener("abort", end);
    early?.(end);
  });
}

/**
 * A signal that fires with another signal or after a time. Release it when it is no longer needed.
 *
 * @param {AbortSignal} signal
 * @param {number} ms
 */
function limited(signal, ms) {
  const both = new AbortController();
  const abort = () => both.abort();
  const timer = setTimeout(abort, ms);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  const release = () => {
    clearTimeout(timer);
    signal.removeEventListener("abort", abort);
  };
  return { signal: both.signal, abort, release };
}
