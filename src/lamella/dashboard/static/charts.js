// The charts, by plotly.js.  Times are seconds before the server's now, so that no clock of this device matters.

import { bytes, kl, ms } from "./parts.js";

const SPANS_SECONDS = [60, 180, 300, 900];
const CONFIG = { displayModeBar: false, responsive: true, showTips: false, scrollZoom: false, doubleClick: false };
const DASHES = ["solid", "dash", "dot"];
const LEVEL_DASHES = ["longdash", "longdashdot", "dashdot"];
const at = (id) => document.getElementById(id);

export function drawCharts(state) {
  const look = colours();
  drawLatency("chart-tpot", state, look, "tpot_p95_seconds", "tpot_seconds", "Time per token");
  drawLatency("chart-ttft", state, look, "ttft_p95_seconds", "ttft_seconds", "Time to first token");
  drawLoad(state, look);
  drawQuality(state, look);
  drawMemory(state, look);
  drawPower(state, look);
}

/** KL of each variant against its size or its time a token; the one that runs stands out. */
export function drawLadder(state, axis) {
  const look = colours();
  const isSpeed = axis === "speed";
  const shown = state.rungs.filter((rung) => rung.kl !== null && (!isSpeed || rung.ms_per_token !== null));
  const across = (rung) => (isSpeed ? rung.ms_per_token : rung.n_bytes / 2 ** 20);
  const group = (name, rungs, marker) => ({
    name,
    x: rungs.map(across),
    y: rungs.map((rung) => rung.kl),
    text: rungs.map((rung) => plain(rung.name)),
    mode: "markers+text",
    textposition: "top center",
    cliponaxis: false,
    marker,
    hovertemplate: `%{text}<br>KL %{y:.4f}<br>%{x:.1f} ${isSpeed ? "ms/token" : "MiB"}<extra></extra>`,
  });
  const others = shown.filter((rung) => !rung.is_running);
  const running = shown.filter((rung) => rung.is_running);
  const layout = base(look, {
    xaxis: { title: { text: isSpeed ? "ms a token, one stream" : "MiB of shards" }, automargin: true },
    yaxis: { title: { text: "KL, nats a token" }, exponentformat: "none", minorloglabels: "complete" },
  });
  layout.margin.b = 46;
  pad(layout, shown.map(across), shown.map((rung) => rung.kl));
  put("chart-ladder", [
    group("variant", others, { size: 11, color: look.series1 }),
    group("runs now", running, { size: 15, color: look.series2, symbol: "diamond" }),
  ], layout);
  at("chart-ladder").setAttribute("aria-label", `KL of ${shown.length} variants against ${isSpeed ? "time a token" : "size"}; the table below has the figures`);
  at("ladder-note").textContent = ladderNote(state, shown, isSpeed);
}

function ladderNote(state, shown, isSpeed) {
  if (isSpeed && shown.length === 0) return "No speed was measured on this machine yet: run 'lamella profile STORE', and start the server again.";
  const left = state.rungs.length - shown.length;
  const missing = left ? `${left} of ${state.rungs.length} variants are not shown: their ${isSpeed ? "speed or KL" : "KL"} is not known. ` : "";
  const planned = shown.filter((rung) => !rung.kl_is_measured).length;
  return missing + (planned === 0 ? "" : planned === shown.length ? "KL as planned, not measured." : `KL of ${planned} as planned, of the others measured.`);
}

// --- over time ------------------------------------------------------------------------------------------------------

function drawLatency(id, state, look, measured, promised, words) {
  const names = [...new Set(state.points.flatMap((point) => point.latencies.map((latency) => latency.class_name)))].sort();
  const value = (point, name) => point.latencies.find((latency) => latency.class_name === name)?.[measured];
  const lines = names.map((name, place) =>
    line(state, name, (point) => inMs(value(point, name)), { color: look.series[place % 3], dash: DASHES[place % 3] }, "%{y:.1f} ms"),
  );
  const promises = (state.control?.promises ?? []).filter((promise) => promise[promised] !== null);
  const levels = promises.map((promise, place) => level(`objective ${promise.class_name}`, promise[promised] * 1000, look, place));
  put(id, [...lines, ...levels], overTime(state, look, "ms, p95 of 30 s"));
  const last = state.points.at(-1);
  const said = names.map((name) => `${name} ${ms(last && value(last, name))}`).join(", ");
  const asked = promises.map((promise) => `${promise.class_name} ${ms(promise[promised])}`).join(", ");
  at(id).setAttribute("aria-label", `${words}, last quarter of an hour. Now: ${said || "no request"}. Objective: ${asked || "none"}.`);
}

function drawLoad(state, look) {
  const layout = overTime(state, look, "requests");
  layout.yaxis2 = { ...axisLook(look), overlaying: "y", side: "right", rangemode: "tozero", showgrid: false, tickformat: ".3~g", title: { text: "tokens/s" } };
  layout.margin.r = 52;
  put("chart-load", [
    line(state, "run", (point) => point.n_running, { color: look.series1 }, "%{y}"),
    line(state, "wait", (point) => point.n_waiting, { color: look.series2, dash: "dash" }, "%{y}"),
    { ...line(state, "tokens/s", (point) => point.tokens_per_second, { color: look.series3, dash: "dot" }, "%{y:.1f}"), yaxis: "y2" },
  ], layout);
  const last = state.points.at(-1);
  at("chart-load").setAttribute("aria-label", `Load, last quarter of an hour. Now ${last?.n_running ?? 0} requests run and ${last?.n_waiting ?? 0} wait.`);
}

function drawQuality(state, look) {
  const known = new Map(state.rungs.map((rung) => [rung.name, rung.kl]));
  const promises = (state.control?.promises ?? []).filter((promise) => promise.most_kl !== null);
  const steps = line(state, "KL", (point) => known.get(point.variant), { color: look.series1, shape: "hv" }, "%{text}: %{y:.4f}");
  steps.text = state.points.map((point) => point.variant);
  const levels = promises.map((promise, place) => level(`most for ${promise.class_name}`, promise.most_kl, look, place));
  put("chart-kl", [steps, ...levels], overTime(state, look, "KL, nats a token"));
  const running = state.rungs.find((rung) => rung.is_running);
  at("chart-kl").setAttribute("aria-label", `KL of the variant that ran, last quarter of an hour. Now ${kl(running?.kl)}.`);
}

function drawMemory(state, look) {
  const ceiling = state.control?.memory_bytes;
  const levels = ceiling ? [level("ceiling", ceiling / 2 ** 20, look, 0)] : [];
  const inMib = (point) => (point.engine_bytes === null ? null : point.engine_bytes / 2 ** 20);
  put("chart-memory", [line(state, "engine", inMib, { color: look.series1 }, "%{y:.0f} MiB"), ...levels], overTime(state, look, "MiB"));
  at("chart-memory").setAttribute("aria-label", `Memory of the engine, last quarter of an hour. Now ${bytes(state.points.at(-1)?.engine_bytes)}.`);
}

function drawPower(state, look) {
  const isKnown = state.points.some((point) => point.watts !== null);
  at("chart-power").hidden = !isKnown;
  at("no-power").hidden = isKnown;
  if (!isKnown) {
    at("no-power").textContent = state.why_no_watts ? `This machine does not say: ${state.why_no_watts}.` : "Not known yet.";
    return;
  }
  const ceiling = state.control?.power_watts;
  const levels = ceiling ? [level("ceiling", ceiling, look, 0)] : [];
  put("chart-power", [line(state, "power", (point) => point.watts, { color: look.series1 }, "%{y:.1f} W"), ...levels], overTime(state, look, "W"));
  at("chart-power").setAttribute("aria-label", `Power, last quarter of an hour. Now ${state.points.at(-1)?.watts?.toFixed(1) ?? "not known"} W.`);
}

// --- what they are made of ------------------------------------------------------------------------------------------

function line(state, name, value, look, hover) {
  return {
    name: plain(name),
    x: state.points.map((point) => point.at - state.now),
    y: state.points.map((point) => value(point) ?? null),
    mode: "lines",
    connectgaps: false,
    line: { width: 2, ...look },
    hovertemplate: `${hover}<extra>${plain(name)}</extra>`,
  };
}

function inMs(seconds) {
  return seconds === null || seconds === undefined ? null : seconds * 1000;
}

/** As much of the past as there is, in steps, so that a server that has just started does not show an empty chart. */
function overTime(state, look, title) {
  const age = state.now - (state.points[0]?.at ?? state.now);
  const span = SPANS_SECONDS.find((each) => age <= each) ?? SPANS_SECONDS.at(-1);
  const layout = base(look, {
    xaxis: {
      range: [-span, 0],
      tickvals: [-span, (-2 * span) / 3, -span / 3, 0],
      ticktext: [span, (2 * span) / 3, span / 3].map(ago).concat("now"),
      hoverformat: ".0f",
    },
    yaxis: { rangemode: "tozero", title: { text: title }, automargin: true },
  });
  return layout;
}

function ago(seconds) {
  return seconds % 60 ? `-${seconds} s` : `-${seconds / 60} min`;
}

function base(look, { xaxis, yaxis }) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: look.text, size: 12, family: "inherit" },
    margin: { l: 56, r: 14, t: 26, b: 28 },
    xaxis: { ...axisLook(look), ...xaxis },
    yaxis: { ...axisLook(look), ...yaxis },
    showlegend: true,
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
    hoverlabel: { bgcolor: look.card, bordercolor: look.line, font: { color: look.text } },
    dragmode: false,
    uirevision: "same",
  };
}

function axisLook(look) {
  return { gridcolor: look.grid, linecolor: look.line, zerolinecolor: look.grid, fixedrange: true, tickfont: { color: look.quiet } };
}

/** Room around the points for the names that stand over them; KL by orders of magnitude where none is 0. */
function pad(layout, across, up) {
  if (!across.length) return;
  const isLog = Math.min(...up) > 0;
  layout.xaxis.range = padded(across, 0.2, 0.1);
  layout.yaxis.type = isLog ? "log" : "linear";
  layout.yaxis.range = padded(isLog ? up.map(Math.log10) : up, 0.2, 0);
}

function padded(values, share, least) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const room = Math.max(share * (high - low), least * Math.abs(high), 1e-3);
  return [low - room, high + room];
}

/** What was promised, or the most that may be: a line of its own, so that the axis reaches it. */
function level(name, y, look, place) {
  const at = { x: [-SPANS_SECONDS.at(-1), 0], y: [y, y], mode: "lines" };
  const line = { color: look.objective, width: 2, dash: LEVEL_DASHES[place % 3] };
  return { ...at, name: plain(name), line, hovertemplate: `%{y}<extra>${plain(name)}</extra>` };
}

/** plotly.js reads some HTML in names. */
function plain(name) {
  return name.replace(/[<>&]/g, "");
}

function put(id, traces, layout) {
  Plotly.react(at(id), traces, layout, CONFIG);
}

/** The page's colours, as the theme has them now. */
function colours() {
  const style = getComputedStyle(document.documentElement);
  const get = (name) => style.getPropertyValue(`--${name}`).trim();
  const series = [get("series-1"), get("series-2"), get("series-3")];
  return {
    text: get("text"), quiet: get("quiet"), card: get("card"), line: get("line"), grid: get("grid"), objective: get("objective"),
    series, series1: series[0], series2: series[1], series3: series[2],
  };
}
