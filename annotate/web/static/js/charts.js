// Charts as SVG, drawn from numbers; their words are HTML beside them, so that they wrap and grow.

import { make } from "./dom.js";
import { figureOf } from "./review_tables.js";

const SPACE = "http://www.w3.org/2000/svg";
const FRAME = { left: 52, right: 10, top: 10, bottom: 24 };
export const COLOURS = 6;

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** About `count` round numbers from low to high. */
export function ticks(low, high, count = 5) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((unit) => unit * power).find((size) => size >= rough);
  const found = [];
  for (let at = Math.ceil(low / step); at * step <= high * (1 + 1e-12); at += 1) {
    found.push(at * step || 0); // not -0
  }
  return found;
}

const scale = (from, to, start, end) => (value) =>
  to === from ? (start + end) / 2 : start + ((value - from) / (to - from)) * (end - start);

function canvas(width, height, label) {
  return svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    role: "img",
    "aria-label": label,
    class: "rv-chart",
  });
}

function axes(drawing, { x, y, xTicks, yTicks, width, height, xText = figureOf }) {
  for (const value of yTicks) {
    const at = y(value);
    drawing.append(
      svg("line", { x1: FRAME.left, x2: width - FRAME.right, y1: at, y2: at, class: "rv-grid" }),
      svg("text", { x: FRAME.left - 6, y: at + 4, class: "rv-tick rv-end" }, figureOf(value)),
    );
  }
  for (const value of xTicks) {
    drawing.append(
      svg("text", { x: x(value), y: height - 6, class: "rv-tick rv-middle" }, xText(value)),
    );
  }
}

const swatch = (place) =>
  svg(
    "svg",
    { viewBox: "0 0 26 8", class: "rv-swatch", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `rv-line rv-s${place % COLOURS}` }),
  );

const block = (place) =>
  svg(
    "svg",
    { viewBox: "0 0 12 12", class: "rv-block", "aria-hidden": "true" },
    svg("rect", { width: 12, height: 12, class: `rv-f${place % COLOURS}` }),
  );

/** Names of the series, each with its look and its last value. */
export function legend(series, look = swatch) {
  return make(
    "ul",
    { class: "rv-legend" },
    ...series.map(({ name, points }, place) =>
      make(
        "li",
        {},
        look(place),
        make("span", { text: name }),
        ...(points?.length ? [make("b", { text: figureOf(points.at(-1)[1]) })] : []),
      ),
    ),
  );
}

/** Lines over x. Series: {name, points: [[x, y]]}; told apart by colour and by dashes. */
export function lineChart({ series, label, xText, size = [380, 200] }) {
  const [width, height] = size;
  const all = series.flatMap(({ points }) => points);
  if (all.length === 0) return [];
  const xs = all.map(([value]) => value);
  const ys = all.map(([, value]) => value);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  let [low, high] = [Math.min(...ys), Math.max(...ys)];
  if (low === high) [low, high] = [low - (Math.abs(low) || 1) * 0.1, high + (Math.abs(high) || 1) * 0.1];
  const x = scale(left, right, FRAME.left, width - FRAME.right);
  const y = scale(low, high, height - FRAME.bottom, FRAME.top);
  const drawing = canvas(width, height, `${label}: ${describe(series)}`);
  const xTicks = ticks(left, right).filter((value) => xText || Number.isInteger(value));
  axes(drawing, { x, y, xTicks, yTicks: ticks(low, high), width, height, xText });
  series.forEach(({ points }, place) => {
    const d = points.map(([px, py], i) => `${i ? "L" : "M"}${x(px).toFixed(1)} ${y(py).toFixed(1)}`);
    const look = { class: `rv-line rv-s${place % COLOURS}` };
    drawing.append(svg("path", { d: d.join(""), ...look }));
    if (points.length < 12) {
      for (const [px, py] of points) {
        drawing.append(svg("circle", { cx: x(px), cy: y(py), r: 3, class: `rv-dot rv-f${place % COLOURS}` }));
      }
    }
  });
  return [drawing, legend(series)];
}

const describe = (series) =>
  series
    .filter(({ points }) => points.length > 0)
    .map(({ name, points }) => `${name} ${figureOf(points[0][1])} → ${figureOf(points.at(-1)[1])}`)
    .join("; ");

/** Bars, one on the other. Rows: {name, values: [...]}, as many values as `names`. */
export function stackedBars({ rows, names, label, size = [940, 240] }) {
  const [width, height] = size;
  const most = Math.max(1, ...rows.map(({ values }) => values.reduce((a, b) => a + b, 0)));
  const y = scale(0, most, height - FRAME.bottom, FRAME.top);
  const step = (width - FRAME.left - FRAME.right) / rows.length;
  const drawing = canvas(width, height, label);
  const every = Math.ceil(rows.length / 8);
  const marks = rows.map((_, i) => i).filter((i) => i % every === 0);
  const x = (i) => FRAME.left + (i + 0.5) * step;
  const xText = (i) => rows[i].name;
  axes(drawing, { x, y, xTicks: marks, yTicks: ticks(0, most), width, height, xText });
  const breadth = Math.min(step * 0.8, 64);
  rows.forEach(({ name, values }, i) => {
    let base = 0;
    values.forEach((value, place) => {
      if (value === 0) return;
      const [top, bottom] = [y(base + value), y(base)];
      base += value;
      drawing.append(
        svg(
          "rect",
          { x: x(i) - breadth / 2, y: top, width: breadth, height: bottom - top, class: `rv-bar rv-f${place}` },
          svg("title", {}, `${name}, ${names[place]}: ${figureOf(value)}`),
        ),
      );
    });
  });
  return [drawing, legend(names.map((name) => ({ name })), block)];
}

/** A value with its interval on a scale from `low` to `high`; decoration beside its numbers. */
export function interval({ value, from, to }, { low, high, zero = null }) {
  const width = 220;
  const x = scale(low, high, 6, width - 6);
  const drawing = svg("svg", {
    viewBox: `0 0 ${width} 18`,
    class: "rv-interval",
    "aria-hidden": "true",
  });
  drawing.append(svg("line", { x1: 6, x2: width - 6, y1: 9, y2: 9, class: "rv-grid" }));
  if (zero !== null && zero >= low && zero <= high) {
    drawing.append(svg("line", { x1: x(zero), x2: x(zero), y1: 1, y2: 17, class: "rv-zero" }));
  }
  const held = (at) => Math.min(Math.max(at, low), high);
  if (from !== null && from !== undefined) {
    drawing.append(svg("line", { x1: x(held(from)), x2: x(held(to)), y1: 9, y2: 9, class: "rv-span" }));
  }
  drawing.append(svg("circle", { cx: x(held(value)), cy: 9, r: 4.5, class: "rv-point" }));
  return drawing;
}

/** How often was right what was said with so much confidence; a circle's area is its pairs. */
export function calibration(bins, label) {
  const side = 260;
  const x = scale(0.5, 1, FRAME.left, side - FRAME.right);
  const y = scale(0.5, 1, side - FRAME.bottom, FRAME.top);
  const drawing = canvas(side, side, label);
  const marks = [0.5, 0.6, 0.7, 0.8, 0.9, 1];
  axes(drawing, { x, y, xTicks: marks, yTicks: marks, width: side, height: side });
  drawing.append(
    svg("line", { x1: x(0.5), y1: y(0.5), x2: x(1), y2: y(1), class: "rv-zero" }),
  );
  const most = Math.max(...bins.map(([, , count]) => count));
  const held = (share) => Math.min(Math.max(share, 0.5), 1);
  for (const [confidence, accuracy, count] of bins) {
    drawing.append(
      svg(
        "circle",
        { cx: x(held(confidence)), cy: y(held(accuracy)), r: 3 + 7 * Math.sqrt(count / most), class: "rv-bubble" },
        svg("title", {}, `${figureOf(confidence)} → ${figureOf(accuracy)}, ${figureOf(count)}`),
      ),
    );
  }
  drawing.classList.add("rv-square");
  return drawing;
}
