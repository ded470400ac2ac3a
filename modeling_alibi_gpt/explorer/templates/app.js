// Page state, read from the controls and the URL fragment. Every change redraws the page.

const INITIAL = JSON.parse(document.getElementById("initial-state").textContent);
const FIELDS = [...document.querySelectorAll("[name]")].filter((element) => element.closest("form"));
const SLIDERS = [...document.querySelectorAll("[data-log2-of]")];
const isEmbedded = window !== window.top;

function parseNumbers(text) {
  return text.split(/[\s,;]+/).filter(Boolean).map(Number);
}

function readState() {
  const state = {};
  for (const element of FIELDS) {
    const value = element.value.trim();
    state[element.name] = element.type === "checkbox" ? element.checked : element.type === "number" || element.name === "head"
      ? (value === "" ? NaN : Number(value)) : value;
  }
  return { ...state, custom: parseNumbers(state.custom), inside: state.inside === "true" };
}

function writeState(state) {
  fillHeads(state.heads);
  for (const element of FIELDS) {
    const value = state[element.name];
    if (element.type === "checkbox") element.checked = value;
    else element.value = Array.isArray(value) ? value.join(", ") : String(value);
  }
  SLIDERS.forEach(followNumber);
}

function followNumber(slider) {
  const value = Number(document.getElementById(slider.dataset.log2Of).value);
  if (value > 0) slider.value = Math.log2(value);
  slider.setAttribute("aria-valuetext", formatNumber(value));
}

function fillHeads(count) {
  const select = document.getElementById("head"), chosen = Math.min(Number(select.value) || 1, count);
  if (!Number.isInteger(count) || count < 1 || count > 256 || select.length === count) return;
  select.replaceChildren(...Array.from({ length: count }, (_, index) => new Option(index + 1, index + 1)));
  select.value = chosen;
}

function stateOfAddress() {
  const state = { ...INITIAL };
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    if (!(name in INITIAL)) continue;
    if (name === "custom") state.custom = parseNumbers(text);
    else state[name] = typeof INITIAL[name] === "boolean" ? text === "true" : typeof INITIAL[name] === "number" ? Number(text) : text;
  }
  return state;
}

function keepAddress(state) {
  if (isEmbedded) return;
  const changed = Object.entries(state).filter(([name, value]) => String(value) !== String(INITIAL[name]));
  history.replaceState(null, "", changed.length ? `#${new URLSearchParams(changed)}` : location.pathname + location.search);
}

function showTable(state, rows) {
  const cell = (name, value) => `<td data-name="${name}" data-value="${value}">${formatNumber(value)}</td>`;
  document.querySelector("#table tbody").innerHTML = rows.map((row, index) =>
    `<tr${index === state.head - 1 ? ' class="chosen"' : ""}><th scope="row">${index + 1}</th>` +
    Object.entries(row).map(([name, value]) => cell(name, value)).join("") + "</tr>").join("");
}

function showSummary(state, slopes, windows, oldWindows) {
  const range = (values, format) => {
    const low = format(Math.min(...values)), high = format(Math.max(...values));
    return low === high ? low : `${low} to ${high}`;
  };
  const count = (value) => value.toLocaleString("en");
  const oldRange = state.beta === state.oldBeta ? "" : ` (β = ${formatNumber(state.oldBeta)}: ${range(oldWindows, count)})`;
  const whole = windows.filter((window) => window >= state.length).length;
  const reading = whole === 0 ? "No head needs the whole length" : `${whole} of ${slopes.length} heads must read the whole length`;
  document.getElementById("summary").textContent =
    `With β = ${formatNumber(state.beta)}, slopes are ${range(slopes, formatNumber)} nats per token and windows ` +
    `${range(windows, count)} tokens${oldRange}. ` +
    `${reading} of ${count(state.length)} tokens.`;
}

function update() {
  const state = readState();
  for (const element of document.querySelectorAll("[data-kind]")) {
    element.hidden = element.dataset.kind === "inside" ? !state.inside : element.dataset.kind !== state.kind;
  }
  fillHeads(state.heads);
  const headSelect = document.getElementById("head");
  if (headSelect.value === "") headSelect.value = "1"; // a URL may name a head that does not exist
  state.head = Number(headSelect.value);
  const problem = findProblem(state);
  for (const element of FIELDS) element.setAttribute("aria-invalid", problem !== null && element.name === problem[0]);
  document.getElementById("problem").textContent = problem === null ? "" : problem[1];
  if (problem !== null) return;

  const slopes = headSlopes(state, state.beta), oldSlopes = headSlopes(state, state.oldBeta);
  const windows = windowsOf(slopes, state), oldWindows = windowsOf(oldSlopes, state);
  showSummary(state, slopes, windows, oldWindows);
  drawBias(state, slopes, oldSlopes, windows);
  drawHeads("slope-chart", state, slopes, oldSlopes, 2, "slope, nats per token", "Slope of every head, old and new; the table has the values");
  const drawn = (values) => values.map((value) => Math.max(1, value));
  drawHeads("window-chart", state, drawn(windows), drawn(oldWindows), 10, "window, tokens", "Window of every head, old and new; the table has the values");
  drawMap(state, slopes[state.head - 1]);
  document.getElementById("map-head").textContent = state.head;
  document.getElementById("at-distance").textContent = state.distance.toLocaleString("en");
  showTable(state, slopes.map((slope, index) => ({
    "old-slope": oldSlopes[index],
    "new-slope": slope,
    "old-window": oldWindows[index],
    "new-window": windows[index],
    bias: biasAt(slope, state.distance),
  })));
  keepAddress(state);
}

for (const slider of SLIDERS) {
  const number = document.getElementById(slider.dataset.log2Of);
  slider.addEventListener("input", () => {
    number.value = Number((2 ** Number(slider.value)).toPrecision(4));
    followNumber(slider);
  });
  number.addEventListener("input", () => followNumber(slider));
}
document.getElementById("controls").addEventListener("input", update);
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
document.getElementById("reset").addEventListener("click", () => { writeState(INITIAL); update(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
addEventListener("resize", update);
addEventListener("hashchange", () => { writeState(stateOfAddress()); update(); });
writeState(stateOfAddress());
update();
