// What /vendor/uplot.js offers to the dashboard.
declare class uPlot {
  constructor(options: object, data: (number | null)[][], place: HTMLElement);
  width: number;
  height: number;
  setData(data: (number | null)[][]): void;
  setSize(size: { width: number; height: number }): void;
  destroy(): void;
}
