// A page with a client behind a proxy of its own.

import { openPage, post } from "./harness.js";
import { liar } from "./liar.js";

let number = 0;

/** Helpers for the tests of a file. @param {{browser: any, server: {address: string, url: string}}} started its browser and broker */
export function field(started) {
  /**
   * A page with a client. `options` are JSON, or the text of an object in `script`. What happens is in `got`, `errors`,
   * `statuses` and `acked` of the page.
   */
  async function client(options = {}, { prefix = "", script = "{}", wait = "online", server = started.server } = {}) {
    const proxy = await liar(server.address, prefix);
    const page = await openPage(started.browser, `${proxy.url}${prefix}/healthz`);
    const session = `fault-${++number}`;
    await page.evaluate(
      async ([session, options, script, base]) => {
        const { connect } = await import(`${base}/client.js`);
        Object.assign(window, { got: [], errors: [], statuses: [], acked: 0 });
        window.client = connect({
          session,
          onMessage: ({ payload }) => void got.push(payload),
          onAck: (seq) => (window.acked = seq),
          onError: (error, message) => errors.push({ code: error.code, text: error.message, payload: message?.payload }),
          onStatus: (status) => statuses.push({ ...status, at: performance.now() }),
          ...options,
          ...eval(`(${script})`),
        });
      },
      [session, options, script, `${proxy.url}${prefix}`],
    );
    if (wait) await page.waitForFunction((wait) => client.status.state === wait, wait);
    const close = async () => {
      await page.context().close();
      proxy.stop();
    };
    return { page, session, proxy, close };
  }

  const toSelf = (session, payload) => post(started.server, { to: { session }, payload });

  /** The payloads that are not acknowledged yet. */
  const waiting = async (session) => {
    const answer = await fetch(`${started.server.url}/v1/messages?session=${session}&wait=0`);
    return (await answer.json()).messages.map(({ payload }) => payload);
  };

  return { client, toSelf, waiting };
}
