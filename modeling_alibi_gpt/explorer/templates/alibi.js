"use strict";
// The formulas of modeling_alibi_gpt/alibi.py. Slopes and biases are rounded to float32 wherever Python uses float32.

const SLOPE_KINDS = ["geometric", "uniform", "custom"];

function geometricMultipliers(numHeads, biasMax) {
  const power = 2 ** Math.floor(Math.log2(numHeads));
  const multipliers = [];
  for (let h = 1; h <= power; h++) multipliers.push(2 ** ((-biasMax * h) / power));
  for (let h = 1; h <= numHeads - power; h++) multipliers.push(2 ** ((-biasMax * (2 * h - 1)) / (2 * power)));
  return multipliers;
}

function headMultipliers(state) {
  if (state.kind === "custom") return state.custom;
  if (state.kind === "uniform") return Array(state.heads).fill(1);
  return geometricMultipliers(state.heads, state.biasMax);
}

// Effective slopes, nats per token.
function headSlopes(state, beta) {
  const slopes = headMultipliers(state).map((multiplier) => Math.fround(beta * multiplier));
  return state.inside ? slopes.map((slope) => Math.fround(slope * Math.fround(state.scaling))) : slopes;
}

function biasAt(slope, distance) {
  return distance === 0 ? 0 : -Math.fround(slope * Math.fround(distance));
}

// The smallest W for which exp(margin - s W) / (1 - exp(-s)) is at most the tolerance.
function headWindow(slope, margin, tolerance) {
  const logTolerance = Math.log(tolerance);
  const logLeftOut = (window) => margin - slope * window - Math.log(-Math.expm1(-slope));
  const window = Math.max(0, Math.ceil((logLeftOut(0) - logTolerance) / slope));
  if (logLeftOut(window) > logTolerance) return window + 1;
  const oneLess = Math.max(0, window - 1);
  return logLeftOut(oneLess) <= logTolerance ? oneLess : window;
}

function windowsOf(slopes, state) {
  return slopes.map((slope) => headWindow(slope, state.margin, state.tolerance));
}

// The first invalid field and a message, or null.
function findProblem(state) {
  const isPositive = (value) => Number.isFinite(value) && value > 0;
  const isCount = (value, least, most) => Number.isInteger(value) && value >= least && value <= most;
  if (!isCount(state.heads, 1, 256)) return ["heads", "Heads must be a whole number from 1 to 256."];
  if (!SLOPE_KINDS.includes(state.kind)) return ["kind", `Slope kind must be one of ${SLOPE_KINDS.join(", ")}.`];
  for (const [field, name] of [["beta", "New β"], ["oldBeta", "Old β"], ["biasMax", "Range of exponents"], ["scaling", "Scaling"]]) {
    if (!isPositive(state[field])) return [field, `${name} must be a number above 0.`];
  }
  if (state.kind === "custom" && state.custom.length !== state.heads) {
    return ["custom", `Custom multipliers: expected ${state.heads}, one per head, got ${state.custom.length}.`];
  }
  if (state.kind === "custom" && !state.custom.every(isPositive)) return ["custom", "Every multiplier must be a number above 0."];
  if (!isCount(state.length, 2, 1048576)) return ["length", "Length must be a whole number from 2 to 1,048,576 tokens."];
  if (!(isPositive(state.tolerance) && state.tolerance < 1)) return ["tolerance", "Tolerance must be a number between 0 and 1."];
  if (!Number.isFinite(state.margin)) return ["margin", "Score margin must be a number."];
  if (!isCount(state.distance, 0, 1048576)) return ["distance", "Distance must be a whole number from 0 to 1,048,576 tokens."];
  const slopes = [...headSlopes(state, state.beta), ...headSlopes(state, state.oldBeta)];
  if (!slopes.every(isPositive)) return ["beta", "A slope is too large or too small for float32."];
  return null;
}
