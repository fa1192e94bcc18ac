// The charts: what the toggles choose is drawn with Plotly, once per animation frame at most, and offered as a table.

import { axisOf, escaped, header, layoutOf, palette, save } from "./drawing.js";
import { ROUND, SECONDS, VALUE, X } from "./series.js";

const MOST_DRAWN = 1500; // points per line; more than a chart has pixels only costs time
const GLOBAL = "";
const UNITS = [
  [172800, 86400, "Days"],
  [10800, 3600, "Hours"],
  [180, 60, "Minutes"],
  [0, 1, "Seconds"],
];

export class Curves {
  #data;
  #store;
  #root;
  #charts = [];
  #wanted = false;
  #hidden = new Set(); // slugs of hidden lines, "" the global model
  #open = new Set(); // names of charts whose table is open

  constructor(root, data, store) {
    this.#root = root;
    this.#data = data;
    this.#store = store;
    for (const chart of data.charts) {
      const figure = root.querySelector(`[data-chart="${chart.name}"]`);
      this.#charts.push({ ...chart, figure, plot: figure.querySelector(".chart__plot"), table: figure.querySelector(".chart__table") });
      figure.addEventListener("click", (event) => this.#press(chart.name, event.target.closest("[data-act]")));
    }
    this.#readHash();
    root.addEventListener("change", () => this.#chosen());
    root.querySelector("#legend").addEventListener("click", (event) => this.#toggleLine(event.target.closest("[data-site]")));
    addEventListener("hashchange", () => { this.#readHash(); this.draw(); });
    document.addEventListener("themechange", () => this.draw());
    new ResizeObserver(() => this.draw()).observe(root);
  }

  /** Draw at the next frame; as often as one likes. */
  draw() {
    if (this.#wanted) return;
    this.#wanted = true;
    requestAnimationFrame(() => {
      this.#wanted = false;
      if (window.Plotly) for (const chart of this.#charts) this.#drawChart(chart);
    });
  }

  /** What the thick line is of. */
  get #word() {
    return this.#data.model.replace(/^./, (letter) => letter.toUpperCase());
  }

  // --- what is chosen ---------------------------------------------------------------------------

  #choice(name) {
    return this.#root.querySelector(`input[name="${name}"]:checked`)?.value ?? "";
  }

  #readHash() {
    const hash = new URLSearchParams(location.hash.slice(1));
    for (const name of ["axis", "model", "region", "loss"]) {
      const inputs = [...this.#root.querySelectorAll(`input[name="${name}"]`)];
      const input = inputs.find((one) => one.value === hash.get(name)) ?? inputs[0];
      if (input) input.checked = true;
    }
    this.#hidden = new Set(hash.has("hide") ? hash.get("hide").split(",").map((one) => (one === "global" ? GLOBAL : one)) : []);
    this.#open = new Set(hash.has("table") ? hash.get("table").split(",") : []);
    this.#showState();
  }

  #writeHash() {
    const hash = new URLSearchParams();
    for (const name of ["axis", "model", "region", "loss"]) {
      const first = this.#root.querySelector(`input[name="${name}"]`)?.value;
      const value = this.#choice(name);
      if (value && value !== first) hash.set(name, value);
    }
    if (this.#hidden.size) hash.set("hide", [...this.#hidden].map((one) => one || "global").join(","));
    if (this.#open.size) hash.set("table", [...this.#open].join(","));
    history.replaceState(null, "", `${location.pathname}${location.search}${hash.size ? `#${hash}` : ""}`);
  }

  #chosen() {
    this.#writeHash();
    this.draw();
  }

  #toggleLine(button) {
    if (!button) return;
    const slug = button.dataset.site;
    if (!this.#hidden.delete(slug)) this.#hidden.add(slug);
    this.#showState();
    this.#chosen();
  }

  #press(name, button) {
    if (button?.dataset.act === "table") {
      if (!this.#open.delete(name)) this.#open.add(name);
      this.#showState();
      this.#chosen();
    } else if (button?.dataset.act === "image") {
      this.#save(this.#charts.find((chart) => chart.name === name));
    }
  }

  /** On the page a chart's heading and the legend above all of them say what is drawn; a file has to say it itself. */
  #save({ name, title, axis, plot }) {
    const { layout } = plot;
    const named = { ...layout, yaxis: { ...layout.yaxis, title: { ...layout.yaxis.title, text: axis } } };
    const what = this.#isTraining(name) ? "Every training step"
      : this.#choice("model") === "incoming" ? `Each ${this.#data.model} on the held-out cases` : "After local training, on the held-out cases";
    const region = this.#choice("region");
    const where = name === "loss" ? "" : region === "mean" ? ", mean over the regions" : `, ${region}`;
    save({ data: plot.data, layout: named }, {
      title: `${this.#data.title}: ${title}`,
      subtitle: what + where,
      filename: `fedportal-${this.#data.key}-${name}`,
      format: "svg",
    });
  }

  #showState() {
    for (const button of this.#root.querySelectorAll("#legend [data-site]")) {
      button.setAttribute("aria-pressed", String(!this.#hidden.has(button.dataset.site)));
    }
    for (const chart of this.#charts) {
      const open = this.#open.has(chart.name);
      chart.table.hidden = !open;
      const button = chart.figure.querySelector('[data-act="table"]');
      button.setAttribute("aria-expanded", String(open));
      button.textContent = open ? "Hide table" : "Show as table";
    }
  }

  // --- what is drawn ----------------------------------------------------------------------------

  /** Whether a chart shows what was measured at each training step. */
  #isTraining(name) {
    return name === "loss" && this.#choice("loss") === "train";
  }

  /** The lines of a chart as now chosen: [{style, label, points}], the global model last, on top. */
  #lines(chart) {
    const model = this.#choice("model");
    const training = this.#isTraining(chart.name);
    const region = chart.name === "loss" ? "" : this.#choice("region");
    const lines = this.#data.sites.map((style) => ({
      style,
      label: style.name,
      points: this.#store.points(style.slug, training ? "train" : model, chart.name, region),
    }));
    const whole = this.#store.points(GLOBAL, "global", chart.name, region);
    lines.push({ style: null, label: training ? `${this.#word} (validation)` : this.#word, points: whole });
    return lines.filter((line) => line.points.length && !this.#hidden.has(line.style?.slug ?? GLOBAL));
  }

  #drawChart(chart) {
    if (chart.name === "hd95") chart.figure.hidden = !this.#store.has("hd95");
    if (chart.figure.hidden) return;
    const lines = this.#lines(chart);
    const colour = palette();
    const [unit, unitName] = this.#axisUnit(lines);
    const time = this.#choice("axis") === "time";
    const few = lines.every((line) => line.points.length <= 80);
    const training = this.#isTraining(chart.name);
    const traces = lines.map((line) => {
      const points = thinned(line.points);
      const marked = few && !(training && line.style);
      return {
        type: "scatter",
        mode: marked ? "lines+markers" : "lines",
        name: escaped(line.label),
        x: points.map((point) => (time ? point[SECONDS] / unit : point[X])),
        y: points.map((point) => point[VALUE]),
        line: {
          color: line.style ? colour(`--site-${line.style.hue}`) : colour("--chart-global"),
          dash: line.style?.dash ?? "solid",
          width: line.style ? 1.75 : 3.5,
        },
        marker: { size: line.style ? 4.5 : 7 },
        connectgaps: true,
        hovertemplate: `%{y:.${chart.decimals}f}${chart.unit ? ` ${chart.unit}` : ""}<extra>${escaped(line.label)}</extra>`,
      };
    });
    chart.figure.classList.toggle("is-empty", traces.length === 0);
    chart.figure.querySelector('[data-act="image"]').hidden = traces.length === 0;
    chart.plot.querySelector(".chart__empty")?.toggleAttribute("hidden", traces.length > 0);
    if (traces.length || chart.plot.classList.contains("js-plotly-plot")) {
      Plotly.react(chart.plot, traces, this.#layout(chart, colour, time, unitName, unit, training), {
        displayModeBar: false, responsive: false, scrollZoom: false, doubleClick: "reset",
      });
    }
    this.#caption(chart, lines, training);
    if (this.#open.has(chart.name)) this.#fillTable(chart, lines, training);
  }

  #layout(chart, colour, time, unitName, unit, training) {
    const axis = axisOf(colour);
    const rounds = this.#data.rounds;
    const step = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000].find((one) => rounds / one <= 12) ?? 2000;
    return {
      ...layoutOf(colour),
      uirevision: `${time}${training}`,
      height: Math.round(Math.min(380, Math.max(260, chart.plot.clientWidth * 0.55))),
      width: chart.plot.clientWidth,
      margin: { l: 48, r: 14, t: 8, b: 44 },
      hovermode: training ? "closest" : "x unified",
      xaxis: {
        ...axis,
        title: { ...axis.title, text: time ? `${unitName} since the start` : "Rounds" },
        ...(time
          ? { rangemode: "tozero", showgrid: false, hoverformat: ".1f" }
          : { range: [-0.05 * Math.min(rounds, 4), rounds + 0.05 * Math.min(rounds, 4)], dtick: step, tick0: 0, hoverformat: training ? ".2f" : ".0f", unifiedhovertitle: { text: "After round %{x}" } }),
      },
      yaxis: {
        ...axis,
        title: { ...axis.title, text: "" },
        ...(chart.low !== null && chart.high !== null ? { range: [chart.low, chart.high + 0.02] } : { rangemode: chart.low === 0 ? "tozero" : "normal" }),
      },
      shapes: time ? this.#boundaries(unit, colour) : [],
    };
  }

  /** Faint verticals where a round begins, on the axis of time (on that of rounds they are the grid). */
  #boundaries(unit, colour) {
    const starts = new Map();
    for (const style of this.#data.sites) {
      for (const phase of ["incoming", "train"]) {
        for (const point of this.#store.points(style.slug, phase, "loss", "")) {
          const known = starts.get(point[ROUND]);
          if (known === undefined || point[SECONDS] < known) starts.set(point[ROUND], point[SECONDS]);
        }
      }
    }
    const every = Math.ceil(starts.size / 40);
    return [...starts].filter(([round]) => round % every === 0).map(([, seconds]) => ({
      type: "line", x0: seconds / unit, x1: seconds / unit, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: colour("--chart-grid"), width: 1 },
    }));
  }

  #axisUnit(lines) {
    let longest = 0;
    for (const { points } of lines) longest = Math.max(longest, points[points.length - 1][SECONDS]);
    const [, unit, name] = UNITS.find(([from]) => longest >= from);
    return [unit, name];
  }

  #caption(chart, lines, training) {
    const model = this.#choice("model");
    const word = this.#data.model;
    const what = training
      ? `Loss of each training step at the sites; the thick line is the ${word}'s loss on the held-out cases.`
      : model === "incoming"
        ? `Each ${word}, measured at every site on cases it never trains with; the thick line is the mean over all those cases.`
        : "Each site's own model after its local training, before it is merged; the thick line is the global model.";
    const caption = chart.figure.querySelector("[data-caption]");
    const better = chart.name === "dice" ? "0 is no overlap with the outline drawn by people, 1 a perfect one." : chart.unit ? `In ${chart.unit}; lower is better.` : "Lower is better.";
    const text = `${what} ${better}`;
    if (caption.textContent !== text) caption.textContent = text;
  }

  // --- as a table -------------------------------------------------------------------------------

  #fillTable(chart, lines, training) {
    const rows = new Map(); // whole round → line index → value; of a training, the last step of the round
    lines.forEach((line, index) => {
      for (const point of line.points) {
        const place = training && line.style ? point[ROUND] : Math.round(point[X]);
        if (!rows.has(place)) rows.set(place, []);
        rows.get(place)[index] = point[VALUE];
      }
    });
    const table = document.createElement("table");
    table.className = "table";
    table.createCaption().textContent = `${chart.title}${chart.unit ? ` in ${chart.unit}` : ""}, newest round first`;
    const head = table.createTHead().insertRow();
    for (const text of ["After round", ...lines.map((line) => line.label)]) head.append(header("col", text, text !== "After round"));
    const body = table.createTBody();
    for (const [place, values] of [...rows].sort((a, b) => b[0] - a[0])) {
      const row = body.insertRow();
      row.append(header("row", String(place)));
      lines.forEach((_, index) => {
        const cell = row.insertCell();
        cell.className = "number";
        cell.textContent = values[index] === undefined || values[index] === null ? "–" : values[index].toFixed(chart.decimals);
      });
    }
    chart.table.replaceChildren(table);
  }
}

/** At most MOST_DRAWN of the points, evenly, the last one always. */
function thinned(points) {
  const every = Math.ceil(points.length / MOST_DRAWN);
  return every < 2 ? points : points.filter((_, index) => index % every === 0 || index === points.length - 1);
}
