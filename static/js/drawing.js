// What every chart shares: colours of the theme in use, text that Plotly must not read as markup, cells of a table.

/** Colours of the theme in use, read once per drawing. */
export function palette() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(name).trim();
}

/** Plotly reads a little HTML in labels; a name is only text. */
export function escaped(text) {
  return text.replace(/[<>&]/g, (sign) => ({ "<": "&lt;", ">": "&gt;", "&": "&amp;" })[sign]);
}

export function header(scope, text, isNumber = false) {
  const cell = document.createElement("th");
  cell.scope = scope;
  cell.textContent = text;
  if (isNumber) cell.className = "number";
  return cell;
}

/** The look of all axes. */
export function axisOf(colour) {
  return {
    gridcolor: colour("--chart-grid"), linecolor: colour("--chart-axis"), zeroline: false, automargin: true, fixedrange: false,
    tickfont: { size: 12 }, title: { font: { size: 12 }, standoff: 8 },
  };
}

/** The look of all charts: nothing painted behind, the text of the page. */
export function layoutOf(colour) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("--chart-text") },
    showlegend: false,
    hoverlabel: { bgcolor: colour("--chart-surface"), bordercolor: colour("--chart-axis"), font: { color: colour("--chart-global"), size: 12 } },
  };
}

/** Save a figure as it is seen now as a file that stands alone: on the surface of the theme, with a title and, where it
 * has several lines, a legend. */
export function save({ data, layout }, { title, subtitle, format, filename, margin = {} }) {
  const hasLegend = data.length > 1;
  const height = layout.height + 90;
  const whole = {
    ...layout,
    paper_bgcolor: palette()("--chart-surface"),
    title: {
      text: `${escaped(title)}<br><sup>${escaped(subtitle)}</sup>`,
      font: { size: 16 }, x: 0.02, xanchor: "left", y: 1, yanchor: "top", pad: { t: 24 },
    },
    showlegend: hasLegend,
    legend: { orientation: "h", y: -0.2 },
    margin: { ...layout.margin, t: 64, ...(hasLegend ? { b: 110 } : {}), ...margin },
    width: 1000,
    height,
  };
  Plotly.downloadImage({ data, layout: whole }, { format, width: 1000, height, scale: 2, filename });
}
