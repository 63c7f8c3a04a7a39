// The figures of the broker: the samples of /metrics, by name and labels.

/** @typedef {{ labels: Record<string, string>, value: number }} Sample */

/** Samples by their names. */
export class Figures {
  /** @param {Record<string, number>} samples as `name{label="value",…}` */
  constructor(samples) {
    /** @type {Map<string, Sample[]>} */
    this.byName = new Map();
    for (const [key, value] of Object.entries(samples)) {
      const [, name, labels = ""] = /** @type {RegExpExecArray} */ (/^([^{]*)(?:\{(.*)\})?$/.exec(key));
      const pairs = Array.from(labels.matchAll(/(\w+)="([^"]*)"/g), ([, label, text]) => [label, text]);
      const sample = { labels: Object.fromEntries(pairs), value };
      this.byName.set(name, [...(this.byName.get(name) ?? []), sample]);
    }
  }

  /**
   * The sum of the samples of this name that have these labels; `undefined` if there are none.
   * @param {string} name @param {Record<string, string>} [labels]
   */
  sum(name, labels = {}) {
    const wanted = Object.entries(labels);
    const found = (this.byName.get(name) ?? []).filter((sample) => wanted.every(([label, text]) => sample.labels[label] === text));
    return found.length === 0 ? undefined : found.reduce((sum, sample) => sum + sample.value, 0);
  }

  /** The classes of a histogram, without what smaller classes hold. @param {string} name */
  histogram(name) {
    const buckets = (this.byName.get(`${name}_bucket`) ?? []).map(({ labels, value }) => ({ bound: Number(labels.le.replace("+Inf", "Infinity")), value }));
    if (buckets.length === 0) return undefined;
    buckets.sort((a, b) => a.bound - b.bound);
    const counts = buckets.map(({ value }, at) => value - (at > 0 ? buckets[at - 1].value : 0));
    return { bounds: buckets.map(({ bound }) => bound).filter(Number.isFinite), counts };
  }
}
