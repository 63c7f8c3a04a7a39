// Chaos that a seed repeats, and what must hold after it.

/** Random numbers from 0 to 1 that a seed repeats. @param {number} seed */
export function randomly(seed) {
  let state = seed >>> 0;
  const random = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
  const between = (from, to) => Math.floor(from + random() * (to - from + 1));
  return { random, between, chance: (part) => random() < part, one: (list) => list[between(0, list.length - 1)] };
}

/** Answers that are not the broker's: of portals, gateways and servers of something else. */
export const LIES = [
  { status: 200, body: "{}" },
  { status: 200, body: "[]" },
  { status: 200, body: '{"status":"maintenance"}' },
  { status: 200, body: "<html>Log in</html>" },
  { status: 301, body: "" },
  { status: 403, body: '{"error":"forbidden"}' },
  { status: 403, body: "<html>blocked</html>" },
  { status: 404, body: '{"error":{"code":404,"message":"no route"}}' },
  { status: 408, body: '{"error":{"code":"timeout","message":"too slow"}}' },
  { status: 401, body: "Proxy" },
  { status: 502, body: "" },
  { status: 504, body: "<html>Gateway Time-out</html>", passed: true },
  { status: 200, body: "{}", passed: true },
];

/**
 * What is wrong with what a reader handled: a list of texts. A message is `{ from, n }`: the n-th of its sender.
 *
 * @param {{from: string, n: number, threw?: boolean}[]} handled calls of the handler, in order
 * @param {{from: string, n: number, outcome: string}[]} sent in the order in which they were sent. `outcome` is "sent", or
 *   why the sender does not know
 */
export function violations(handled, sent) {
  const found = [];
  const key = ({ from, n }) => `${from} ${n}`;
  const known = new Map(sent.map((message) => [key(message), message]));
  const done = new Set();
  const newest = new Map();
  let thrown = null;
  for (const message of handled) {
    const name = key(message);
    const { outcome } = known.get(name) ?? {};
    if (outcome === undefined) found.push(`${name} was never sent`);
    if (done.has(name)) found.push(`${name} came again after it was handled`);
    if (thrown !== null && thrown !== name) found.push(`${name} came while ${thrown} had thrown`);
    thrown = message.threw ? name : null;
    if (message.threw) continue;
    done.add(name);
    if (outcome !== "sent") continue; // A late one that its sender has given up has no place in the order.
    if (message.n < (newest.get(message.from) ?? -1)) found.push(`${name} came after ${newest.get(message.from)}`);
    newest.set(message.from, Math.max(message.n, newest.get(message.from) ?? -1));
  }
  for (const [name, { outcome }] of known) if (outcome === "sent" && !done.has(name)) found.push(`${name} was sent and did not come`);
  return found;
}
