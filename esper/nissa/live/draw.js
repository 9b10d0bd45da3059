// Drawing: elements, charts of lines and of stacked parts, and swimlanes; numbers in, nodes out.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "line", "rect", "circle", "text", "title", "g"]);
const MARGIN = { left: 52, right: 12, top: 10, bottom: 36 };

export function el(tag, attributes = {}, ...children) {
  const inSvg = SVG_TAGS.has(tag);
  const node = inSvg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...children.map((child) => (child instanceof Node ? child : document.createTextNode(String(child)))));
  return node;
}

export function isNumber(value) {
  return typeof value === "number" && Number.isFinite(value);
}

// A number as people read it: four figures; what is not measured is a dash.
export function say(value) {
  if (typeof value === "string") return value;
  if (!isNumber(value)) return "–";
  if (Number.isInteger(value) && Math.abs(value) < 1e6) return String(value);
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

function span(values, include = []) {
  const sound = [...values, ...include].filter(isNumber);
  if (!sound.length) return [0, 1];
  const low = Math.min(...sound), high = Math.max(...sound);
  const room = 0.06 * (high - low) || 0.1 * Math.max(Math.abs(high), 1);
  return [include.includes(low) ? low : low - room, include.includes(high) && high > low ? high : high + room];
}

function ticks(low, high, about, whole = false) {
  const rough = (high - low) / Math.max(about, 1);
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= 0.7 * rough);
  if (whole) step = Math.max(step, 1);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i <= Math.floor(high / step + 1e-9); i += 1) found.push(i * step);
  return found;
}

function frame(width, height, x, y) {
  const { left, right, top, bottom } = MARGIN;
  return {
    width, height,
    x: (value) => left + ((value - x[0]) / (x[1] - x[0] || 1)) * (width - left - right),
    y: (value) => height - bottom - ((value - y[0]) / (y[1] - y[0] || 1)) * (height - top - bottom),
  };
}

function axes(area, x, y, names) {
  const parts = [], bottom = area.height - MARGIN.bottom, right = area.width - MARGIN.right;
  for (const value of ticks(y[0], y[1], 5)) {
    const at = area.y(value);
    parts.push(el("line", { x1: MARGIN.left, x2: right, y1: at, y2: at, class: "grid" }));
    parts.push(el("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end", class: "tick" }, say(value)));
  }
  for (const value of ticks(x[0], x[1], area.width / 80, true)) {
    const at = area.x(value);
    parts.push(el("text", { x: at, y: bottom + 15, "text-anchor": "middle", class: "tick" }, say(value)));
  }
  parts.push(el("line", { x1: MARGIN.left, x2: right, y1: bottom, y2: bottom, class: "axis" }));
  parts.push(el("text", { x: (MARGIN.left + right) / 2, y: area.height - 5, "text-anchor": "middle", class: "name" }, names));
  return parts;
}

function picture(width, height, title, parts) {
  return el("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": title }, el("title", {}, title), ...parts);
}

function pathOf(area, points) {
  let words = "", pen = "M";
  for (const [x, y] of points) {
    if (!isNumber(y)) { pen = "M"; continue; }
    words += `${pen}${area.x(x).toFixed(2)} ${area.y(y).toFixed(2)}`;
    pen = "L";
  }
  return words;
}

// series: [{name, colour, points: [[x, y or null]], marks: [[x, y]]}]; a gap where there is no number.
export function lineChart(width, title, xName, series, include = []) {
  const height = 220, xs = series.flatMap((each) => each.points.map((point) => point[0]));
  const x = [Math.min(...xs, 1), Math.max(...xs, 2)];
  const y = span(series.flatMap((each) => each.points.map((point) => point[1])), include);
  const area = frame(width, height, x, y), parts = axes(area, x, y, xName);
  for (const each of series) {
    parts.push(el("path", { d: pathOf(area, each.points), class: `line c${each.colour}`, "data-series": each.name }));
    const known = each.points.filter((point) => isNumber(point[1]));
    if (known.length) {
      const [lastX, lastY] = known[known.length - 1];
      parts.push(el("circle", { cx: area.x(lastX), cy: area.y(lastY), r: 3, class: `dot c${each.colour}` },
        el("title", {}, `${each.name}: ${say(lastY)} in ${xName} ${lastX}`)));
    }
    for (const [at, value, words] of each.marks ?? []) {
      if (isNumber(value)) parts.push(el("circle", { cx: area.x(at), cy: area.y(value), r: 6, class: "anomaly" }, el("title", {}, words)));
    }
  }
  return picture(width, height, title, parts);
}

// series: [{name, colour, values}]; parts of a whole at xs.
export function stackedChart(width, title, xName, xs, series, top = null) {
  const height = 220, sums = xs.map((_, i) => series.reduce((sum, each) => sum + (each.values[i] ?? 0), 0));
  const first = xs[0] ?? 1, last = xs[xs.length - 1] ?? 2, step = xs.length > 1 ? (last - first) / (xs.length - 1) : 1;
  const x = [first - step / 2, last + step / 2], y = [0, top ?? (Math.max(...sums, 0) || 1)];
  const area = frame(width, height, x, y), base = xs.map(() => 0), parts = axes(area, x, y, xName);
  for (const each of series) {
    let up = "", down = "";
    xs.forEach((at, i) => {
      const low = base[i], high = low + (each.values[i] ?? 0), left = area.x(at - step / 2), right = area.x(at + step / 2);
      up += `${i ? "L" : "M"}${left.toFixed(2)} ${area.y(high).toFixed(2)}L${right.toFixed(2)} ${area.y(high).toFixed(2)}`;
      down = `L${right.toFixed(2)} ${area.y(low).toFixed(2)}L${left.toFixed(2)} ${area.y(low).toFixed(2)}${down}`;
      base[i] = high;
    });
    parts.push(el("path", { d: `${up}${down}Z`, class: `area stack c${each.colour}`, "data-series": each.name }, el("title", {}, each.name)));
  }
  return picture(width, height, title, parts);
}

const CURVE = 78, LANE = 42, BAR = 20;

// One environment of a round: its accuracy, and a lane for each slot; the rest of the episode is still empty.
export function swimlane(width, title, lane, env) {
  const height = CURVE + LANE * env.slots.length + 40, x = [0.5, lane.decisions + 0.5];
  const y = span(env.accuracy.map((point) => point[1])), area = frame(width, CURVE + 30, x, y), parts = [];
  const right = width - MARGIN.right;
  for (const value of ticks(y[0], y[1], 3)) {
    const at = area.y(value);
    parts.push(el("line", { x1: MARGIN.left, x2: right, y1: at, y2: at, class: "grid" }));
    parts.push(el("text", { x: MARGIN.left - 6, y: at + 4, "text-anchor": "end", class: "tick" }, say(value)));
  }
  const moved = env.accuracy.map(([at, value]) => [at + lane.first, value]);
  parts.push(el("path", { d: pathOf(area, moved), class: "line c0" }));
  env.slots.forEach((stretches, slot) => {
    const top = CURVE + LANE * slot + 14;
    parts.push(el("text", { x: MARGIN.left - 6, y: top + 14, "text-anchor": "end", class: "row" }, `slot ${slot}`));
    parts.push(el("rect", { x: MARGIN.left, y: top, width: right - MARGIN.left, height: BAR, class: "lane" }));
    stretches.forEach((stretch, place) => parts.push(...block(area, lane, stretch, stretches[place - 1], stretches, place, top, slot, right)));
  });
  for (const value of ticks(1, lane.decisions, width / 60, true)) {
    parts.push(el("text", { x: area.x(value), y: height - 20, "text-anchor": "middle", class: "tick" }, say(value)));
  }
  parts.push(el("text", { x: (MARGIN.left + right) / 2, y: height - 4, "text-anchor": "middle", class: "name" }, "decision (one epoch each); curve: validation, %"));
  return picture(width, height, title, parts);
}

function block(area, lane, [stage, start, stop, blueprint], before, stretches, place, top, slot, end) {
  const left = area.x(start + lane.first - 0.5), right = area.x(stop + lane.first + 0.5), kind = stage.toLowerCase(), parts = [];
  const words = `slot ${slot}: ${stage} ${blueprint}, decisions ${start + lane.first} to ${stop + lane.first}`;
  parts.push(el("rect", { x: left, y: top, width: Math.max(right - left, 0.5), height: BAR, class: `stage s-${kind}`, "data-stage": stage }, el("title", {}, words)));
  if (right - left >= 13) parts.push(el("text", { x: (left + right) / 2, y: top + 14, class: `initial on-${kind}` }, stage[0]));
  const begins = stage === "GERMINATED" || !before;
  if (begins) {
    const next = stretches.slice(place + 1).find((each) => each[0] === "GERMINATED");
    const room = Math.floor(((next ? area.x(next[1] + lane.first - 0.5) : end) - left - 4) / 7.2);
    const shown = blueprint.length <= room ? blueprint : room >= 4 ? `${blueprint.slice(0, room - 1)}…` : "";
    parts.push(el("text", { x: left + 2, y: top - 3, class: "seed" }, shown));
  }
  return parts;
}

export function table(heads, rows, caption) {
  const cells = (row) => row.map((cell, place) => (place ? el("td", {}, cell) : el("th", { scope: "row" }, cell)));
  return el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption),
      el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))),
      el("tbody", {}, ...rows.map((row) => el("tr", {}, ...cells(row))))));
}

export function legend(entries) {
  return el("ul", { class: "legend" }, ...entries.map(([kind, words]) => el("li", {}, el("span", { class: `swatch ${kind}` }), words)));
}

export function figure(title, ...parts) {
  return el("figure", {}, el("figcaption", {}, title), ...parts);
}
