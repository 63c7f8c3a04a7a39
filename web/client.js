/**
 * The client of x0-msg-server for browsers, workers and Node: one module, no dependencies, no build step.
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
 * The classes: Inbox calls the handlers, Outbox keeps what is sent until it is answered, Proof holds the token, Socket is one
 * WebSocket, Http is one request, Tabs shares the long-polls of the tabs of an origin, and Client puts them together.
 *
 * @module
 */

/**
 * @typedef {{session: string} | {user: string} | {topic: string} | {backend: string} | {reply: string}} Address `reply`: the
 *   `reply_to` of a request
 */

/**
 * @template [T=any]
 * @typedef {object} Message
 * @property {number} [seq] its position; absent when volatile
 * @property {string} [from] the sender: a session in `open` mode, a user or a handle in `token` mode; absent if the
 *   sender has no name
 * @property {string} [topic] the topic; absent for messages to this session
 * @property {true} [backend] a backend sent it, with an API key; absent otherwise
 * @property {number} ts when it was accepted, in Unix milliseconds
 * @property {T} payload what was sent
 * @property {string} [reply_to] in a request: what its one answer is sent to
 * @property {(payload: any, options?: SendOptions) => Promise<Sent>} [reply] in a request: sends its one answer
 * @property {"message"} [type]
 */

/**
 * @template [T=any]
 * @typedef {object} Reply the answer to a request
 * @property {string} id the name of the request
 * @property {number} [seq] its position; absent when volatile
 * @property {string} [from] who answered, as in a message
 * @property {true} [backend] a backend answered; absent otherwise
 * @property {number} ts when it was accepted, in Unix milliseconds
 * @property {T} payload what was answered
 * @property {"reply"} [type]
 */

/**
 * @typedef {object} Receipt what became of a message that was sent with `receipt: true`
 * @property {string} id the sender's name for it
 * @property {"acknowledged" | "expired"} state
 * @property {number} [seq] its position in the mailbox of the sender; none if it came past messages that wait for this page
 * @property {number} ts when that happened, in Unix milliseconds
 *
 * @typedef {object} Gap messages after `from`, up to and including `to`, are not coming
 * @property {string} [topic]
 * @property {number} from
 * @property {number} to
 * @property {"acknowledged" | "expired" | "epoch" | "lost"} reason
 *
 * @typedef {object} Presence who reads a topic, and what has changed since the handler was called last
 * @property {string} topic
 * @property {number} count how many members the topic has
 * @property {string[]} joined at first, all members
 * @property {string[]} left
 * @property {string[]} [members] all of them; absent if there are more than 1,000
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
 * @property {number} [seq] everything up to here is acknowledged
 * @property {string} [durability]
 * @property {number} [heartbeat]
 * @property {number} [max_payload]
 * @property {number} [dedup_window] for how many seconds a repeated send is recognised
 * @property {string} [server]
 * @property {string} [node] the node of a cluster that the connection is at
 *
 * @typedef {{new (address: string | URL, protocol?: string): WebSocket}} WebSocketClass
 */

/**
 * @template [T=any]
 * @typedef {object} Options
 * @property {string} [session] the session to read and to send as; a token may name it instead. In `token` mode its id is the proof
 *   if the backend registered it with `"proof": true`
 * @property {string | (() => string | undefined | Promise<string | undefined>)} [token] the proof. A function is called when the
 *   client has no token, when its token was refused, and shortly before it expires
 * @property {string | URL} [url] the broker; by default the one that served this module
 * @property {(message: Message<T>) => any} [onMessage] called with each message to this session; may return a promise.
 *   Without it messages are not acknowledged
 * @property {(receipt: Receipt) => any} [onReceipt] called with the receipt of a message sent with `receipt: true`
 * @property {(status: Status) => void} [onStatus] called when the state or the transport changes
 * @property {(gap: Gap) => void} [onGap]
 * @property {(seq: number) => void} [onAck] called when everything up to seq was acknowledged
 * @property {(error: Error, message?: Message<T> | Receipt) => void} [onError] called with an error that no promise reports; with the
 *   message, if its handler failed
 * @property {"skip" | "hold"} [poison] what happens to a message whose handler failed five times: "skip" (the default)
 *   acknowledges it and goes on, "hold" keeps it and everything behind it
 * @property {Transport | "auto"} [transport] "auto" by default
 * @property {WebSocketClass} [WebSocket] the class to use where there is no global one, as in Node 20
 */

/**
 * @typedef {object} SendOptions
 * @property {string} [id] your own name for the message; a send that is repeated with it is stored once
 * @property {number} [ttl] how many seconds it is kept unread
 * @property {boolean} [receipt] call `onReceipt` when the message is acknowledged or expires
 * @property {boolean} [volatile] store nothing, and reach only current readers
 * @property {AbortSignal} [signal] ends the waiting. What was transmitted already may be stored
 *
 * @typedef {object} RequestOptions
 * @property {number} [timeout] how long to wait for the reply, in milliseconds; 10,000 by default
 * @property {AbortSignal} [signal] ends the waiting
 * @property {string} [id] your own name for the request. Do not use it again
 * @property {boolean} [volatile] store nothing, and reach only current readers
 *
 * @typedef {{id: string, seq?: number, sessions?: number}} Sent `sessions`: sent to a user, in how many mailboxes
 */

/** Pauses between attempts to connect, in milliseconds. Each is twice the one before, and half of it is random. */
const FIRST_PAUSE = 400;
const LONGEST_PAUSE = 20_000;

/** How long a WebSocket may take until `welcome`, in milliseconds. Then long-poll is tried. */
const OPENING = 8_000;

/** A connection that ends earlier has died early, in milliseconds. It does not end the back-off. */
const LIVED = 10_000;

/** After how many early deaths in a row a WebSocket is not tried at once. */
const EARLY_DEATHS = 3;

/** How long to poll before WebSocket is tried again, in milliseconds. Doubled each time. */
const FIRST_RETURN = 15_000;
const LONGEST_RETURN = 300_000;

/** How long a poll waits at the broker, in seconds. */
const WAIT = 20;

/** How long a live connection may be silent after a ping, in milliseconds. */
const PONG = 8_000;

/** How long a request that does not wait may take, in milliseconds. Its bytes get more time: see SLOWEST. */
const ANSWER = 15_000;

/** The slowest uplink that counts as alive, in bytes per millisecond. */
const SLOWEST = 8;

/** How many bytes of sends may be on the way at once. One send may be larger. */
const ON_THE_WAY = 256 * 1024;

/**
 * From how many characters on a body has its token in the header. The broker reads 64 KiB of a body before it has seen a
 * proof. Smaller requests need no header, and so no preflight.
 */
const LARGE = 16_000;

/** How many messages the broker hands out before they are acknowledged. */
const WINDOW = 256;

/** Acknowledgements are sent at most so often, in milliseconds, or after so many messages. */
const ACK_PAUSE = 50;
const ACK_MESSAGES = 32;

/** How often a handler that throws is called with the same message. */
const ATTEMPTS = 5;

/** How many sends may be without an answer at the same time. */
const MOST_PENDING = 1_000;

/** How long the token function of the page may take, in milliseconds. */
const TOKEN = 30_000;

/** After how many refused tokens in a row the client closes. */
const REFUSALS = 5;

/** How often a send is repeated that a proxy refuses while the broker answers polls. */
const FOREIGN_ANSWERS = 5;

/** The longest time of a request, in milliseconds: timers take no more. */
const LONGEST_REPLY = 2 ** 31 - 1;

/** How long a request waits for its reply, in milliseconds, if the page does not say. */
const REPLY = 10_000;

/** How often to poll while messages wait for their handler, in milliseconds. It keeps the reader at the broker. */
const STALLED = 10_000;

/** The dedup window of a broker that does not name its own, in seconds. */
const DEDUP_WINDOW = 120;

/** How deep arrays and objects may nest in a frame, including the frame itself. */
const DEPTH = 128;

/** Error codes of the broker, and the HTTP statuses that they come with. @type {Record<string, number[]>} */
const CODES = {
  bad_request: [400, 405, 426],
  unauthorized: [401],
  forbidden: [403, 421],
  not_found: [404],
  too_large: [413],
  rate_limited: [429],
  quota_exceeded: [429],
  overloaded: [503],
  unavailable: [503],
  mailbox_full: [507],
};

/** Error codes of temporary failures. */
const PASSING = ["unavailable", "overloaded", "rate_limited", "quota_exceeded", "mailbox_full"];

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

/** @param {unknown} error */
const asError = (error) => (error instanceof Error ? error : new Error(String(error)));

const utf8 = new TextEncoder();

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

/** Whether a value is a name of the broker: 1 to 256 bytes without control characters. @param {unknown} name */
const isName = (name) =>
  typeof name === "string" && name !== "" && utf8.encode(name).length <= 256 && !/[\p{Cc}\p{Cs}]/u.test(name);

/** Why a value is no address; null if it is one. @param {any} to */
function wrongAddress(to) {
  const kinds = to && typeof to === "object" ? Object.keys(to) : [];
  if (kinds.length === 1 && kinds[0] === "reply") {
    return typeof to.reply === "string" && to.reply ? null : "the reply of the address must be the reply_to of a request";
  }
  if (kinds.length !== 1 || !["session", "user", "topic", "backend"].includes(kinds[0])) {
    return 'the address must be an object like { session: "B" }, { user: "ann" }, { topic: "news" } or { backend: "shop" }';
  }
  if (isName(to[kinds[0]])) return null;
  return `the ${kinds[0]} of the address must be a string of 1 to 256 bytes without control characters`;
}

/** The refusal that an answer of the broker holds; null if it holds none. @param {any} answer @param {number} [status] */
function refusalIn(answer, status) {
  const { code, message } = answer?.error ?? {};
  if (typeof code !== "string" || typeof message !== "string" || !Object.hasOwn(CODES, code)) return null;
  return status === undefined || CODES[code].includes(status) ? new Refused(code, message) : null;
}

/** @param {unknown} seq */
const isSeq = (seq) => Number.isSafeInteger(seq) && /** @type {number} */ (seq) >= 0;

/** Whether this is the broker's answer to a poll. @param {any} answer */
const isPollAnswer = (answer) => typeof answer?.epoch === "string" && Array.isArray(answer.messages) && isSeq(answer.seq);

/** `Promise.withResolvers`, which browsers have only since 2024. */
function withResolvers() {
  /** @type {(value?: any) => void} */ let resolve = () => {};
  /** @type {(error: unknown) => void} */ let reject = () => {};
  const promise = new Promise((res, rej) => ([resolve, reject] = [res, rej]));
  return { promise, resolve, reject };
}

/** A point in time for `elapsed`. The monotonic clock may stand still while the machine sleeps. */
const now = () => ({ steady: performance.now(), wall: Date.now() });

/** Milliseconds since a point in time: by the clock that moved on further. @param {{steady: number, wall: number}} since */
const elapsed = ({ steady, wall }) => Math.max(performance.now() - steady, Date.now() - wall);

/**
 * A deadline that is fair to a page that was blocked: it runs in two halves, so that what has arrived is read before the
 * second one is over. Returns a function that stops it.
 *
 * @param {number} ms
 * @param {() => void} late
 */
function deadline(ms, late) {
  let timer = setTimeout(() => (timer = setTimeout(late, ms / 2)), ms / 2);
  return () => clearTimeout(timer);
}

/**
 * Runs a function after a short time. Browsers may delay the timers of hidden pages by many seconds, Firefox by 15: there it runs
 * as the next task. Returns a function that stops it.
 *
 * @param {number} ms
 * @param {() => void} run
 */
function soon(ms, run) {
  if (globalThis.document?.visibilityState !== "hidden") {
    const timer = setTimeout(run, ms);
    return () => clearTimeout(timer);
  }
  const { port1, port2 } = new MessageChannel();
  const stop = () => port1.close();
  port1.onmessage = () => (stop(), run());
  port2.postMessage(null);
  return stop;
}

/**
 * A pause. The signal ends it early, and so does the function that `early` gets.
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
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end);
    if (signal.aborted) end();
    early?.(end);
  });
}

/**
 * A signal that fires with another signal or after a time. Release it when it is no longer needed.
 *
 * @param {AbortSignal} signal
 * @param {number} [ms]
 */
function limited(signal, ms) {
  const both = new AbortController();
  const abort = () => both.abort();
  const stop = ms === undefined ? () => {} : deadline(ms, abort);
  signal.addEventListener("abort", abort);
  if (signal.aborted) abort();
  const release = () => {
    stop();
    signal.removeEventListener("abort", abort);
  };
  return { signal: both.signal, abort, release };
}

/** The promise, or nothing once the signal fires. @template T @param {Promise<T>} promise @param {AbortSignal} signal */
async function unlessAborted(promise, signal) {
  const { promise: aborted, resolve } = withResolvers();
  signal.addEventListener("abort", resolve);
  if (signal.aborted) resolve();
  try {
    return /** @type {T | undefined} */ (await Promise.race([promise, aborted.then(() => undefined)]));
  } finally {
    signal.removeEventListener("abort", resolve);
  }
}

/** The address of the broker, with a slash at its end. @param {string | URL | undefined} url */
function brokerAddress(url) {
  if (url === undefined) {
    const own = import.meta.url ? new URL(import.meta.url) : null;
    if (own && /^https?:$/.test(own.protocol) && /^(?!.*\/node_modules\/).*\/client\.js$/.test(own.pathname)) {
      return new URL(".", own);
    }
    throw new TypeError("connect needs the `url` of the broker, since this module was not loaded from a broker");
  }
  let base;
  try {
    base = new URL(url, globalThis.location?.href);
  } catch {
    throw new TypeError(`the url of the broker is not valid: ${url}`);
  }
  if (/^wss?:$/.test(base.protocol)) base.protocol = base.protocol.replace("ws", "http");
  if (!/^https?:$/.test(base.protocol) || base.username || base.password) {
    throw new TypeError("the url of the broker must begin with http: or https:, and hold no password");
  }
  [base.search, base.hash] = ["", ""];
  if (!base.pathname.endsWith("/")) base.pathname += "/";
  return base;
}

// ── the token ───────────────────────────────────────────────────────────────────────────────────────────────

/** The token of the page: asked for once, and kept until it is refused or expires soon. */
class Proof {
  #source;
  /** @type {string | undefined} */ #token;
  /** @type {Promise<string | undefined> | null} */ #asking = null;
  #known = false;
  #since = now();
  /** For how many milliseconds the token is used. */ #lifetime = Infinity;
  /** How often in a row a token was refused. */ refusals = 0;

  /** @param {Options["token"]} source */
  constructor(source) {
    this.#source = source;
  }

  /** Whether there may be another token than the refused one. */
  get renewable() {
    return typeof this.#source === "function" && this.refusals < REFUSALS;
  }

  /** The token, without white space around it. Rejects with the error of the page's function. */
  get() {
    if (this.#known && elapsed(this.#since) < this.#lifetime) return Promise.resolve(this.#token);
    return (this.#asking ??= this.#ask().finally(() => (this.#asking = null)));
  }

  async #ask() {
    const source = this.#source;
    const since = now();
    const late = withResolvers();
    const stop = deadline(TOKEN, () => late.reject(new Error(`the token function gave no token within ${TOKEN / 1000} s`)));
    try {
      const token = typeof source === "function" ? await Promise.race([source(), late.promise]) : source;
      if (token !== undefined && token !== null && typeof token !== "string") {
        throw new TypeError(`the token must be a string, not ${typeof token}`);
      }
      this.#token = token?.trim() || undefined;
    } finally {
      stop();
    }
    [this.#known, this.#since, this.#lifetime] = [true, since, this.#lifetimeOf(this.#token)];
    return this.#token;
  }

  /** How long to use a token: not its last 30 s, nor its last tenth. @param {string | undefined} token */
  #lifetimeOf(token) {
    if (typeof this.#source !== "function") return Infinity;
    try {
      const claims = JSON.parse(atob((token ?? "").split(".")[1].replace(/-/g, "+").replace(/_/g, "/")));
      // With `iat` the clock of this machine does not matter.
      const life = claims.exp * 1000 - (typeof claims.iat === "number" ? claims.iat * 1000 : Date.now());
      return life > 0 ? life - Math.min(30_000, life / 10) : Infinity;
    } catch {
      return Infinity; // Not a token with claims, or without `exp`.
    }
  }

  /** The broker refused this token, or wants a fresh one. @param {string | undefined} token */
  refused(token) {
    if (token === this.#token) this.#known = typeof this.#source !== "function";
  }
}

// ── receiving ───────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Messages on their way to one handler, in order.
 *
 * @typedef {object} Entry
 * @property {any} [message] none for a position without a message
 * @property {number} [seq] the position that is reached when the message is handled
 * @property {string | null} epoch
 * @property {Promise<any>} [after] handled elsewhere: what to wait for
 */

/** A queue in front of one handler. */
class Lane {
  /** @type {Entry[]} */ #queue = [];
  #running = false;
  /** Whether it waits for a handler that does not come, or holds a message that failed. */ #held = false;
  /** Called when the queue is empty. @type {(() => void)[]} */ #drained = [];

  /**
   * @param {(entry: Entry) => Promise<boolean>} handle false keeps the message
   * @param {(entry: Entry) => void} [done]
   */
  constructor(handle, done = () => {}) {
    this.handle = handle;
    this.done = done;
  }

  /** @param {Entry} entry */
  push(entry) {
    this.#queue.push(entry);
    if (!this.#running && !this.#held) this.#run();
  }

  get length() {
    return this.#queue.length;
  }

  get empty() {
    return this.#queue.length === 0;
  }

  async #run() {
    this.#running = true;
    for (let entry; (entry = this.#queue[0]); ) {
      if (!(await this.handle(entry))) {
        this.#held = this.#queue[0] === entry;
        if (this.#held) break;
      }
      if (this.#queue[0] === entry) {
        this.#queue.shift();
        this.done(entry);
      }
    }
    this.#running = false;
    if (this.empty) for (const done of this.#drained.splice(0)) done();
  }

  /** Tries again what is held. */
  retry() {
    if (!this.#held) return;
    this.#held = false;
    this.#run();
  }

  /** Removes what this function does not keep. @param {(entry: Entry) => boolean} keep */
  filter(keep) {
    this.#queue = this.#queue.filter(keep);
    this.retry();
    if (this.empty) for (const done of this.#drained.splice(0)) done();
  }

  /** @returns {Promise<void>} */
  untilDrained() {
    return this.empty ? Promise.resolve() : new Promise((done) => this.#drained.push(done));
  }
}

/**
 * One call of `subscribe`.
 *
 * @typedef {object} Subscription
 * @property {Lane} lane
 * @property {number | null} after the newest seq in the lane; null for "from now on"
 */

/**
 * A topic that is read.
 *
 * @typedef {object} Topic
 * @property {Set<Subscription>} subscriptions
 * @property {string | null} epoch the epoch of the positions, null if it is not known
 * @property {number | null} newest the newest seq that was seen
 * @property {boolean} refused while polling: the broker refused it
 */

/** Takes what the broker sends, calls the handlers in order, and knows what is acknowledged. */
class Inbox {
  /** The epoch that the positions belong to. @type {string | null} */ epoch = null;
  /** The newest seq put into the queue. */ #queued = 0;
  /** The newest seq whose handler has returned. */ handled = 0;
  /** The newest seq that was acknowledged. */ acknowledged = 0;
  /** @type {Map<string, Topic>} */ topics = new Map();
  #options;
  #call;
  #onHandled;
  #closed = false;
  #onReply;
  #answer;
  /** Receipts that came early, past a full window. They come again in their place. @type {Set<string>} */ #early = new Set();
  #mailbox = new Lane((entry) => this.#handleMailbox(entry), (entry) => this.#reach(entry));
  #receipts = new Lane((entry) => this.#handle(entry, this.#options.onReceipt));

  /**
   * @param {Options} options
   * @param {(callback: () => void) => void} call calls a callback of the page
   * @param {() => void} onHandled called when `handled` has grown
   * @param {(reply: any) => void} onReply called with each reply, on arrival
   * @param {(replyTo: string, payload: any, options?: SendOptions) => Promise<Sent>} answer answers a request
   */
  constructor(options, call, onHandled, onReply, answer) {
    this.#options = options;
    this.#call = call;
    this.#onHandled = onHandled;
    this.#onReply = onReply;
    this.#answer = answer;
  }

  /** No handler is called from now on. */
  close() {
    this.#closed = true;
  }

  /** Tries again the messages that are held. */
  retry() {
    this.#mailbox.retry();
    this.#receipts.retry();
  }

  /** Whether everything that came to the mailbox is handled. */
  get idle() {
    return this.#mailbox.empty;
  }

  untilDrained() {
    return Promise.all([this.#mailbox, ...this.#lanes()].map((lane) => lane.untilDrained()));
  }

  *#lanes() {
    for (const { subscriptions } of this.topics.values()) for (const { lane } of subscriptions) yield lane;
  }

  /** Seqs of another epoch mean nothing. @param {string} epoch */
  enter(epoch) {
    if (epoch === this.epoch) return;
    this.epoch = epoch;
    this.#begin(0);
  }

  /** The mailbox goes on after this position. @param {number} seq */
  #begin(seq) {
    [this.#queued, this.handled, this.acknowledged] = [seq, seq, seq];
    this.#early.clear();
    this.#mailbox.filter(({ seq }) => seq === undefined);
  }

  /** The newest seq that has come. */
  get queued() {
    return this.#queued;
  }

  /** Whether there is room for messages that come before the handlers have returned. */
  get hasRoom() {
    return this.#mailbox.length < WINDOW;
  }

  /** @param {any} frame a message, a receipt or a reply */
  take(frame) {
    const { seq, topic } = frame;
    if (topic !== undefined) return this.#takeTopic(topic, frame);
    if (seq !== undefined) {
      if (!isSeq(seq) || seq <= this.#queued) return; // A repetition of one that is being handled.
      this.#queued = seq;
    }
    if (frame.type === "reply") {
      // On arrival, since a handler may wait for it. Its position is acknowledged after the messages before it.
      if (seq !== undefined) this.#mailbox.push({ seq, epoch: this.epoch });
      return this.#onReply(frame);
    }
    if (typeof frame.reply_to === "string") {
      const value = (/** @type {any} */ payload, /** @type {any} */ options) => this.#answer(frame.reply_to, payload, options);
      Object.defineProperty(frame, "reply", { value });
    }
    const entry = { message: frame, seq, epoch: this.epoch };
    if (frame.type !== "receipt") return this.#mailbox.push(entry);
    // On arrival: a receipt does not wait for the messages before it. Its position does.
    const { onReceipt, onMessage } = this.#options;
    const name = JSON.stringify([frame.id, frame.state, frame.ts]);
    const known = seq === undefined ? this.#early.has(name) : this.#early.delete(name);
    if (onReceipt && !known) this.#receipts.push(entry);
    if (seq === undefined) return void this.#early.add(name);
    const after = onReceipt || onMessage ? this.#receipts.untilDrained() : undefined;
    this.#mailbox.push({ seq, epoch: this.epoch, after: after ?? new Promise(() => {}) });
  }

  /** @param {string} name @param {any} message */
  #takeTopic(name, message) {
    const topic = this.topics.get(name);
    if (!topic) return;
    const { seq } = message;
    if (seq !== undefined) topic.newest = Math.max(topic.newest ?? 0, seq);
    for (const subscription of topic.subscriptions) {
      if (seq !== undefined) {
        if (subscription.after !== null && seq <= subscription.after) continue;
        subscription.after = seq;
      }
      subscription.lane.push({ message, epoch: null });
    }
  }

  /** Everything up to this seq has come, or is not coming. @param {number} seq */
  reached(seq) {
    if (seq <= this.#queued) return;
    this.#queued = seq;
    this.#mailbox.push({ seq, epoch: this.epoch });
  }

  /** @param {Gap & {epoch?: string}} gap */
  gap({ topic: name, from, to, reason, epoch }) {
    if (name === undefined) {
      // A position of another epoch means nothing, however high it is.
      if (reason === "epoch") {
        this.epoch = epoch ?? this.epoch;
        this.#begin(to);
      } else this.reached(to);
    } else {
      const topic = this.topics.get(name);
      if (topic) {
        topic.epoch = epoch ?? this.epoch;
        topic.newest = reason === "epoch" ? to : Math.max(topic.newest ?? 0, to);
        for (const subscription of topic.subscriptions) {
          subscription.after = reason === "epoch" ? to : Math.max(subscription.after ?? 0, to);
        }
      }
    }
    const gap = { ...(name === undefined ? {} : { topic: name }), from, to, reason };
    this.#call(() => this.#options.onGap?.(gap));
  }

  /** The broker reads this topic up to here. @param {string} name @param {number} seq @param {boolean} recovered */
  positioned(name, seq, recovered) {
    const topic = this.topics.get(name);
    if (!topic) return;
    for (const subscription of topic.subscriptions) subscription.after ??= seq;
    topic.newest ??= seq;
    if (recovered) topic.epoch = this.epoch;
  }

  /** An answer to a poll has this topic up to here. @param {string} name @param {number} seq */
  advance(name, seq) {
    const topic = this.topics.get(name);
    if (!topic || !isSeq(seq)) return;
    for (const subscription of topic.subscriptions) subscription.after = Math.max(subscription.after ?? 0, seq);
    topic.newest = Math.max(topic.newest ?? 0, seq);
    topic.epoch = this.epoch;
  }

  /** @param {string} name @param {(message: any) => any} handler @param {number | undefined} after */
  subscribe(name, handler, after) {
    let topic = this.topics.get(name);
    if (!topic) {
      topic = { subscriptions: new Set(), epoch: after === undefined ? null : this.epoch, newest: null, refused: false };
      this.topics.set(name, topic);
    }
    const isNew = topic.subscriptions.size === 0;
    const lane = new Lane((entry) => this.#handle(entry, topic.subscriptions.has(subscription) ? handler : undefined, 1));
    /** @type {Subscription} */ const subscription = { lane, after: after ?? topic.newest };
    topic.subscriptions.add(subscription);
    topic.refused = false;
    const end = () => {
      topic.subscriptions.delete(subscription);
      lane.filter(() => false);
      if (topic.subscriptions.size > 0 || this.topics.get(name) !== topic) return false;
      return this.topics.delete(name);
    };
    return { asks: isNew || after !== undefined, end };
  }

  /** Where the topic is read from. @param {string} name */
  position(name) {
    const { subscriptions, epoch } = /** @type {Topic} */ (this.topics.get(name));
    const positions = [...subscriptions].flatMap(({ after }) => (after === null ? [] : [after]));
    const after = positions.length ? { after: Math.min(...positions) } : {};
    return { topic: name, ...after, ...(epoch === null || !positions.length ? {} : { epoch }) };
  }

  /** @param {Entry} entry */
  async #handleMailbox(entry) {
    if (entry.message) return this.#handle(entry, this.#options.onMessage);
    await entry.after;
    return true;
  }

  /** @param {Entry} entry */
  #reach({ seq, epoch }) {
    if (seq === undefined || epoch !== this.epoch || this.#closed) return;
    this.handled = Math.max(this.handled, seq);
    this.#onHandled();
  }

  /**
   * Calls a handler. False keeps the message: there is no handler, it is to be held, or the client is closed.
   *
   * @param {Entry} entry
   * @param {((message: any) => any) | undefined} handler
   * @param {number} attempts
   */
  async #handle({ message, epoch }, handler, attempts = ATTEMPTS) {
    if (this.#closed || !handler) return !handler && message.topic !== undefined;
    let pause = 1_000;
    for (let attempt = 1; ; attempt++) {
      try {
        await handler(message);
        return !this.#closed;
      } catch (error) {
        if (this.#closed) return false;
        this.#call(() => this.#options.onError?.(asError(error), message));
        // The messages behind it wait, to keep the order. Messages of topics are not repeated.
        if (attempt >= attempts) return this.#options.poison !== "hold" || message.topic !== undefined;
        await new Promise((done) => setTimeout(done, jittered(pause)));
        if (this.#closed) return false;
        if (message.seq !== undefined && epoch !== this.epoch) return true;
        pause *= 2;
      }
    }
  }
}

// ── who reads a topic ───────────────────────────────────────────────────────────────────────────────────────

/** Most members of a topic that the broker names. */
const MOST_NAMED = 1000;

/** Keeps the list of the members of one topic. */
class Watch {
  /** @type {Set<{call: (event: Presence) => void}>} */ #handlers = new Set();
  /** Null until the list is known, and if there are too many members for one. @type {Set<string> | null} */ members = null;
  /** Null until the handlers were told. @type {number | null} */ #count = null;
  /** Changes that came while the list is read. @type {any[] | null} */ #late = null;
  #reading = 0;
  #topic;
  #read;
  #call;

  /**
   * @param {string} topic
   * @param {() => Promise<{count: number, members: string[]} | null>} read reads the list; null if that failed
   * @param {(callback: () => void) => void} call calls a callback of the page
   */
  constructor(topic, read, call) {
    this.#topic = topic;
    this.#read = read;
    this.#call = call;
  }

  /** Adds a handler. The returned function removes it, and says whether it was the last. @param {(event: Presence) => void} handler */
  add(handler) {
    const entry = { call: handler };
    this.#handlers.add(entry);
    if (this.#count !== null) queueMicrotask(() => this.#tell([...(this.members ?? [])], [], [entry]));
    return () => this.#handlers.delete(entry) && this.#handlers.size === 0;
  }

  /** No handler is called from now on. */
  end() {
    this.#handlers.clear();
  }

  /** Reads the list, until that works. What changes meanwhile is applied to it. */
  async load() {
    const reading = ++this.#reading;
    const isCurrent = () => reading === this.#reading && this.#handlers.size > 0;
    this.#late = [];
    for (let pause = FIRST_PAUSE; isCurrent(); pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      const list = await this.#read();
      if (!isCurrent()) return;
      if (list) {
        const late = /** @type {any[]} */ (this.#late);
        this.#late = null;
        this.#set(list.count, list.count > MOST_NAMED ? null : new Set(list.members));
        for (const change of late) this.take(change);
        return;
      }
      await new Promise((done) => setTimeout(done, jittered(pause)));
    }
  }

  /** @param {any} change a frame `presence` */
  take(change) {
    const { count, joined, left } = change;
    if (this.#late) this.#late.push(change);
    else if (count > MOST_NAMED) this.#set(count, null);
    else {
      const members = joined && this.members ? new Set(this.members) : null;
      for (const name of left ?? []) members?.delete(name);
      for (const name of joined ?? []) members?.add(name);
      if (members?.size === count) this.#set(count, members);
      else this.load();
    }
  }

  /** @param {number} count @param {Set<string> | null} members */
  #set(count, members) {
    const before = this.members ?? new Set();
    const now = members ?? before;
    const [joined, left] = [[...now].filter((name) => !before.has(name)), [...before].filter((name) => !now.has(name))];
    const changed = count !== this.#count || joined.length + left.length > 0;
    [this.#count, this.members] = [count, members];
    if (changed) this.#tell(joined, left, this.#handlers);
  }

  /** @param {string[]} joined @param {string[]} left @param {Iterable<{call: (event: Presence) => void}>} handlers */
  #tell(joined, left, handlers) {
    const count = this.#count ?? 0;
    for (const handler of handlers) {
      const members = this.members ? { members: [...this.members].sort() } : {};
      this.#call(() => this.#handlers.has(handler) && handler.call({ topic: this.#topic, count, joined, left, ...members }));
    }
  }
}

// ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * @typedef {object} Pending a send without an answer
 * @property {string} id
 * @property {string} body the send as JSON
 * @property {number} size of its body, in bytes
 * @property {number} payload the size of its payload
 * @property {boolean} volatile
 * @property {{steady: number, wall: number} | null} first when it was transmitted first
 * @property {boolean} suspect it, or another one, closed the socket as too large: it goes alone
 * @property {Promise<Sent>} promise
 * @property {(value: Sent) => void} resolve
 * @property {(error: unknown) => void} reject
 */

/** Keeps sends until they are answered, and transmits them in order. */
class Outbox {
  /** Oldest first. @type {Map<string, Pending>} */ #pending = new Map();
  /** Not transmitted on this connection. @type {Pending[]} */ #waiting = [];
  /** Transmitted on this connection. @type {Set<Pending>} */ #flying = new Set();
  /** @type {((pending: Pending) => void) | null} */ #transmit = null;
  #limit = ON_THE_WAY;
  /** The dedup window of the broker, in seconds. */ dedupWindow = DEDUP_WINDOW;
  /** @type {number | undefined} */ maxPayload;

  get count() {
    return this.#pending.size;
  }

  /** How many bytes are on the way. */
  get bytes() {
    let bytes = 0;
    for (const { size } of this.#flying) bytes += size;
    return bytes;
  }

  /**
   * @param {any} to
   * @param {any} payload
   * @param {any} options
   * @param {() => string | null} obstacle why nothing can be sent now
   * @param {boolean} [request] whether it asks for a reply
   */
  add(to, payload, options, obstacle, request = false) {
    const bad = (/** @type {string} */ text) => Promise.reject(new Refused("bad_request", text));
    if (typeof options !== "object" || options === null) return bad("the options must be an object");
    const { id = newId(), ttl, receipt = false, volatile = false, signal } = options;
    if (!isName(id)) return bad("the id must be a string of 1 to 256 bytes without control characters");
    if (typeof receipt !== "boolean") return bad("receipt must be true or false");
    if (typeof volatile !== "boolean") return bad("volatile must be true or false");
    if (ttl !== undefined && !(typeof ttl === "number" && ttl > 0 && ttl < Infinity)) {
      return bad("ttl must be a number of seconds above 0");
    }
    if (signal !== undefined && typeof signal?.addEventListener !== "function") return bad("signal must be an AbortSignal");
    const wrong = wrongAddress(to);
    if (wrong) return bad(wrong);
    let json;
    try {
      json = JSON.stringify(payload);
    } catch (error) {
      return bad(`the payload is no JSON value: ${asError(error).message}`);
    }
    if (json === undefined) return bad("the payload is no JSON value");
    if (depth(json) >= DEPTH) return bad(`the payload is nested deeper than ${DEPTH - 1} levels`);
    const known = this.#pending.get(id);
    if (known) return known.promise;
    const obstructed = obstacle();
    if (obstructed !== null) return Promise.reject(new Refused("unavailable", obstructed));
    if (volatile && !this.#transmit) {
      return Promise.reject(new Refused("unavailable", "a volatile message is not kept while offline"));
    }
    if (this.#pending.size >= MOST_PENDING) {
      return Promise.reject(new Refused("overloaded", `${MOST_PENDING} messages wait for their answer already`));
    }
    if (signal?.aborted) return Promise.reject(signal.reason);
    const body = `{"type":"send","id":${JSON.stringify(id)},"to":${JSON.stringify(to)},"payload":${json}${
      ttl === undefined ? "" : `,"ttl":${ttl}`},"receipt":${receipt},"volatile":${volatile}${request ? ',"request":true' : ""}}`;
    const { promise, resolve, reject } = withResolvers();
    const [size, bytes] = [utf8.encode(body).length, utf8.encode(json).length];
    /** @type {Pending} */
    const pending = { id, body, size, payload: bytes, volatile, first: null, suspect: false, promise, resolve, reject };
    this.#pending.set(id, pending);
    this.#waiting.push(pending);
    if (signal) {
      const abort = () => this.settle(id, signal.reason);
      signal.addEventListener("abort", abort);
      const release = () => signal.removeEventListener("abort", abort);
      promise.then(release, release);
    }
    this.#pump();
    return promise;
  }

  /** A connection can transmit. @param {(pending: Pending) => void} transmit @param {number} [limit] bytes on the way */
  open(transmit, limit = ON_THE_WAY) {
    [this.#transmit, this.#limit] = [transmit, limit];
    this.#pump();
  }

  /** The connection is lost. What is not answered is transmitted again. @param {boolean} [tooBig] it was closed since a frame was too big */
  shut(tooBig = false) {
    this.#transmit = null;
    const flying = [...this.#flying];
    this.#flying.clear();
    if (tooBig) {
      for (const pending of flying) pending.suspect = true;
      if (flying.length === 1) this.settle(flying[0].id, new Refused("too_large", "the message is larger than the broker, or a proxy, takes"));
    }
    for (const { id, volatile } of this.#pending.values()) {
      // A volatile message is sent at most once. Whether it was sent is not known.
      if (volatile) this.settle(id, new Refused("unavailable", "the connection was lost before it was confirmed"));
    }
    this.#waiting = [...this.#pending.values()];
  }

  #pump() {
    for (let first; this.#transmit && (first = this.#waiting[0]); ) {
      const [other] = this.#flying;
      if (other && (first.suspect || other.suspect || this.bytes + first.size > this.#limit)) return;
      this.#waiting.shift();
      if (!this.#pending.has(first.id)) continue;
      if (this.isTooOld(first)) continue;
      if (first.payload > (this.maxPayload ?? Infinity)) {
        const text = `the payload is ${first.payload} bytes long; at most ${this.maxPayload} are allowed`;
        this.settle(first.id, new Refused("too_large", text));
        continue;
      }
      first.first ??= now();
      this.#flying.add(first);
      this.#transmit(first);
    }
  }

  /** Rejects a send that the broker would store twice: its first transmission is forgotten there. @param {Pending} pending */
  isTooOld({ id, first }) {
    // A second less: the broker counts from the arrival.
    if (first === null || elapsed(first) < (this.dedupWindow - 1) * 1000) return false;
    const text = "no answer came within the time in which the broker recognises a repeated send; it may be stored or not";
    this.settle(id, new Refused("unknown", text));
    return true;
  }

  /** Whether this send still waits for an answer. @param {Pending} pending */
  has(pending) {
    return this.#pending.get(pending.id) === pending;
  }

  /** Settles a send. @param {string} id @param {unknown} error null if it succeeded @param {{seq?: number, sessions?: number}} [answer] */
  settle(id, error, answer = {}) {
    const pending = this.#pending.get(id);
    if (!pending) return;
    this.#pending.delete(id);
    this.#flying.delete(pending);
    const { seq, sessions } = answer;
    if (error !== null) pending.reject(error);
    else pending.resolve({ id, ...(seq === undefined ? {} : { seq }), ...(sessions === undefined ? {} : { sessions }) });
    if (this.#waiting.length > 0) this.#pump();
  }

  /** @param {string} reason */
  close(reason) {
    this.#transmit = null;
    for (const id of [...this.#pending.keys()]) this.settle(id, new Refused("unavailable", reason));
  }

  /** Waits until everything that was sent before is answered or refused. */
  async flush() {
    await Promise.allSettled([...this.#pending.values()].map(({ promise }) => promise));
  }
}

/** Requests that wait for their replies. */
class Requests {
  /** @type {Map<string, {promise: Promise<any>, resolve: (reply: any) => void, reject: (error: unknown) => void}>} */ #waiting = new Map();

  get count() {
    return this.#waiting.size;
  }

  /** The promise of a request that waits already. @param {string} id */
  get(id) {
    return this.#waiting.get(id)?.promise;
  }

  /**
   * Waits for the reply to a request.
   *
   * @param {string} id
   * @param {number} timeout
   * @param {AbortSignal | undefined} signal
   * @param {() => void} done called when it does not wait any more
   */
  add(id, timeout, signal, done) {
    const { promise, resolve, reject } = withResolvers();
    this.#waiting.set(id, { promise, resolve, reject });
    const stop = deadline(timeout, () => reject(new Refused("timeout", `no reply came within ${timeout} ms`)));
    const abort = () => reject(signal?.reason);
    signal?.addEventListener("abort", abort);
    const release = () => {
      stop();
      signal?.removeEventListener("abort", abort);
      this.#waiting.delete(id);
      done();
    };
    promise.then(release, release);
    return promise;
  }

  /** A reply is here. Nobody may wait for it any more, or another tab may. @param {any} reply */
  take(reply) {
    this.#waiting.get(reply.id)?.resolve(reply);
  }

  /** @param {string} id @param {unknown} error */
  fail(id, error) {
    this.#waiting.get(id)?.reject(error);
  }

  /** @param {string} reason */
  close(reason) {
    for (const { reject } of this.#waiting.values()) reject(new Refused("unavailable", reason));
  }
}

// ── WebSocket ───────────────────────────────────────────────────────────────────────────────────────────────

/** One WebSocket. It is over at once when `end` is called, whatever the network does. */
class Socket {
  #socket;
  #over = false;
  #welcomed = 0;
  /** How many frames have come. */ #heard = 0;
  /** How many had come when it was asked whether the connection is alive; -1 if it is not asked. */ #asked = -1;
  #stop = () => {};
  /** @type {ReturnType<typeof setInterval> | undefined} */ #heartbeat;
  #unconfirmed;
  /** Becomes true when the broker has sent `welcome`, and false if that does not happen. @type {Promise<boolean>} */ opened;
  /** How it ended. @type {Promise<{code: number, reason: string, lived: boolean}>} */ ended;
  #open;
  #end;

  /**
   * @param {WebSocketClass} WebSocket
   * @param {URL} address
   * @param {() => object} hello
   * @param {() => number} unconfirmed how many bytes the broker has not answered
   * @param {(frame: any) => void} onFrame called with each frame, `welcome` included
   */
  constructor(WebSocket, address, hello, unconfirmed, onFrame) {
    const [opened, ended] = [withResolvers(), withResolvers()];
    this.opened = /** @type {Promise<any>} */ (opened.promise);
    this.#open = opened.resolve;
    this.ended = /** @type {Promise<any>} */ (ended.promise);
    this.#end = ended.resolve;
    this.#unconfirmed = unconfirmed;
    const socket = (this.#socket = new WebSocket(address, "x0-msg.v1"));
    this.#stop = deadline(OPENING, () => this.end(4000, "the WebSocket did not open in time"));
    socket.onopen = () => this.say(hello());
    socket.onerror = () => {};
    socket.onclose = ({ code, reason }) => this.#finish(code, reason);
    socket.onmessage = ({ data }) => {
      if (this.#over) return;
      this.#heard++;
      let frame;
      try {
        frame = JSON.parse(data);
      } catch {
        // See below.
      }
      if (typeof frame?.type !== "string") return this.end(4000, "what answers over WebSocket is not the broker");
      if (frame.type === "welcome" && !this.#welcomed) {
        if (typeof frame.epoch !== "string") return this.end(4000, "what answers over WebSocket is not the broker");
        this.#welcomed = performance.now() || 1;
        this.#stop();
        this.#stop = () => {};
        // Pages do not see the pings of the broker.
        this.#heartbeat = setInterval(() => this.probe(), Math.min(frame.heartbeat || 25, 25) * 1000);
        onFrame(frame);
        this.#open(true);
      } else if (this.#welcomed || frame.type === "error") onFrame(frame);
    };
  }

  get welcomed() {
    return this.#welcomed > 0;
  }

  /** @param {object | string} frame */
  say(frame) {
    // 1 is OPEN.
    if (this.#over || this.#socket.readyState !== 1) return;
    this.#socket.send(typeof frame === "string" ? frame : JSON.stringify(frame));
  }

  /** Checks whether the connection is alive. Bytes that leave it are a sign of life, and so is any frame. */
  probe() {
    if (this.#over || !this.#welcomed) return;
    const heard = this.#heard;
    let left = this.#socket.bufferedAmount;
    this.say({ type: "ping" });
    // The first question counts until something comes: heartbeats do not prolong its deadline.
    if (this.#asked === heard) return;
    this.#asked = heard;
    const judge = () => {
      if (this.#heard !== heard) return void (this.#asked = -1);
      const now = this.#socket.bufferedAmount;
      if (now >= left) return this.end(4000, "the connection is dead");
      left = now;
      this.#stop = deadline(PONG, judge);
    };
    this.#stop();
    this.#stop = deadline(PONG + this.#unconfirmed() / SLOWEST, judge);
  }

  /** Ends it at once. A broken network would delay `onclose` for a minute. @param {number} [code] @param {string} [reason] */
  end(code = 1000, reason = "") {
    if (this.#over) return;
    const socket = this.#socket;
    this.#finish(code, reason);
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close(code);
  }

  /** @param {number} code @param {string} reason */
  #finish(code, reason) {
    if (this.#over) return;
    this.#over = true;
    this.#stop();
    clearInterval(this.#heartbeat);
    this.#open(false);
    this.#end({ code, reason, lived: this.#welcomed > 0 && performance.now() - this.#welcomed >= LIVED });
  }
}

// ── HTTP ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Something else than the broker answered: a portal, a gateway, a proxy. */
class Foreign extends Error {
  /** @param {string} path @param {number} status */
  constructor(path, status) {
    super(`what answers ${path} (HTTP ${status}) is not the broker`);
    this.status = status;
  }
}

/**
 * One call of the broker: the answer, or its refusal. Rejects if the broker did not answer.
 * A body of plain text needs no preflight. The broker ignores its type.
 *
 * @param {URL} base
 * @param {string} path
 * @param {string | undefined} body of a POST; a GET has none
 * @param {{signal: AbortSignal, ms: number, keepalive?: boolean, headers?: Record<string, string>}} options
 * @param {(answer: any) => boolean} isAnswer
 */
async function call(base, path, body, { signal, ms, keepalive = false, headers = {} }, isAnswer) {
  const limit = limited(signal, ms);
  try {
    const address = new URL(path, base);
    const method = body === undefined ? "GET" : "POST";
    const request = { method, headers, body, signal: limit.signal, keepalive, cache: /** @type {const} */ ("no-store") };
    const response = await fetch(address, request);
    const answer = await response.json().catch((error) => {
      if (limit.signal.aborted) throw error;
    });
    if (response.ok && isAnswer(answer)) return answer;
    const refusal = response.ok ? null : refusalIn(answer, response.status);
    if (refusal) return refusal;
    throw new Foreign(address.href, response.status);
  } finally {
    limit.release();
  }
}

/**
 * @typedef {object} PollItem what one client asks for
 * @property {string} [session]
 * @property {string} [token]
 * @property {number} [after]
 * @property {false} [ack] `after` does not acknowledge
 * @property {string} [epoch]
 * @property {number} wait
 * @property {{topic: string, after?: number, epoch?: string, presence?: true}[]} [topics]
 */

// ── tabs ────────────────────────────────────────────────────────────────────────────────────────────────────

/** Most polls of one call. */
const MOST_POLLS = 16;

/** Most calls of a leader at the same time. */
const MOST_CALLS = 3;

/** How long a leader collects polls for one call, and how long it takes to answer whether it is there, in milliseconds. */
const GATHER = 25;
const GREETING = 150;

/** How often a tab asks whether its leader is there, in milliseconds. */
const LEADER_CHECK = 4_000;

/**
 * @typedef {object} SharedPoll a poll of a tab
 * @property {PollItem} item
 * @property {string} key
 * @property {(result: any, reason?: string) => void} deliver
 *
 * @typedef {{by: string, heard: number, resolve: (answer: {result?: any, reason?: string}) => void}} AskedPoll
 */

/**
 * Shares the polls of the tabs of an origin, since browsers open few connections to a host: one tab leads, and polls for
 * all. Two leaders at a time do no harm, as each message has its position. So there is no lock, which only secure origins have.
 */
class Tabs {
  #id = newId();
  /** @type {BroadcastChannel | null} null once this tab polls no more */ #channel;
  #poll;
  /** The tab that polls for this one; null if it is not known. @type {string | null} */ #leader = null;
  /** Polls of this tab that another tab makes: which one, and when it was heard. @type {Map<string, AskedPoll>} */ #asked = new Map();
  /** Called when a leader answers. */ #greeted = () => {};

  /** Polls that wait for a call. @type {SharedPoll[]} */ #waiting = [];
  /** @type {Set<{polls: SharedPoll[], abort: () => void}>} */ #calls = new Set();
  /** Stops the gathering of polls. */ #gathering = () => {};

  /**
   * @param {string} name
   * @param {(items: PollItem[], signal: AbortSignal) => Promise<any[]>} poll
   */
  constructor(name, poll) {
    this.#poll = poll;
    this.#channel = new BroadcastChannel(name);
    this.#channel.onmessage = ({ data }) => this.#hear(data);
    globalThis.addEventListener?.("pagehide", this.#resign);
    globalThis.document?.addEventListener("freeze", this.#resign);
  }

  /** @param {object} message */
  #say(message) {
    this.#channel?.postMessage({ from: this.#id, ...message });
  }

  /** @param {any} data */
  #hear({ kind, from, to, key, item, result, reason }) {
    for (const asked of this.#asked.values()) if (asked.by === from) asked.heard = performance.now();
    const leads = this.#leader === this.#id;
    if (kind === "who" && leads) this.#say({ kind: "lead" });
    else if (kind === "lead") {
      // The lower id leads. The other one goes on with its calls, and gets no new ones.
      if (leads && from > this.#id) return this.#say({ kind: "lead" });
      this.#leader = from;
      this.#greeted();
    } else if (kind === "bye") this.#lost(from);
    else if (to !== this.#id) return;
    else if (kind === "ask") {
      if (leads) this.#serve(item, key, (result, reason) => this.#say({ kind: "answer", to: from, key, result, reason }));
      else this.#say({ kind: "answer", to: from, key, reason: "moved" });
    } else if (kind === "drop") this.#drop(key);
    else if (kind === "ping" && (leads || this.#calls.size > 0)) this.#say({ kind: "pong", to: from });
    else if (kind === "answer") {
      const asked = this.#asked.get(key);
      this.#asked.delete(key);
      if (reason === "moved") this.#leader = null;
      asked?.resolve({ result, reason });
    }
  }

  /** A tab that led is gone, or leads no more. @param {string} tab */
  #lost(tab) {
    if (this.#leader === tab) this.#leader = null;
    for (const [key, { by, resolve }] of this.#asked) {
      if (by !== tab) continue;
      this.#asked.delete(key);
      resolve({ reason: "moved" });
    }
  }

  /** Polls for no other tab any more: they find a leader among themselves. A tab may have calls that another one has replaced as leader. */
  #resign = () => {
    const leads = this.#leader === this.#id;
    if (leads) this.#leader = null;
    if (leads || this.#calls.size + this.#waiting.length > 0) this.#say({ kind: "bye" });
    for (const call of this.#calls) call.abort();
  };

  /** This tab polls no more. */
  close() {
    this.#resign();
    globalThis.removeEventListener?.("pagehide", this.#resign);
    globalThis.document?.removeEventListener("freeze", this.#resign);
    this.#channel?.close();
    this.#channel = null;
    this.#gathering();
  }

  async #findLeader() {
    if (this.#leader !== null) return;
    const { promise, resolve } = withResolvers();
    this.#greeted = resolve;
    this.#say({ kind: "who" });
    const timer = setTimeout(resolve, jittered(GREETING));
    await promise;
    clearTimeout(timer);
    if (this.#leader !== null) return;
    this.#leader = this.#id;
    this.#say({ kind: "lead" });
  }

  /** The result of one poll. Rejects if it could not be made. @param {PollItem} item @param {AbortSignal} signal */
  async ask(item, signal) {
    while (!signal.aborted) {
      await this.#findLeader();
      const [key, leader] = [newId(), this.#leader];
      const asked = withResolvers();
      const isOwn = leader === this.#id;
      const record = { by: leader ?? "", heard: performance.now(), resolve: asked.resolve };
      let unanswered = 0;
      const check = setInterval(() => {
        // A tab that was frozen, or has crashed, says no good-bye.
        unanswered = performance.now() - record.heard < LEADER_CHECK ? 0 : unanswered + 1;
        if (unanswered > 2) this.#lost(record.by);
        else if (!isOwn) this.#say({ kind: "ping", to: leader });
      }, LEADER_CHECK);
      const abort = () => asked.resolve({ reason: "aborted" });
      signal.addEventListener("abort", abort);
      if (signal.aborted) abort();
      if (isOwn) {
        clearInterval(check);
        this.#serve(item, key, (result, reason) => asked.resolve({ result, reason }));
      } else {
        this.#asked.set(key, record);
        this.#say({ kind: "ask", to: leader, key, item });
      }
      const { result, reason } = await asked.promise;
      clearInterval(check);
      this.#asked.delete(key);
      signal.removeEventListener("abort", abort);
      if (signal.aborted) {
        if (isOwn) this.#drop(key);
        else this.#say({ kind: "drop", to: leader, key });
      }
      if (result !== undefined) return result;
      if (reason !== "moved") throw new Error(reason);
    }
    throw new Error("aborted");
  }

  /** Polls for a tab. @param {PollItem} item @param {string} key @param {(result: any, reason?: string) => void} deliver */
  #serve(item, key, deliver) {
    this.#waiting.push({ item, key, deliver });
    this.#gathering();
    this.#gathering = soon(GATHER, () => this.#callAll());
  }

  /** A tab no longer wants its poll. A call that nobody wants is aborted. @param {string} key */
  #drop(key) {
    this.#waiting = this.#waiting.filter((poll) => poll.key !== key);
    for (const call of this.#calls) {
      call.polls = call.polls.filter((poll) => poll.key !== key);
      if (call.polls.length === 0) call.abort();
    }
  }

  #callAll() {
    while (this.#waiting.length > 0) {
      if (this.#calls.size >= MOST_CALLS) {
        // The smallest call makes room, and its polls come with the next one.
        const [smallest] = [...this.#calls].sort((a, b) => a.polls.length - b.polls.length);
        if (smallest.polls.length + this.#waiting.length > MOST_POLLS) return;
        this.#waiting.push(...smallest.polls.splice(0));
        smallest.abort();
        this.#calls.delete(smallest);
      }
      this.#callOnce(this.#waiting.splice(0, MOST_POLLS));
    }
  }

  /** @param {SharedPoll[]} polls */
  async #callOnce(polls) {
    const abort = new AbortController();
    const call = { polls, abort: () => abort.abort() };
    this.#calls.add(call);
    const sent = [...polls];
    try {
      const results = await this.#poll(sent.map(({ item }) => item), abort.signal);
      for (const [at, poll] of sent.entries()) if (call.polls.includes(poll)) poll.deliver(results[at]);
    } catch (error) {
      const reason = this.#leader === this.#id ? asError(error).message : "moved";
      for (const { deliver } of call.polls) deliver(undefined, reason);
    }
    this.#calls.delete(call);
    if (this.#waiting.length > 0) this.#callAll();
  }
}

// ── the client ──────────────────────────────────────────────────────────────────────────────────────────────

const CALLBACKS = /** @type {const} */ (["onMessage", "onReceipt", "onStatus", "onGap", "onAck", "onError"]);
const TRANSPORTS = ["auto", "websocket", "poll"];

/** @param {any} options */
function checkOptions(options) {
  const { session, token, transport = "auto", poison = "skip" } = options ?? {};
  if (typeof session === "string" ? session === "" : session !== undefined || !token) {
    throw new TypeError("connect needs a session or a token, like connect({ session: \"A\" })");
  }
  if (!["undefined", "string", "function"].includes(typeof token)) throw new TypeError("token must be a string or a function");
  checkTransport(transport);
  if (!["skip", "hold"].includes(poison)) throw new TypeError('poison must be "skip" or "hold"');
  for (const name of CALLBACKS) {
    if (options[name] !== undefined && typeof options[name] !== "function") throw new TypeError(`${name} must be a function`);
  }
}

/** @param {any} transport */
function checkTransport(transport) {
  if (!TRANSPORTS.includes(transport)) throw new TypeError('transport must be "auto", "websocket" or "poll"');
}

/**
 * Connects to a broker, and stays connected until `close`.
 *
 * @template [T=any] the type of the payloads that are received
 * @param {Options<T>} options
 * @returns {Client<T>}
 */
export function connect(options) {
  return new Client(options);
}

/** A connection to a broker for one session. Made by {@link connect}. @template [T=any] */
export class Client {
  /** @type {Options<T>} */ #options;
  #base;
  /** @type {WebSocketClass | undefined} */ #WebSocket;
  /** @type {Status} */ #status = { state: "connecting", transport: null };
  /** @type {Transport | "auto"} */ #wanted;
  /** The session that is read, once it is known. @type {string | undefined} */ #session;

  #proof;
  #inbox;
  #outbox = new Outbox();
  #requests = new Requests();
  /** The token that was sent last over the socket. @type {string | undefined} */ #shown;
  /** Whether the broker takes the id of the session as the proof. */ #provesById = false;
  #renewing = false;

  /** The socket that carries messages. @type {Socket | null} */ #socket = null;
  /** Aborts the current poll, pause or attempt to connect. */ #run = new AbortController();
  #paused = false;
  #pause = FIRST_PAUSE;
  #return = FIRST_RETURN;
  /** How many sockets in a row died early. */ #earlyDeaths = 0;
  /** Why the last attempt failed. @type {string | null} */ #reason = null;
  /** Ends the current pause. @type {(() => void) | null} */ #wake = null;

  /** The topics whose members are watched. @type {Map<string, Watch>} */ #watches = new Map();
  /** Whether the answer to a poll was lost, which may have had a change of members. */ #missed = false;

  /** Shares long polls with the other tabs. @type {Tabs | null} */ #tabs = null;
  /** The current poll. @type {{abort: () => void} | null} */ #asking = null;
  /** Whether the poll was aborted to ask again. */ #again = false;
  /** Called when a request begins while messages wait for their handler. @type {(() => void) | null} */ #asked = null;
  /** How many polls the broker has answered. */ #answers = 0;

  /** @type {ReturnType<typeof setTimeout> | null} */ #ackTimer = null;
  /** How many messages were handled since the last acknowledgement. */ #unacknowledged = 0;

  /** @param {Options<T>} options */
  constructor(options) {
    checkOptions(options);
    this.#options = options;
    this.#base = brokerAddress(options.url);
    this.#wanted = options.transport ?? "auto";
    this.#WebSocket = options.WebSocket ?? globalThis.WebSocket;
    if (!this.#WebSocket && this.#wanted === "websocket") {
      throw new TypeError("there is no WebSocket here: give a class as the option `WebSocket`, or use long-poll");
    }
    this.#session = options.session;
    this.#proof = new Proof(options.token);
    this.#inbox = new Inbox(
      options,
      (callback) => this.#call(callback),
      () => this.#onHandled(),
      (reply) => this.#requests.take(reply),
      (replyTo, payload, options) => this.send({ reply: replyTo }, payload, options),
    );
    globalThis.addEventListener?.("online", this.#check);
    globalThis.addEventListener?.("offline", this.#check);
    globalThis.addEventListener?.("pageshow", this.#check);
    globalThis.document?.addEventListener("visibilitychange", this.#check);
    globalThis.document?.addEventListener("resume", this.#check);
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

  /** How many sends have no answer yet. */
  get pendingCount() {
    return this.#outbox.count;
  }

  /**
   * Sends a message. The promise is fulfilled when the message is stored, with its seq (none if it is volatile), or
   * rejected with {@link Refused}. Without a connection the message waits. A volatile message is rejected then.
   *
   * @param {Address} to
   * @param {any} payload any JSON value
   * @param {SendOptions} [options]
   * @returns {Promise<Sent>}
   */
  async send(to, payload, options = {}) {
    return this.#outbox.add(to, payload, options, this.#obstacle);
  }

  /**
   * Sends a request, and waits for its reply: the receiver calls `message.reply(payload)`. Rejects with {@link Refused}, whose `code` is
   * "timeout" if no reply came, or with the reason of the signal. It may be called, and awaited, in a handler.
   *
   * @template [P=any]
   * @param {Address} to a session, a user or a backend
   * @param {any} payload any JSON value
   * @param {RequestOptions} [options]
   * @returns {Promise<Reply<P>>}
   */
  async request(to, payload, options = {}) {
    const { timeout = REPLY, signal, volatile, id = newId() } = options ?? {};
    if (!(typeof timeout === "number" && timeout > 0 && timeout <= LONGEST_REPLY)) {
      throw new Refused("bad_request", `timeout must be a number of milliseconds above 0, at most ${LONGEST_REPLY}`);
    }
    const known = this.#requests.get(id);
    if (known) return known;
    if (signal?.aborted) throw signal.reason;
    const sent = this.#outbox.add(to, payload, { id, ttl: timeout / 1000, volatile }, this.#obstacle, true);
    const late = new Refused("timeout", "the request is over");
    const reply = this.#requests.add(id, timeout, signal, () => this.#outbox.settle(id, late));
    sent.catch((error) => this.#requests.fail(id, error));
    this.#asked?.();
    return reply;
  }

  /** Why nothing can be sent; null if it can. */
  #obstacle = () => (this.#status.state === "closed" ? (this.#status.reason ?? "the client is closed") : null);

  /**
   * Waits until everything that was sent before is answered or refused, and acknowledges what was handled. For a page that
   * is being left.
   */
  async flush() {
    await this.#ackNow();
    await this.#outbox.flush();
  }

  /**
   * Reads a topic until the returned function is called. After a reconnect it goes on where it was.
   *
   * @template [P=any]
   * @param {string} topic
   * @param {(message: Message<P>) => any} handler
   * @param {{after?: number, presence?: (event: Presence) => void}} [options] `after` asks for what the topic's history holds
   *   after that seq. `presence` is called with those who read the topic, and whenever they change
   * @returns {() => void}
   */
  subscribe(topic, handler, { after, presence } = {}) {
    if (!isName(topic)) throw new TypeError("the topic must be a string of 1 to 256 bytes without control characters");
    if (typeof handler !== "function") throw new TypeError("the handler of a topic must be a function");
    if (after !== undefined && !isSeq(after)) throw new TypeError("after must be a seq");
    if (presence !== undefined && typeof presence !== "function") throw new TypeError("presence must be a function");
    const { asks, end } = this.#inbox.subscribe(topic, handler, after);
    const ask = () => {
      if (this.#socket) this.#socket.say({ type: "subscribe", ...this.#position(topic) });
      else this.#askAgain();
    };
    const watched = this.#watches.has(topic);
    const unwatch = presence && this.#watch(topic, presence);
    if (asks || (presence && !watched)) ask();
    return () => {
      const unwatched = unwatch?.() && this.#watches.delete(topic);
      if (!end()) return unwatched && ask();
      if (this.#socket) this.#socket.say({ type: "unsubscribe", topic });
      else this.#askAgain();
    };
  }

  /**
   * Who reads a topic that is subscribed to with `presence`. Undefined while that is not known, and above 1,000 members.
   *
   * @param {string} topic
   * @returns {string[] | undefined}
   */
  presence(topic) {
    const members = this.#watches.get(topic)?.members;
    return members ? [...members].sort() : undefined;
  }

  /** @param {string} topic @param {(event: Presence) => void} handler */
  #watch(topic, handler) {
    let watch = this.#watches.get(topic);
    if (!watch) {
      watch = new Watch(topic, () => this.#readMembers(topic), (callback) => this.#call(callback));
      this.#watches.set(topic, watch);
    }
    return watch.add(handler);
  }

  /** The members of a topic. Null if they cannot be read now. @param {string} topic */
  async #readMembers(topic) {
    const { signal } = this.#run;
    try {
      const token = await unlessAborted(this.#proof.get(), signal);
      const headers = token === undefined ? undefined : { authorization: `Bearer ${token}` };
      const path = `v1/topics/${encodeURIComponent(topic)}/presence?limit=${MOST_NAMED}`;
      const options = { signal, ms: ANSWER, headers };
      const answer = await call(this.#base, path, undefined, options, ({ count, members }) => isSeq(count) && Array.isArray(members));
      if (!(answer instanceof Refused)) return answer;
      if (answer.code === "unauthorized") this.#proof.refused(token);
      else if (!PASSING.includes(answer.code)) this.#report(answer);
    } catch {
      // The next attempt may work.
    }
    return null;
  }

  /** What is asked for of a topic. @param {string} name */
  #position(name) {
    return { ...this.#inbox.position(name), ...(this.#watches.has(name) ? { presence: /** @type {const} */ (true) } : {}) };
  }

  /**
   * Chooses the transport: "websocket", "poll", or "auto" for WebSocket if it works.
   *
   * @param {Transport | "auto"} transport
   */
  use(transport) {
    checkTransport(transport);
    if (transport === this.#wanted) return;
    this.#wanted = transport;
    if (this.#status.state !== "closed" && !this.#paused) this.#restart();
  }

  /** Closes the connection until `resume`. Messages to this session wait at the broker. */
  pause() {
    if (this.#status.state === "closed") return;
    this.#paused = true;
    this.#stop();
    this.#tell({ state: "offline", transport: null, reason: "paused" });
  }

  /** Connects again after `pause`, and calls the handler again with a message that is held. */
  resume() {
    if (!this.#paused || this.#status.state === "closed") return;
    this.#paused = false;
    this.#inbox.retry();
    this.#start();
  }

  /** Closes the client. Sends without an answer are rejected. No handler is called any more. */
  close() {
    this.#close("the client is closed");
  }

  // ── the connection ────────────────────────────────────────────────────────────────────────────────────

  #start() {
    this.#run = new AbortController();
    [this.#pause, this.#return, this.#earlyDeaths] = [FIRST_PAUSE, FIRST_RETURN, 0];
    this.#tell({ state: "connecting", transport: null });
    this.#talk(this.#run.signal).catch((error) => this.#close(asError(error).message, asError(error)));
  }

  #stop() {
    this.#run.abort();
    const socket = this.#socket;
    this.#leave();
    socket?.end();
  }

  #restart() {
    this.#stop();
    this.#start();
  }

  /** What carried messages carries them no more. @param {number} [code] with which the socket was closed */
  #leave(code) {
    this.#socket = null;
    if (this.#ackTimer !== null) clearTimeout(this.#ackTimer);
    this.#ackTimer = null;
    // 1009: a frame was too big.
    this.#outbox.shut(code === 1009);
  }

  /** @param {string} reason @param {Error} [error] */
  #close(reason, error) {
    if (this.#status.state === "closed") return;
    globalThis.removeEventListener?.("online", this.#check);
    globalThis.removeEventListener?.("offline", this.#check);
    globalThis.removeEventListener?.("pageshow", this.#check);
    globalThis.document?.removeEventListener("visibilitychange", this.#check);
    globalThis.document?.removeEventListener("resume", this.#check);
    // Keeps the order: what was handled is acknowledged, then the socket is closed.
    if (this.#socket) this.#ackOverSocket();
    this.#inbox.close();
    this.#tell({ state: "closed", transport: null, reason });
    this.#stop();
    this.#outbox.close(reason);
    for (const watch of this.#watches.values()) watch.end();
    this.#requests.close(reason);
    if (error) this.#report(error);
  }

  /** @param {Status} status */
  #tell(status) {
    const told = (this.#status = { welcome: this.#status.welcome, ...status });
    // After `connect` has returned, because the listener may use the client.
    queueMicrotask(() => this.#call(() => this.#options.onStatus?.(told)));
  }

  /** Calls a callback of the page. What it throws is reported, and does not stop the client. @param {() => void} callback */
  #call(callback) {
    try {
      callback();
    } catch (error) {
      if (typeof reportError === "function") reportError(error);
      else console.error(error);
    }
  }

  /** @param {unknown} error */
  #report(error) {
    this.#call(() => this.#options.onError?.(asError(error)));
  }

  /** The network may have changed, or the page was away: ends pauses, and checks the connection. */
  #check = () => {
    if (globalThis.document?.visibilityState === "hidden") return;
    this.#wake?.();
    if (this.#socket) this.#socket.probe();
    else this.#askAgain();
  };

  /** Keeps a connection on a transport that works, until the signal fires. @param {AbortSignal} signal */
  async #talk(signal) {
    while (!signal.aborted) {
      this.#reason = null;
      const began = performance.now();
      let lived = false;
      let opened = false;
      const tryFirst = this.#wanted === "websocket" || (this.#wanted === "auto" && this.#earlyDeaths < EARLY_DEATHS);
      if (tryFirst && this.#WebSocket) {
        const socket = await this.#open(signal);
        opened = socket?.welcomed ?? false;
        if (socket && opened) lived = await this.#untilEnded(socket, signal);
      }
      if (signal.aborted) return;
      // The broker did not answer: a proxy blocks WebSocket, or the broker is not there.
      if (!opened && this.#wanted !== "websocket") {
        await this.#poll(signal);
        if (signal.aborted) return;
        lived = performance.now() - began >= LIVED && this.#status.state === "online";
        // It ended because a WebSocket opened, which is in use now.
        if (this.#socket) lived = await this.#untilEnded(this.#socket, signal);
      }
      if (signal.aborted) return;
      if (lived) this.#pause = FIRST_PAUSE;
      this.#leave();
      this.#tell({ state: "offline", transport: null, reason: this.#reason ?? "the broker cannot be reached" });
      await rest(jittered(this.#pause), signal, (wake) => (this.#wake = wake));
      this.#wake = null;
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
      if (!signal.aborted) this.#tell({ state: "connecting", transport: null });
    }
  }

  /** Reports why there is no connection. @param {unknown} error */
  #failed(error) {
    this.#reason = asError(error).message;
  }

  /** The token. An error of the page's function is reported. @param {AbortSignal} signal */
  async #token(signal) {
    try {
      const token = await unlessAborted(this.#proof.get(), signal);
      return { token };
    } catch (error) {
      this.#failed(error);
      this.#report(error);
      return null;
    }
  }

  /**
   * Whether the client may try again after a refusal. If not, it is closed.
   *
   * @param {Refused} refusal
   * @param {string | undefined} token the token that was refused
   */
  #mayTryAgain(refusal, token) {
    this.#failed(refusal);
    if (PASSING.includes(refusal.code)) return true;
    if (refusal.code === "unauthorized") {
      this.#proof.refusals++;
      this.#proof.refused(token);
      if (this.#proof.renewable) {
        this.#report(refusal);
        return true;
      }
    }
    this.#close(refusal.message, refusal);
    return false;
  }

  // ── WebSocket ─────────────────────────────────────────────────────────────────────────────────────────

  /**
   * Opens a WebSocket. From its `welcome` on it carries all messages.
   *
   * @param {AbortSignal} signal ends it at any time
   * @param {AbortSignal} [attempt] ends it before the welcome
   * @returns {Promise<Socket | null>} null if none could be opened
   */
  async #open(signal, attempt = signal) {
    const proof = await this.#token(attempt);
    if (proof === null || attempt.aborted || !this.#WebSocket) return null;
    const { token } = proof;
    const address = new URL("ws", this.#base);
    address.protocol = address.protocol.replace("http", "ws");
    const hello = () => {
      const { epoch, handled } = this.#inbox;
      const resume = epoch === null ? {} : { after: handled, epoch };
      return { type: "hello", session: this.#session, token, ...resume, window: WINDOW };
    };
    let refused = false;
    /** @type {Socket} */ let socket;
    try {
      socket = new Socket(this.#WebSocket, address, hello, () => this.#outbox.bytes, (frame) => {
        // A fresh token is answered by another welcome.
        if (frame.type === "welcome" && this.#socket === socket) this.#status.welcome = frame;
        else if (frame.type === "welcome") this.#welcome(socket, frame, token);
        else if (socket.welcomed) this.#socket === socket && this.#hear(frame);
        else {
          const refusal = refusalIn({ error: frame });
          if (refusal) refused = true;
          if (refusal && !this.#mayTryAgain(refusal, token)) socket.end();
        }
      });
    } catch (error) {
      this.#failed(error);
      return null;
    }
    const abort = () => socket.end();
    const giveUp = () => socket.welcomed || socket.end();
    signal.addEventListener("abort", abort);
    attempt.addEventListener("abort", giveUp);
    socket.ended.then(({ code, reason, lived }) => {
      signal.removeEventListener("abort", abort);
      attempt.removeEventListener("abort", giveUp);
      if (signal.aborted || (attempt.aborted && !socket.welcomed)) return;
      this.#ended(socket, { code, reason, lived }, token, refused);
    });
    await socket.opened;
    attempt.removeEventListener("abort", giveUp);
    return socket;
  }

  /** @param {Socket} socket @param {{code: number, reason: string, lived: boolean}} end @param {string | undefined} token @param {boolean} refused whether that was told already */
  #ended(socket, { code, reason, lived }, token, refused) {
    if (lived) [this.#earlyDeaths, this.#return] = [0, FIRST_RETURN];
    else if (socket.welcomed) this.#earlyDeaths++;
    if (this.#socket === socket) this.#leave(code);
    if (!refused) this.#reason = reason || (socket.welcomed ? "the connection was lost" : "the broker cannot be reached");
    if (code === 4501) {
      const shown = socket.welcomed ? this.#shown : token;
      if (!refused) this.#mayTryAgain(new Refused("unauthorized", reason || "the token is refused"), shown);
    } else if (code >= 4500 && code <= 4999) {
      this.#close(reason || `the broker closed for good (${code})`, new Refused(String(code), reason));
    }
  }

  /** Waits until a socket is over; whether it lived. @param {Socket} socket @param {AbortSignal} signal */
  async #untilEnded(socket, signal) {
    const end = await unlessAborted(socket.ended, signal);
    return end?.lived ?? false;
  }

  /** @param {Socket} socket @param {Welcome} welcome @param {string | undefined} token */
  #welcome(socket, welcome, token) {
    this.#outbox.shut();
    this.#socket = socket;
    [this.#shown, this.#proof.refusals] = [token, 0];
    this.#session = welcome.session ?? this.#session;
    // A broker that asks for no proofs gives no handles.
    this.#provesById = welcome.handle !== undefined && token === undefined;
    this.#inbox.enter(welcome.epoch);
    for (const [name, topic] of this.#inbox.topics) {
      topic.refused = false;
      socket.say({ type: "subscribe", ...this.#position(name) });
    }
    // Acknowledge what was handled while there was no socket.
    this.#inbox.acknowledged = Math.min(this.#inbox.handled, welcome.seq ?? 0);
    this.#ackOverSocket();
    this.#outbox.maxPayload = welcome.max_payload;
    this.#outbox.dedupWindow = welcome.dedup_window ?? DEDUP_WINDOW;
    this.#tell({ state: "online", transport: "websocket", welcome });
    this.#outbox.open(({ body }) => socket.say(body));
  }

  /** @param {any} frame */
  #hear(frame) {
    switch (frame.type) {
      case "message":
      case "receipt":
      case "reply":
        return this.#inbox.take(frame);
      case "presence":
        return this.#watches.get(frame.topic)?.take(frame);
      case "sent":
        return this.#outbox.settle(frame.id, null, frame);
      case "gap":
        return this.#inbox.gap(frame);
      case "subscribed":
        if (frame.presence) this.#watches.get(frame.topic)?.load();
        return this.#inbox.positioned(frame.topic, frame.seq, frame.recovered);
      case "error": {
        const refusal = new Refused(String(frame.code), String(frame.message));
        if (frame.id !== undefined) return this.#outbox.settle(frame.id, refusal);
        if (frame.code === "unauthorized" && this.#proof.renewable) return void this.#renew();
        this.#report(refusal);
      }
    }
  }

  /** Sends a fresh token over the socket. Asks for one until it differs from the last. */
  async #renew() {
    if (this.#renewing) return;
    this.#renewing = true;
    const { signal } = this.#run;
    const socket = this.#socket;
    for (let pause = FIRST_PAUSE; this.#socket === socket && !signal.aborted; pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      this.#proof.refused(this.#shown);
      const proof = await this.#token(signal);
      if (proof && proof.token !== this.#shown && this.#socket === socket) {
        this.#shown = proof.token;
        socket?.say({ type: "hello", token: proof.token });
        break;
      }
      await rest(jittered(pause), signal);
    }
    this.#renewing = false;
  }

  // ── acknowledgements ──────────────────────────────────────────────────────────────────────────────────

  /** Acknowledges at once if there was a pause, else soon together with others. Polls acknowledge by themselves. */
  #onHandled() {
    if (!this.#socket) return;
    if (this.#ackTimer === null || ++this.#unacknowledged >= ACK_MESSAGES) this.#ackOverSocket();
  }

  #ackOverSocket() {
    const seq = this.#inbox.handled;
    if (!this.#socket || seq <= this.#inbox.acknowledged) return;
    this.#socket.say({ type: "ack", seq });
    this.#unacknowledged = 0;
    this.#inbox.acknowledged = seq;
    if (this.#ackTimer !== null) clearTimeout(this.#ackTimer);
    this.#ackTimer = setTimeout(() => {
      this.#ackTimer = null;
      this.#ackOverSocket();
    }, ACK_PAUSE);
    this.#call(() => this.#options.onAck?.(seq));
  }

  async #ackNow() {
    if (this.#socket) this.#ackOverSocket();
    else if (this.#status.transport === "poll") await this.#ackOverHttp(this.#run.signal);
  }

  /** @param {AbortSignal} signal */
  async #ackOverHttp(signal) {
    const { handled: seq, acknowledged, epoch } = this.#inbox;
    if (seq <= acknowledged || epoch === null) return;
    try {
      const answer = await this.#request("v1/ack", { seq, epoch }, { signal, ms: ANSWER, keepalive: true }, ({ seq }) => isSeq(seq));
      if (answer instanceof Refused || epoch !== this.#inbox.epoch) return;
      this.#inbox.acknowledged = Math.max(seq, this.#inbox.acknowledged);
      this.#call(() => this.#options.onAck?.(seq));
    } catch {
      // The next poll acknowledges.
    }
  }

  // ── long-poll ─────────────────────────────────────────────────────────────────────────────────────────

  /**
   * One request, with the session and the token in its body.
   *
   * @param {string} path
   * @param {object | string} body an object, or the JSON of one
   * @param {{signal: AbortSignal, ms: number, keepalive?: boolean}} options
   * @param {(answer: any) => boolean} isAnswer
   * @returns {Promise<any>}
   */
  async #request(path, body, options, isAnswer) {
    const token = await unlessAborted(this.#proof.get(), options.signal);
    const rest = (typeof body === "string" ? body : JSON.stringify(body)).slice(1);
    const bearer = token ?? (this.#provesById ? this.#session : undefined);
    const isLarge = bearer !== undefined && rest.length > LARGE;
    const proof = JSON.stringify(isLarge ? { session: this.#session } : { session: this.#session, token }).slice(0, -1);
    const headers = isLarge ? { authorization: `Bearer ${bearer}` } : undefined;
    const whole = `${proof}${proof.length > 1 && rest !== "}" ? "," : ""}${rest}`;
    const answer = await call(this.#base, path, whole, { ...options, headers }, isAnswer);
    if (!(answer instanceof Refused)) return answer;
    if (answer.code === "unauthorized" && bearer === undefined && rest.length > LARGE) {
      // The broker does not read so much before it has seen a proof.
      this.#provesById = true;
      return this.#request(path, body, options, isAnswer);
    }
    return Object.assign(answer, { token });
  }

  /** Polls until polling fails or WebSocket works again. @param {AbortSignal} outer */
  async #poll(outer) {
    const { signal, abort, release } = limited(outer);
    // Workers and pages share the few connections of a browser. Node has no such limit.
    if (globalThis.location && globalThis.BroadcastChannel) {
      this.#tabs = new Tabs(`x0-msg-server ${this.#base}`, (items, signal) => this.#pollMany(items, signal));
    }
    // Tries WebSocket in the meantime. When it opens, polling ends.
    if (this.#wanted === "auto" && this.#WebSocket) this.#returnToWebSocket(outer, signal, abort);
    try {
      let wait = 0; // The first poll shows at once whether polling works.
      let beyond = false;
      while (!signal.aborted) {
        this.#again = false;
        const answer = await this.#ask(wait, beyond, signal);
        if (signal.aborted) return;
        [wait, beyond] = [0, false];
        if (this.#again) continue;
        if (answer === null) return;
        const isFirst = this.#status.transport !== "poll";
        // Handlers that ask for the status are told of this transport.
        if (isFirst) this.#tell({ state: "online", transport: "poll", ...this.#told(answer) });
        this.#take(answer);
        if (isFirst) this.#outbox.open((pending) => this.#post(pending, signal), 0);
        // Acknowledges when the handlers have returned. The next poll would acknowledge too, but it comes later.
        const pause = limited(signal);
        const asked = withResolvers();
        const mayReadOn = () => this.#requests.count > 0 && this.#inbox.hasRoom;
        this.#asked = () => mayReadOn() && asked.resolve();
        this.#asked();
        const stalled = rest(STALLED, pause.signal, (wake) => (this.#wake = wake));
        await Promise.race([this.#inbox.untilDrained(), asked.promise, stalled]);
        this.#asked = null;
        pause.abort();
        pause.release();
        if (signal.aborted) return;
        // A handler that waits for a reply holds its message, and the reply is behind it.
        beyond = !this.#inbox.idle && mayReadOn();
        if (this.#inbox.idle || beyond) wait = WAIT;
        await this.#ackOverHttp(signal);
      }
    } finally {
      abort();
      release();
      this.#tabs?.close();
      this.#tabs = null;
    }
  }

  /** The results of polls for several tabs, one each: an answer or `{ error }`. @param {PollItem[]} items @param {AbortSignal} signal */
  async #pollMany(items, signal) {
    const ms = Math.max(...items.map(({ wait }) => wait)) * 1000 + PONG + this.#outbox.bytes / SLOWEST;
    const isResult = (/** @type {any} */ result) => isPollAnswer(result) || refusalIn(result) !== null;
    const isAnswer = (/** @type {any} */ answer) =>
      Array.isArray(answer) && answer.length === items.length && answer.every(isResult);
    const answer = await call(this.#base, "v1/messages/poll", JSON.stringify(items), { signal, ms }, isAnswer);
    if (answer instanceof Refused) throw answer;
    return answer;
  }

  /** One poll of this client, alone or together with other tabs. @param {PollItem} item @param {AbortSignal} signal @param {number} ms */
  async #pollOnce(item, signal, ms) {
    // A poll that does not wait shows at once whether polling works.
    if (!this.#tabs || item.wait === 0) {
      return call(this.#base, "v1/messages/poll", JSON.stringify(item), { signal, ms }, isPollAnswer);
    }
    const result = await this.#tabs.ask(item, signal);
    return refusalIn(result) ?? result;
  }

  /** @param {AbortSignal} outer @param {AbortSignal} polling @param {() => void} stop */
  async #returnToWebSocket(outer, polling, stop) {
    while (!polling.aborted) {
      await rest(jittered(this.#return), polling);
      this.#return = Math.min(this.#return * 2, LONGEST_RETURN);
      if (polling.aborted) return;
      const socket = await this.#open(outer, polling);
      if (socket?.welcomed) stop();
    }
  }

  /** What the broker says about itself in a poll. @param {any} answer */
  #told({ epoch, session, handle, dedup_window }) {
    const welcome = { ...this.#status.welcome, epoch };
    if (session !== undefined) Object.assign(welcome, { session, handle });
    if (dedup_window !== undefined) Object.assign(welcome, { dedup_window });
    return { welcome };
  }

  /** @param {any} answer of a poll */
  #take(answer) {
    this.#answers++;
    this.#inbox.enter(answer.epoch);
    this.#session ??= answer.session; // The broker names the session that it made for the token.
    this.#outbox.dedupWindow = answer.dedup_window ?? this.#outbox.dedupWindow;
    for (const gap of answer.gaps ?? []) this.#inbox.gap(gap);
    for (const message of answer.messages) this.#hear(message);
    for (const [topic, watch] of this.#watches) if (this.#missed || answer.presence?.[topic]) watch.load();
    this.#missed = false;
    for (const [topic, seq] of Object.entries(answer.topics ?? {})) this.#inbox.advance(topic, seq);
    // The end of this answer, which may be a gap.
    this.#inbox.reached(answer.seq);
    for (const { topic, code, message } of answer.errors ?? []) {
      const refused = this.#inbox.topics.get(topic);
      if (refused) refused.refused = true;
      this.#report(new Refused(String(code), String(message)));
    }
  }

  /** One poll. Null if it failed. @param {number} wait @param {boolean} beyond what waits for its handler, and without acknowledging @param {AbortSignal} signal */
  async #ask(wait, beyond, signal) {
    const proof = await this.#token(signal);
    if (proof === null || signal.aborted) return null;
    const { epoch, handled, queued } = this.#inbox;
    const topics = [...this.#inbox.topics].filter(([, { refused }]) => !refused).map(([name]) => this.#position(name));
    const position = beyond ? { after: queued, ack: false } : { after: handled };
    const resume = epoch === null ? {} : { ...position, epoch };
    const item = { session: this.#session, token: proof.token, ...resume, wait, ...(topics.length ? { topics } : {}) };
    const limit = limited(signal);
    this.#asking = limit;
    // Then it is time to acknowledge.
    if (beyond) this.#inbox.untilDrained().then(() => this.#asking === limit && this.#askAgain());
    try {
      // What is being sent takes from the same uplink.
      const ms = wait * 1000 + PONG + this.#outbox.bytes / SLOWEST;
      const answer = await this.#pollOnce(item, limit.signal, ms);
      if (!(answer instanceof Refused)) {
        this.#proof.refusals = 0;
        return answer;
      }
      if (!signal.aborted && !this.#again) this.#mayTryAgain(answer, proof.token);
    } catch (error) {
      this.#reason = error instanceof Foreign ? error.message : "the broker cannot be reached";
    } finally {
      this.#asking = null;
      limit.release();
    }
    this.#missed = true;
    return null;
  }

  #askAgain() {
    if (this.#asking === null) return;
    this.#again = true;
    this.#asking.abort();
  }

  /** Posts a send until it is answered, or until polling ends. @param {Pending} pending @param {AbortSignal} signal */
  async #post(pending, signal) {
    const { id, body, size, volatile } = pending;
    let [foreign, refusals] = [0, 0];
    for (let pause = FIRST_PAUSE; !signal.aborted && this.#outbox.has(pending); pause = Math.min(pause * 2, LONGEST_PAUSE)) {
      const answers = this.#answers;
      try {
        const options = { signal, ms: ANSWER + size / SLOWEST, keepalive: size < 16_000 };
        const answer = await this.#request("v1/messages", body, options, (answer) => answer?.id === id);
        if (!(answer instanceof Refused)) return this.#outbox.settle(id, null, answer);
        const { token } = /** @type {any} */ (answer);
        if (answer.code === "unavailable" && !volatile) {
          // A broker that starts or stops refuses polls too. Then the send waits.
          this.#askAgain();
          await rest(jittered(pause), signal);
          // It may have started since: a broker that is there refuses twice.
          if (this.#answers > answers && ++refusals > 1) return this.#outbox.settle(id, answer);
          continue;
        }
        // The polls count how often the token is refused.
        if (answer.code !== "unauthorized" || !this.#proof.renewable) return this.#outbox.settle(id, answer);
        this.#proof.refused(token);
      } catch (error) {
        if (signal.aborted) return;
        const status = error instanceof Foreign ? error.status : 0;
        if (status === 413 || status === 414) {
          return this.#outbox.settle(id, new Refused("too_large", `a proxy refuses the message as too large (HTTP ${status})`));
        }
        if (volatile) return this.#outbox.settle(id, new Refused("unavailable", asError(error).message));
        // Something refuses this send, while polls come through.
        if (status >= 400 && status < 500) this.#askAgain();
        await rest(jittered(pause), signal);
        if (status >= 400 && status < 500 && this.#answers > answers && ++foreign >= FOREIGN_ANSWERS) {
          return this.#outbox.settle(id, new Refused("unknown", asError(error).message));
        }
        if (this.#outbox.isTooOld(pending)) return;
        continue;
      }
      await rest(jittered(pause), signal);
    }
  }
}
