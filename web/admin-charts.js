// The charts of the dashboard: figures of the last minutes, which this page collects while it is open.

/** How many samples a chart shows: ten minutes. */
const SAMPLES = 300;

/** @typedef {{ name: string, color: number, value: (now: any, before: any) => number | null }} Line */
/** @typedef {{ title: string, format: (value: number) => string, lines: Line[] }} Chart */

/** Distances of the lines of a grid of bytes: powers of two. */
const POWERS = Array.from({ length: 50 }, (_, at) => 2 ** at);

/** @param {number} value @param {number} step @param {string[]} units */
function scaled(value, step, units) {
  let unit = 0;
  while (Math.abs(value) >= step && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  const digits = value !== 0 && Math.abs(value) < 10 && unit > 0 ? 1 : 0;
  return `${value.toFixed(digits)}${units[unit]}`;
}

/** @param {number} value */
export const count = (value) => (value > 0 && value < 10 && !Number.isInteger(value) ? value.toFixed(1) : scaled(value, 1000, ["", " k", " M", " G"]));
/** @param {number} value */
export const bytes = (value) => scaled(value, 1024, [" B", " KiB", " MiB", " GiB", " TiB"]);
/** @param {number} value */
export const seconds = (value) =>
  value >= 1 ? `${value.toFixed(1)} s` : value >= 0.001 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${Math.round(value * 1e6)} µs`;

/**
 * How often something happened in a second, between two samples.
 * @param {(sample: any) => number | undefined} counter @returns {Line["value"]}
 */
export const rate = (counter) => (now, before) => {
  const [to, from] = [counter(now), before && counter(before)];
  if (to === undefined || from === undefined || from === null || now.ts <= before.ts || to < from) return null;
  return ((to - from) * 1000) / (now.ts - before.ts);
};

/**
 * A quantile of what a histogram counted between two samples, by interpolation in its bucket as Prometheus does.
 * @param {(sample: any) => { bounds: number[], counts: number[] } | undefined} histogram @param {number} quantile
 * @returns {Line["value"]}
 */
export const quantile = (histogram, quantile) => (now, before) => {
  const [to, from] = [histogram(now), before && histogram(before)];
  if (!to || !from) return null;
  // The last bucket has no bound.
  const counts = to.counts.map((count, at) => count - (from.counts[at] ?? 0));
  const total = counts.reduce((sum, count) => sum + count, 0);
  if (total <= 0 || counts.some((count) => count < 0)) return null;
  let below = 0;
  for (const [at, count] of counts.entries()) {
    if (count > 0 && below + count >= quantile * total) {
      const lower = at > 0 ? to.bounds[at - 1] : 0;
      return at < to.bounds.length ? lower + ((to.bounds[at] - lower) * (quantile * total - below)) / count : lower;
    }
    below += count;
  }
  return null;
};

/** @param {string} tag @param {string} className @param {...(Node | string)} children */
export function element(tag, className, ...children) {
  const node = document.createElement(tag);
  node.className = className;
  node.append(...children);
  return node;
}

/** @param {string} name */
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/**
 * What the axis of time shows: the samples, and at least the last minute. Not what uPlot proposes: for one sample, that is a day.
 * @param {any} plot
 */
function shownTime({ data: [times] }) {
  const last = times.at(-1) ?? 0;
  return [Math.min(times[0] ?? 0, last - 60), last];
}

/** Draws one chart into a card. */
class Plot {
  /** @param {Chart} chart */
  constructor(chart) {
    this.chart = chart;
    /** @type {(number | null)[][]} */
    this.data = [[], ...chart.lines.map(() => [])];
    this.values = chart.lines.map(() => element("b", "", "–"));
    const key = chart.lines.map((line, at) => element("li", `s${line.color}`, `${line.name} `, this.values[at]));
    this.place = element("div", "plot");
    this.place.setAttribute("role", "img");
    this.place.setAttribute("aria-label", `${chart.title} of the last minutes`);
    const list = element("ul", "key", ...key);
    this.card = element("section", "card chart", element("h2", "", chart.title), list, this.place);
    new ResizeObserver(() => this.resize()).observe(this.place);
  }

  /** Makes the plot, in the colours of the scheme. */
  draw() {
    this.plot?.destroy();
    const { chart } = this;
    const [ink, grid] = [color("--soft"), color("--line")];
    const axis = { stroke: ink, grid: { stroke: grid, width: 1 }, ticks: { stroke: grid, width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
    // Seconds only where minutes alone would repeat.
    const time = (/** @type {any} */ _, /** @type {number[]} */ ticks) =>
      ticks.map((tick) => new Date(tick * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hour12: false, ...(ticks[1] - ticks[0] < 60 ? { second: "2-digit" } : {}) }));
    const options = {
      width: this.place.clientWidth || 300,
      height: this.place.clientHeight || 150,
      legend: { show: false },
      cursor: { show: false },
      padding: [8, 26, 0, 0],
      scales: { x: { range: shownTime }, y: { range: (/** @type {any} */ _, /** @type {number} */ __, /** @type {number} */ most) => [0, most > 0 ? most * 1.1 : 1] } },
      axes: [
        { ...axis, size: 24, space: 70, values: time },
        { ...axis, size: 62, space: 32, ...(chart.format === bytes ? { incrs: POWERS } : {}), values: (/** @type {any} */ _, /** @type {number[]} */ ticks) => ticks.map(chart.format) },
      ],
      series: [{}, ...chart.lines.map((line) => ({ label: line.name, stroke: color(`--chart-${line.color}`), width: 1.75, points: { show: false }, spanGaps: true }))],
    };
    this.plot = new uPlot(options, this.data, this.place);
  }

  resize() {
    const [width, height] = [this.place.clientWidth, this.place.clientHeight];
    if (width > 0 && this.plot && (this.plot.width !== width || this.plot.height !== height)) this.plot.setSize({ width, height });
  }

  /** @param {any} now @param {any} before */
  add(now, before) {
    this.data[0].push(now.ts / 1000);
    for (const [at, line] of this.chart.lines.entries()) {
      const value = line.value(now, before);
      this.data[at + 1].push(value);
      this.values[at].textContent = value === null ? "–" : this.chart.format(value);
    }
    if (this.data[0].length > SAMPLES) this.data.forEach((values) => values.shift());
    if (this.plot) this.plot.setData(this.data);
    else if (this.place.clientWidth > 0) this.draw();
  }
}

/**
 * Shows these charts in an element. The answer takes the samples.
 * @param {HTMLElement} place @param {Chart[]} charts
 */
export function show(place, charts) {
  const plots = charts.map((chart) => new Plot(chart));
  place.replaceChildren(...plots.map((plot) => plot.card));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((plot) => plot.plot && plot.draw()));
  /** @type {any} */
  let before = null;
  return (/** @type {any} */ sample) => {
    plots.forEach((plot) => plot.add(sample, before));
    before = sample;
  };
}
