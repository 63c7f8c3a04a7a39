/**
 * x0 pages on WebSocket. A classic script that an x0 page loads after `sysAsyncNotifyMsgHandler.js`:
 *
 *     <script src="http://x0-msg-server.x0.localnet:8080/x0.js"></script>
 *
 * It takes the place of the page's polling. Messages come through `client.js` of the same broker: over WebSocket, or
 * over long-poll where WebSocket does not work. Each goes to `processMsg` of the page and is acknowledged when that has
 * returned. Net events go to the broker. All other sends of the page stay as they are.
 *
 * If `client.js` cannot be loaded, or the broker does not let it read this session, the page polls by itself as it does
 * without this script, and this script tries again later.
 *
 * `data-broker` on the tag names another broker, like `data-broker="https://broker.example/"`. `data-transport` is
 * "websocket", "poll" or "auto" (default).
 */
(() => {
  "use strict";

  /** How long the first connection may take, in milliseconds. Then the page polls by itself. */
  const OPENING = 20_000;

  /** How long the page polls by itself before `client.js` is tried again, in milliseconds. Doubled each time. */
  const FIRST_PAUSE = 15_000;
  const LONGEST_PAUSE = 300_000;

  /** After how many milliseconds without a new poll the page's own polling has ended: its poll failed. */
  const POLL_ENDED = 90_000;

  /** How often the session of the page is compared with the one that is read, in milliseconds. */
  const WATCH = 1_000;

  /** How long a net event is sent again, in milliseconds. The broker stores repeats once for a longer time. */
  const EVENT_REPEATS = 600_000;

  /** How long the answer to a request may take, in milliseconds. */
  const ANSWER = 15_000;

  const tag = /** @type {HTMLScriptElement | null} */ (document.currentScript);
  const broker = new URL(tag?.dataset.broker || ".", tag?.src || location.href);
  if (!broker.pathname.endsWith("/")) broker.pathname += "/";

  /** @param {unknown} reason */
  const report = (reason) => console.error("x0-msg-server:", reason);

  /** The address of a request to x0's door. Its random number makes a repeat of the request harmless. */
  function address() {
    const digits = crypto.getRandomValues(new Uint32Array(2)).join("").padEnd(10, "0");
    return new URL(`python/MsgHandler.py?a__=${digits}`, broker);
  }

  /**
   * Sends a request as the page does, but without a preflight: the broker ignores the type of the body.
   *
   * @param {URL} url
   * @param {object} request
   */
  function post(url, request) {
    const signal = AbortSignal.timeout(ANSWER);
    return fetch(url, { method: "POST", headers: { Accept: "application/json" }, body: JSON.stringify(request), signal });
  }

  /** What the page offers, or undefined. Scripts declare these names with `var`, `function` or `class`. */
  const page = {
    factory: () => (typeof sysFactory === "undefined" ? undefined : sysFactory),
    handler: () => (typeof sysAsyncNotifyMsgHandler === "undefined" ? undefined : sysAsyncNotifyMsgHandler.prototype),
    button: () => (typeof sysObjButton === "undefined" ? undefined : sysObjButton.prototype),
    /** The session of the page, or null. */
    session() {
      const session = page.factory()?.SysSessionValue;
      return typeof session === "string" && session !== "" ? session : null;
    },
  };

  /** Reads the session of the page for its handler: through `client.js`, or else through the page's own polling. */
  class Reader {
    /** The page's handler of messages. @type {X0Handler} */ #handler;
    /** Begins one poll of the page. @type {() => unknown} */ #poll;

    /** `connect` of `client.js`, once it is loaded. @type {typeof import("/client.js").connect | null} */ #connect = null;
    /** How often it could not be loaded. */ #failures = 0;

    /** Whether this script reads, and not the page. */ #reads = false;
    /** @type {import("/client.js").Client | null} */ #client = null;
    /** The session that is read, null for none. @type {string | null | undefined} */ #session;
    /** Whether a client was ever online. Then the next one comes online too, however long it takes. */ #proven = false;

    #pause = FIRST_PAUSE;
    /** When to try `client.js` again. */ #again = 0;
    /** When the page began its last poll, and the session of it. */
    #polled = { at: 0, session: /** @type {string | null} */ (null) };
    /** Ends the first attempt to connect. @type {ReturnType<typeof setTimeout> | undefined} */ #opening;

    /** @param {X0Handler} handler @param {() => unknown} poll */
    constructor(handler, poll) {
      this.#handler = handler;
      this.#poll = poll;
      setInterval(() => this.#watch(), WATCH);
    }

    /** The page wants to poll. True if it must not, because this script reads. */
    takes() {
      if (this.#reads) return true;
      if (!this.#handler.MsgProcessing || performance.now() < this.#again) {
        this.#polled = { at: performance.now(), session: page.session() };
        return false;
      }
      this.#begin(true);
      return true;
    }

    /**
     * Reads from now on.
     *
     * @param {boolean} answered whether the page's last poll, if there was one, was answered. Then the client must not get
     *   what was in the answer. If the poll failed, what was in its answer is lost, and the client gets it.
     */
    async #begin(answered) {
      this.#reads = true;
      try {
        if (answered) await this.#acknowledgePolled();
        this.#connect ??= await this.#load();
        this.#follow();
      } catch (error) {
        this.#giveBack(error);
      }
    }

    async #load() {
      // Browsers may remember that an address could not be loaded.
      const repeat = this.#failures === 0 ? "" : `?repeat=${this.#failures}`;
      this.#failures++;
      return (await import(new URL(`client.js${repeat}`, broker).href)).connect;
    }

    /** Acknowledges what the page's last poll was answered with. */
    async #acknowledgePolled() {
      const { session } = this.#polled;
      this.#polled = { at: 0, session: null };
      if (session !== null) await post(address(), { type: "DEL", session_src: session });
    }

    /** Reads the session that the page has now. */
    #follow() {
      const session = this.#handler.MsgProcessing ? page.session() : null;
      if (session === this.#session) return;
      this.#stop();
      this.#session = session;
      if (session === null || this.#connect === null) return;
      if (!this.#proven) this.#opening = setTimeout(() => this.#giveBack("the broker cannot be reached"), OPENING);
      const client = this.#connect({
        session,
        url: broker.href,
        transport: /** @type {"auto"} */ (tag?.dataset.transport || "auto"),
        onMessage: (message) => this.#deliver(message),
        onReceipt: () => {},
        onError: report,
        onStatus: ({ state, reason }) => {
          if (this.#client !== client) return;
          if (state === "online") {
            clearTimeout(this.#opening);
            this.#proven = true;
            this.#pause = FIRST_PAUSE;
          } else if (state === "closed") this.#giveBack(reason);
        },
      });
      this.#client = client;
    }

    #stop() {
      clearTimeout(this.#opening);
      const client = this.#client;
      this.#client = null;
      this.#session = undefined;
      client?.close();
    }

    /** Lets the page poll by itself. @param {unknown} reason */
    #giveBack(reason) {
      report(`${reason instanceof Error ? reason.message : reason}; this page polls by itself`);
      this.#stop();
      this.#reads = false;
      this.#again = performance.now() + this.#pause;
      this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
      this.#polled = { at: performance.now(), session: page.session() };
      this.#poll.call(this.#handler);
    }

    #watch() {
      try {
        if (!this.#reads) {
          const now = performance.now();
          if (this.#handler.MsgProcessing && now > this.#again && now > this.#polled.at + POLL_ENDED) this.#begin(false);
        } else if (this.#connect !== null) this.#follow();
      } catch (error) {
        this.#giveBack(error);
      }
    }

    /**
     * Hands a message to the page, as a poll would: the payload with the sender in it.
     *
     * @param {import("/client.js").Message} message
     */
    #deliver({ payload, from }) {
      const isObject = typeof payload === "object" && payload !== null && !Array.isArray(payload);
      const object = isObject ? payload : { payload };
      object.session_src = from ?? null;
      try {
        this.#handler.processMsg(object);
      } catch (error) {
        // Thrown by the page, which does the same with every repetition.
        report(error);
      }
    }
  }

  /** Net events are sent one after the other, which keeps their order. */
  let events = Promise.resolve();

  /** @param {string} event @param {string} to a session */
  async function sendNetEvent(event, to) {
    const payload = { "msg-type": "net-message", "fire-events": [event] };
    const request = { type: "SET", session_src: page.session(), session_dst: to, payload };
    const url = address();
    const end = performance.now() + EVENT_REPEATS;
    for (let pause = 500; ; pause = Math.min(pause * 2, 10_000)) {
      try {
        const response = await post(url, request);
        const answer = await response.json();
        if (answer.error) report(`net event ${event}: ${answer.exception ?? response.status}`);
        return;
      } catch (error) {
        if (performance.now() > end) return report(`net event ${event}: ${error}`);
        await new Promise((done) => setTimeout(done, pause / 2 + (Math.random() * pause) / 2));
      }
    }
  }

  /**
   * Replaces a method of the page, once.
   *
   * @param {any} prototype
   * @param {string} name
   * @param {(original: () => unknown) => (this: any) => unknown} make
   */
  function replace(prototype, name, make) {
    const original = prototype?.[name];
    if (typeof original !== "function" || replaced.has(original)) return;
    const replacement = make(original);
    replaced.add(replacement);
    prototype[name] = replacement;
  }

  const replaced = new WeakSet();

  /** @type {WeakMap<X0Handler, Reader>} */
  const readers = new WeakMap();

  /** @param {X0Handler} handler @param {() => unknown} poll */
  function readerOf(handler, poll) {
    let reader = readers.get(handler);
    if (!reader) readers.set(handler, (reader = new Reader(handler, poll)));
    return reader;
  }

  function install() {
    replace(page.handler(), "getMsg", (poll) =>
      function () {
        return readerOf(this, poll).takes() ? undefined : poll.call(this);
      });
    replace(page.button(), "fireNetEvents", (fire) =>
      function () {
        const list = this.JSONConfig?.Attributes?.FireNetEvents;
        if (typeof list !== "object" || list === null) return fire.call(this);
        for (const [event, to] of Object.entries(list)) events = events.then(() => sendNetEvent(event, to));
      });
  }

  // A second tag of this script does nothing more.
  if ("x0MsgServer" in window) return;
  Object.assign(window, { x0MsgServer: broker.href });
  install();
  // The page may load its scripts in another order. It starts after this event.
  document.addEventListener("DOMContentLoaded", install);
})();
