// Charts as SVG, and the heat map on a canvas. Colors run from the first head to the last.

const HEIGHT = 320, LEFT = 64, RIGHT = 14, TOP = 8, BOTTOM = 40;

function headColor(index, count) {
  return `hsl(${20 + (230 * index) / Math.max(1, count - 1)} 75% var(--light))`;
}

function formatNumber(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e9 || size < 1e-4 ? size.toExponential(2)
    : size.toLocaleString("en", size >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 });
  return value < 0 ? `−${text}` : text;
}

// Axis labels. Powers of two below 1, such as slopes, are written as fractions.
function tickLabel(value) {
  const size = Math.abs(value), sign = value < 0 ? "−" : "";
  if (size < 1 && size > 1e-6 && Number.isInteger(Math.log2(size))) return `${sign}1/${1 / size}`;
  if (size >= 1e6) return `${sign}${+(size / 1e6).toPrecision(3)}M`;
  if (size >= 1e4) return `${sign}${+(size / 1e3).toPrecision(3)}k`;
  return size !== 0 && size < 1e-3 ? `${sign}${size.toExponential(0)}` : `${sign}${+size.toPrecision(4)}`;
}

function linearScale(low, high, from, to) {
  const scale = (value) => from + ((value - low) / (high - low)) * (to - from);
  const rough = (high - low) / 5, size = 10 ** Math.floor(Math.log10(rough));
  const step = size * [1, 2, 5, 10].find((factor) => factor * size >= rough);
  scale.ticks = [];
  for (let k = Math.ceil(low / step); k * step <= high; k++) scale.ticks.push(k * step);
  return scale;
}

// The range ends at powers of the base, so that a single value has room around it.
function logScale(values, base, from, to) {
  const low = Math.floor(Math.log(Math.min(...values)) / Math.log(base) + 1e-9);
  const high = Math.max(low + 1, Math.ceil(Math.log(Math.max(...values)) / Math.log(base) - 1e-9));
  const scale = (value) => from + ((Math.log(value) / Math.log(base) - low) / (high - low)) * (to - from);
  const step = Math.ceil((high - low) / 7);
  scale.ticks = [];
  for (let k = low; k <= high; k += step) scale.ticks.push(base ** k);
  return scale;
}

function frame(id, x, y, xLabel, yLabel, label, marks) {
  const width = chartWidth(id), bottom = HEIGHT - BOTTOM, parts = [];
  for (const tick of y.ticks) {
    parts.push(`<line class="grid" x1="${LEFT}" x2="${width - RIGHT}" y1="${y(tick)}" y2="${y(tick)}"/>`);
    parts.push(`<text x="${LEFT - 8}" y="${y(tick) + 4}" text-anchor="end">${tickLabel(tick)}</text>`);
  }
  for (const tick of x.ticks) {
    parts.push(`<text x="${x(tick)}" y="${bottom + 18}" text-anchor="middle">${tickLabel(tick)}</text>`);
  }
  parts.push(`<text class="name" x="${(LEFT + width - RIGHT) / 2}" y="${HEIGHT - 4}" text-anchor="middle">${xLabel}</text>`);
  const middle = (TOP + bottom) / 2;
  parts.push(`<text class="name" transform="translate(12 ${middle}) rotate(-90)" text-anchor="middle">${yLabel}</text>`);
  document.getElementById(id).innerHTML =
    `<svg viewBox="0 0 ${width} ${HEIGHT}" height="${HEIGHT}" role="img" aria-label="${label}">${parts.join("")}${marks.join("")}</svg>`;
}

function chartWidth(id) {
  return Math.max(240, document.getElementById(id).clientWidth);
}

// Lower end of the bias axis, slightly below the point where weights reach the tolerance.
function biasFloor(state) {
  return 1.25 * (Math.max(0, state.margin) - Math.log(state.tolerance));
}

function drawBias(state, slopes, oldSlopes, windows) {
  const right = chartWidth("bias-chart") - RIGHT, last = state.length - 1, floor = biasFloor(state);
  const x = state.linear ? linearScale(0, last, LEFT, right) : logScale([1, Math.max(2, last)], 2, LEFT, right);
  const y = linearScale(-floor, 0, HEIGHT - BOTTOM, TOP);
  const first = state.linear ? 0 : 1, points = 128;
  const path = (slope) => {
    const end = Math.min(last, floor / slope), line = [];
    if (end < first) return "";
    for (let k = 0; k <= points; k++) {
      const distance = state.linear ? (end * k) / points : end ** (k / points);
      line.push(`${x(distance).toFixed(1)},${y(-slope * distance).toFixed(1)}`);
    }
    return `M${line.join("L")}`;
  };
  const marks = [];
  const curve = (index) => {
    const isChosen = index === state.head - 1, color = headColor(index, slopes.length);
    const title = `<title>head ${index + 1}: slope ${formatNumber(slopes[index])}, window ${windows[index].toLocaleString("en")}</title>`;
    marks.push(`<path class="curve${isChosen ? " chosen" : ""}" style="stroke:${color}" d="${path(slopes[index])}">${title}</path>`);
    const end = windows[index];
    if (end >= first && end <= last && slopes[index] * end <= floor) {
      marks.push(`<circle style="fill:${color}" cx="${x(end)}" cy="${y(-slopes[index] * end)}" r="${isChosen ? 5 : 3}"/>`);
    }
  };
  slopes.forEach((_, index) => index !== state.head - 1 && curve(index));
  marks.push(`<path class="curve old" d="${path(oldSlopes[state.head - 1])}"><title>head ${state.head} with the old β</title></path>`);
  curve(state.head - 1);
  const label = `Bias of ${slopes.length} heads by distance; head ${state.head} falls by ${formatNumber(slopes[state.head - 1])} nats per token`;
  frame("bias-chart", x, y, "distance to the key, tokens", "bias, nats", label, marks);
}

// Old and new values of each head on a logarithmic axis.
function drawHeads(id, state, values, oldValues, base, yLabel, label) {
  const count = values.length, right = chartWidth(id) - RIGHT;
  const x = linearScale(0.5, count + 0.5, LEFT, right);
  x.ticks = x.ticks.filter((tick) => Number.isInteger(tick) && tick >= 1 && tick <= count);
  const y = logScale([...values, ...oldValues].map((value) => Math.max(value, Number.MIN_VALUE)), base, HEIGHT - BOTTOM, TOP);
  const radius = Math.max(2, Math.min(6, (right - LEFT) / count / 3));
  const marks = values.map((value, index) => {
    const at = x(index + 1), chosen = index === state.head - 1 ? "chosen-mark" : "";
    const title = `<title>head ${index + 1}: ${formatNumber(oldValues[index])} with the old β, ${formatNumber(value)} with the new</title>`;
    return `<g>${title}<line class="link" x1="${at}" x2="${at}" y1="${y(oldValues[index])}" y2="${y(value)}"/>` +
      `<circle class="old-mark" cx="${at}" cy="${y(oldValues[index])}" r="${radius}"/>` +
      `<circle class="${chosen}" style="fill:${headColor(index, count)}" cx="${at}" cy="${y(value)}" r="${radius}"/></g>`;
  });
  frame(id, x, y, "head", yLabel, label, marks);
}

function drawMap(state, slope) {
  const canvas = document.getElementById("map"), size = Math.min(state.length, 208), floor = biasFloor(state);
  const style = getComputedStyle(document.documentElement);
  const color = (name) => style.getPropertyValue(name).trim().match(/[0-9a-f]{2}/g).map((hex) => parseInt(hex, 16));
  const near = color("--near"), far = color("--far"), masked = color("--masked");
  canvas.width = canvas.height = size;
  const image = new ImageData(size, size), step = (state.length - 1) / Math.max(1, size - 1);
  for (let query = 0; query < size; query++) {
    for (let key = 0; key < size; key++) {
      const share = Math.min(1, (slope * (query - key) * step) / floor);
      const rgb = key > query ? masked : near.map((from, channel) => from + share * (far[channel] - from));
      image.data.set([...rgb, 255], 4 * (query * size + key));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  const span = state.length.toLocaleString("en");
  canvas.setAttribute("aria-label",
    `Bias of head ${state.head} for ${span} queries and ${span} keys, from 0 on the diagonal to ${formatNumber(biasAt(slope, state.length - 1))} nats at the furthest key`);
  document.getElementById("map-floor").textContent = `−${formatNumber(+floor.toPrecision(3))} or less`;
}
