// Curves of several experiments on the same axes: what the legend and the toggles choose, drawn and as a table.

import { axisOf, escaped, header, layoutOf, palette } from "./drawing.js";

const AXES = { rounds: "Rounds", steps: "Gradient steps of all sites together" };
const UNITS = [[172800, 86400, "Days"], [10800, 3600, "Hours"], [180, 60, "Minutes"], [0, 1, "Seconds"]];
// Plotly's dashes as lengths for the legend's SVG
const STROKES = { solid: "none", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 4", longdashdot: "10 3 2 3" };

export class Overlay {
  #root;
  #data;
  #hidden;

  /** `hidden`: groups that the legend has switched off; it outlives the board. */
  constructor(root, data, hidden) {
    this.#root = root;
    this.#data = data;
    this.#hidden = hidden;
    this.#buildLegend();
    root.addEventListener("change", (event) => event.target.matches('[name="axis"], [name="where"]') && this.draw());
    root.querySelector("[data-table]").addEventListener("click", () => this.#toggleTable());
  }

  get plot() {
    return this.#root.querySelector(".chart__plot");
  }

  get axis() {
    return this.#root.querySelector('[name="axis"]:checked').value;
  }

  get where() {
    return this.#root.querySelector('[name="where"]').value;
  }

  get place() {
    return this.where ? `at ${this.#data.sites[this.where]}` : "mean over the sites";
  }

  draw() {
    const figure = this.figure();
    this.#root.querySelector("[data-empty]")?.remove();
    Plotly.react(this.plot, figure.data, figure.layout, { displayModeBar: false, responsive: false, doubleClick: "reset" });
    const caption = this.#root.querySelector("[data-caption]");
    const shown = this.#shown();
    caption.textContent = shown.length
      ? `${this.#data.measured}, ${this.place}.`
      : `Nothing to show: ${this.#data.curves.length ? "press a name above, or choose the mean over sites" : "nothing was measured"}.`;
    if (!this.#root.querySelector(".chart__table").hidden) this.#fillTable(shown);
  }

  /** The figure as Plotly takes it, for the page and for a file. */
  figure() {
    const colour = palette();
    const lines = this.#shown();
    const [unit, unitName] = this.#unit(lines);
    const chart = this.#data.chart;
    const axis = axisOf(colour);
    const data = lines.map((line) => ({
      type: "scatter",
      mode: line.is_marked ? "lines+markers" : "lines",
      name: escaped(line.label),
      x: line.x.map((x) => x / unit),
      y: line.y,
      line: { color: this.#colour(line, colour), dash: line.dash, width: (line.hue ? 2 : 3.5) / (this.#many(line.group) > 1 ? 1.75 : 1) },
      marker: { size: 8, symbol: "diamond" },
      connectgaps: true,
      hovertemplate: `%{y:.${chart.decimals}f}${chart.unit ? ` ${chart.unit}` : ""}<extra>${escaped(line.label)}</extra>`,
    }));
    const layout = {
      ...layoutOf(colour),
      uirevision: `${this.axis}${this.where}`,
      width: this.plot.clientWidth,
      height: Math.round(Math.min(420, Math.max(280, this.plot.clientWidth * 0.5))),
      margin: { l: 52, r: 14, t: 8, b: 46 },
      hovermode: "closest",
      xaxis: { ...axis, rangemode: "tozero", title: { ...axis.title, text: AXES[this.axis] ?? `${unitName} since the first round was sent out` } },
      yaxis: { ...axis, title: { ...axis.title, text: chart.axis }, rangemode: chart.low === 0 && chart.high === null ? "tozero" : "normal" },
    };
    return { data, layout };
  }

  /** The lines that are switched on and were measured here: with their x, y. */
  #shown() {
    return this.#data.curves
      .filter((line) => !this.#hidden.has(line.group) && line.values[this.where]?.some((value) => value !== null))
      .map((line) => ({ ...line, x: line[this.axis], y: line.values[this.where] }));
  }

  #many(group) {
    return this.#data.curves.filter((one) => one.group === group).length;
  }

  #unit(lines) {
    if (this.axis !== "seconds") return [1, ""];
    const longest = Math.max(0, ...lines.flatMap((line) => line.x));
    const [, unit, name] = UNITS.find(([from]) => longest >= from);
    return [unit, name];
  }

  #colour(line, colour) {
    return line.hue ? colour(`--site-${line.hue}`) : colour("--chart-global");
  }

  #buildLegend() {
    const legend = this.#root.querySelector("[data-legend]");
    const groups = new Map(this.#data.curves.map((line) => [line.group, line]).reverse());
    for (const [group, line] of [...groups].reverse()) {
      const many = this.#many(group);
      const button = document.createElement("button");
      button.type = "button";
      button.className = "key";
      button.setAttribute("aria-pressed", String(!this.#hidden.has(group)));
      button.append(sample(line), many > 1 ? line.label.replace(/, repeat \d+$/, ` (${many} repeats)`) : line.label);
      button.addEventListener("click", () => {
        if (!this.#hidden.delete(group)) this.#hidden.add(group);
        button.setAttribute("aria-pressed", String(!this.#hidden.has(group)));
        this.draw();
      });
      legend.append(button);
    }
  }

  #toggleTable() {
    const table = this.#root.querySelector(".chart__table");
    const button = this.#root.querySelector("[data-table]");
    table.hidden = !table.hidden;
    button.setAttribute("aria-expanded", String(!table.hidden));
    button.textContent = table.hidden ? "Show as table" : "Hide table";
    if (!table.hidden) this.#fillTable(this.#shown());
  }

  #fillTable(lines) {
    const rows = new Map(); // x → line index → value
    lines.forEach((line, index) => {
      line.x.forEach((x, point) => {
        if (!rows.has(x)) rows.set(x, []);
        rows.get(x)[index] = line.y[point];
      });
    });
    const { decimals } = this.#data.chart;
    const table = document.createElement("table");
    table.className = "table";
    table.createCaption().textContent = `${this.#data.measured}, ${this.place}`;
    const head = table.createTHead().insertRow();
    head.append(header("col", this.axis === "seconds" ? "Seconds" : AXES[this.axis]));
    for (const line of lines) head.append(header("col", line.label, true));
    const body = table.createTBody();
    for (const [x, values] of [...rows].sort((a, b) => a[0] - b[0])) {
      const row = body.insertRow();
      row.append(header("row", String(x)));
      lines.forEach((_, index) => {
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = values[index] === undefined || values[index] === null ? "–" : values[index].toFixed(decimals);
      });
    }
    this.#root.querySelector(".chart__table").replaceChildren(table);
  }
}

/** A piece of the line, as the legend shows it. */
function sample(line) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "key__line");
  svg.setAttribute("viewBox", "0 0 28 8");
  svg.setAttribute("aria-hidden", "true");
  const stroke = document.createElementNS(space, "line");
  for (const [name, value] of Object.entries({ x1: 1, y1: 4, x2: 27, y2: 4 })) stroke.setAttribute(name, value);
  stroke.setAttribute("class", line.hue ? `hue-${line.hue}` : "key__global");
  stroke.setAttribute("stroke-dasharray", STROKES[line.dash]);
  svg.append(stroke);
  return svg;
}
