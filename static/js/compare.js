// The compare page: draws its figures, saves them, puts another choice in its place without a reload, and renews itself
// when a member of the family begins or ends. Without this script every choice is a link, and every number is a table.

import { axisOf, escaped, layoutOf, palette, save } from "./drawing.js";
import { Overlay } from "./overlay.js";

const EVERY = 5000; // milliseconds between two looks at what is still to come
const hidden = new Set(); // groups of lines that are switched off, kept when another choice is made
let data;
let overlay;

function build() {
  data = JSON.parse(document.querySelector("#compare-data").textContent);
  const curves = document.querySelector('[data-figure="curves"]');
  overlay = data.curves.length ? new Overlay(curves, data, hidden) : null;
  curves.querySelector("[data-table]").hidden = !overlay;
  for (const figure of document.querySelectorAll("figure[data-figure]")) figure.hidden = !data[figure.dataset.figure].length;
  for (const button of document.querySelectorAll("[data-save]")) {
    button.hidden = !FIGURES[button.closest("[data-figure]").dataset.figure]();
  }
  draw();
}

function draw() {
  overlay?.draw();
  for (const shown of document.querySelectorAll("figure[data-figure]:not([hidden])")) {
    const plot = shown.querySelector(".chart__plot");
    const figure = forest(data[shown.dataset.figure], plot.clientWidth);
    Plotly.react(plot, figure.data, figure.layout, { displayModeBar: false, responsive: false, staticPlot: matchMedia("(pointer: coarse)").matches });
  }
}

// --- figures --------------------------------------------------------------------------------------

const FIGURES = {
  curves: () => overlay?.figure(),
  gains: () => data.gains.length && forest(data.gains, 900),
  contrasts: () => data.contrasts.length && forest(data.contrasts, 900),
  matrix: () => data.matrix.length && matrix(),
};

/** Differences, each a point with its interval, the first one on top: `rows` of {name, value, low, high}. */
function forest(rows, width) {
  const colour = palette();
  const axis = axisOf(colour);
  const { decimals, unit } = data.chart;
  const lines = [...rows].reverse();
  const values = lines.map((one) => one.value);
  const reach = (end) => lines.map((one, index) => (one[end] === null ? 0 : Math.abs(one[end] - values[index])));
  return {
    data: [{
      type: "scatter",
      mode: "markers",
      x: values,
      y: lines.map((one) => escaped(one.name)),
      error_x: { type: "data", symmetric: false, array: reach("high"), arrayminus: reach("low"), color: colour("--site-1"), thickness: 2, width: 6 },
      marker: { size: 11, color: colour("--site-1") },
      hovertemplate: `%{x:+.${decimals}f}${unit ? ` ${unit}` : ""}<extra>%{y}</extra>`,
    }],
    layout: {
      ...layoutOf(colour),
      width,
      height: 76 + 34 * lines.length,
      margin: { l: 20, r: 20, t: 8, b: 44 },
      xaxis: { ...axis, zeroline: true, zerolinecolor: colour("--chart-axis"), zerolinewidth: 2, rangemode: "tozero", title: { ...axis.title, text: unit ? `Better by … ${unit}` : `Difference in ${data.chart.title}` } },
      yaxis: { ...axis, type: "category", showgrid: false },
    },
  };
}

/** The table of all models at all sites as a heat map with numbers; for files, the page has the table. */
function matrix() {
  const colour = palette();
  const axis = axisOf(colour);
  const lines = [...data.matrix].reverse();
  const columns = [...Object.values(data.sites), "Mean over sites"].map(escaped);
  const known = lines.flatMap((line) => line.values).filter((value) => value !== null);
  const better = data.chart.name === "dice";
  const [low, high] = [Math.min(...known), Math.max(...known)];
  const spots = lines.flatMap((line) => line.values.map((value, place) => ({
    x: columns[place], y: escaped(line.label), showarrow: false,
    text: value === null ? "–" : value.toFixed(data.chart.decimals),
    font: { size: 13, color: colour("--chart-global") },
  })));
  return {
    data: [{
      type: "heatmap",
      x: columns,
      y: lines.map((line) => escaped(line.label)),
      z: lines.map((line) => line.values),
      zmin: low, zmax: high, xgap: 2, ygap: 2, showscale: false, hoverongaps: false,
      colorscale: [[0, mixed(colour, better ? 0.02 : 0.5)], [1, mixed(colour, better ? 0.5 : 0.02)]],
    }],
    layout: {
      ...layoutOf(colour),
      height: 110 + 38 * lines.length,
      margin: { l: 20, r: 20, t: 60, b: 20 },
      annotations: spots,
      xaxis: { ...axis, side: "top", showgrid: false, type: "category" },
      yaxis: { ...axis, showgrid: false, type: "category" },
    },
  };
}

/** The tint of the page's heat map: so much of the first hue on the surface. */
function mixed(colour, share) {
  const [over, under] = ["--site-1", "--chart-surface"].map((name) => colour(name).match(/[\d.]+/g).map(Number));
  return `rgb(${[0, 1, 2].map((part) => Math.round(over[part] * share + under[part] * (1 - share))).join(",")})`;
}

const TITLES = {
  curves: () => `On the way, ${overlay.place}`,
  gains: () => "What each site gains from joining, with its 95 % interval",
  contrasts: () => "The federated model against the others, mean over the sites, with 95 % intervals",
  matrix: () => "Every model at every site",
};

function saveAs(name, format) {
  save(FIGURES[name](), {
    title: `${data.title}: ${name === "curves" ? data.measured : data.subject}`,
    subtitle: TITLES[name](),
    filename: `${data.name}-${name}`,
    margin: name === "matrix" ? { t: 100 } : {},
    format,
  });
}

// --- another choice -------------------------------------------------------------------------------

async function load(address, { isBack = false } = {}) {
  const focused = document.activeElement?.closest("[data-choose]")?.dataset.choose;
  try {
    const response = await fetch(address);
    if (!response.ok || response.redirected) return location.assign(address);
    const fresh = new DOMParser().parseFromString(await response.text(), "text/html");
    for (const id of ["waiting", "board"]) document.getElementById(id).replaceWith(fresh.getElementById(id));
  } catch {
    return location.assign(address); // offline, or no such page: the browser says it better
  }
  if (!isBack && address !== location.href) history.pushState(null, "", address);
  build();
  if (focused) document.querySelector(`#board [data-choose="${CSS.escape(focused)}"]`)?.focus();
}

document.addEventListener("click", (event) => {
  const plain = !(event.metaKey || event.ctrlKey || event.shiftKey || event.altKey || event.button);
  const link = plain && event.target.closest("#board a[data-choose]");
  if (link) {
    event.preventDefault();
    load(link.href);
  }
  const button = event.target.closest("[data-save]");
  if (button) saveAs(button.closest("[data-figure]").dataset.figure, button.dataset.save);
});
addEventListener("popstate", () => load(location.href, { isBack: true }));
document.addEventListener("themechange", draw);
new ResizeObserver(draw).observe(document.querySelector("#main"));

// --- what is still to come ------------------------------------------------------------------------

setInterval(async () => {
  const waiting = document.querySelector("#waiting[data-active]");
  if (!waiting || document.hidden) return;
  try {
    const response = await fetch(`${location.pathname}?part=waiting`);
    if (!response.ok || response.redirected) return;
    const template = document.createElement("template");
    template.innerHTML = (await response.text()).trim();
    const fresh = template.content.querySelector("#waiting");
    if (!fresh) return;
    if (fresh.dataset.digest !== waiting.dataset.digest) return load(location.href);
    if (!fresh.isEqualNode(waiting)) waiting.replaceWith(fresh);
  } catch { /* offline: the next look finds it */ }
}, EVERY);

build();
