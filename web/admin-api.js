// Calls of the broker with the key of the operator, which this tab keeps until it is closed.

const KEPT = "x0-admin-key";

export const hasKey = () => sessionStorage.getItem(KEPT) !== null;

/** @param {string} key */
export const keepKey = (key) => sessionStorage.setItem(KEPT, key);

export const forgetKey = () => sessionStorage.removeItem(KEPT);

/** A call that the broker refused. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * Calls the broker; what it answers, or `null` if that is nothing.
 * @param {string} method @param {string} path @param {unknown} [body] @returns {Promise<any>}
 */
export async function ask(method, path, body) {
  const key = sessionStorage.getItem(KEPT);
  /** @type {Record<string, string>} */
  const headers = key === null ? {} : { authorization: `Bearer ${key}` };
  const answer = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), cache: "no-store" });
  if (answer.status === 204) return null;
  const json = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, json.error.message);
  return json;
}
