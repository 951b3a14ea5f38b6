// The page's life: ask for the key where one is needed, then for what is new once a second, and draw it.
//
// The key lives in one variable here and travels in the Authorization header: never in a URL, a cookie or the browser's
// storage.  Who has none sees none of the server's data: the files of this page are the same for everybody.

import { drawCharts, drawLadder } from "./charts.js";
import { drawAnswer, drawParts, steers } from "./parts.js";

const PERIOD_MS = 1000;
const SLOWEST_MS = 10000;
const KEPT_SECONDS = 900;
const at = (id) => document.getElementById(id);

let key = "";
let state = null;
let points = [];
let heardAt = 0;
let timer = 0;
let pauseMs = PERIOD_MS;
let isAsking = false;

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(key ? { Authorization: `Bearer ${key}` } : {}) };
  const answer = await fetch(path, { ...options, headers, cache: "no-store", credentials: "omit" });
  const body = await answer.json();
  if (!answer.ok) throw new Refused(answer.status, body.error?.message ?? `status ${answer.status}`);
  return body;
}

// --- the loop -------------------------------------------------------------------------------------------------------

async function look() {
  clearTimeout(timer);
  if (isAsking || document.hidden) return;
  isAsking = true;
  try {
    take(await ask(`/admin/dashboard?since=${points.at(-1)?.at ?? 0}`));
    pauseMs = PERIOD_MS;
  } catch (error) {
    if (!refused(error)) return;
    pauseMs = Math.min(SLOWEST_MS, pauseMs * 2);
  } finally {
    isAsking = false;
  }
  timer = setTimeout(look, pauseMs);
}

function take(news) {
  points = [...points, ...news.points].filter((point) => point.at > news.now - KEPT_SECONDS);
  state = { ...news, points };
  heardAt = performance.now();
  trouble("");
  at("gate").hidden = true;
  at("panel").hidden = false;
  at("forget").hidden = !key;
  draw();
}

/** What is to be done about an answer that is none; whether to go on asking. */
function refused(error) {
  if (error instanceof Refused && (error.status === 401 || error.status === 403)) {
    const hadKey = key !== "";
    forget();
    if (error.status === 403 && !hadKey) trouble(error.message);
    else openGate(hadKey ? error.message : "");
    return false;
  }
  const since = heardAt ? ` What is shown is ${seconds()} old.` : "";
  trouble(error instanceof Refused ? error.message : `The server does not answer.${since}`);
  return true;
}

function draw() {
  drawParts(state);
  drawCharts(state);
  drawLadder(state, document.querySelector("input[name=axis]:checked").value);
}

function trouble(words) {
  at("trouble").hidden = !words;
  at("trouble").textContent = words;
}

function seconds() {
  return `${Math.round((performance.now() - heardAt) / 1000)} s`;
}

// --- the key --------------------------------------------------------------------------------------------------------

function openGate(why) {
  at("panel").hidden = true;
  at("gate").hidden = false;
  at("key-answer").textContent = why;
  at("key").focus();
}

function forget() {
  key = "";
  state = null;
  points = [];
  clearTimeout(timer);
  at("panel").hidden = true;
  at("forget").hidden = true;
}

at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  at("key").value = "";
  look();
});
at("forget").addEventListener("click", () => {
  forget();
  openGate("");
});

// --- what can be chosen ---------------------------------------------------------------------------------------------

async function tell(path, body, button, words) {
  button.disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    drawAnswer(words(await ask(path, { method: "POST", headers, body: JSON.stringify(body) })));
  } catch (error) {
    drawAnswer(error instanceof Refused ? error.message : "The server does not answer.", true);
  }
  button.disabled = false;
  look();
}

at("switch-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const variant = at("target").value;
  drawAnswer(`switching to ${variant} ...`);
  const words = (done) => `runs at ${variant}; no step could run for ${(done.stall_seconds * 1000).toFixed(1)} ms`;
  tell("/admin/switch", { variant }, at("switch"), words);
});
at("steer").addEventListener("click", () => {
  const on = !steers(state.control);
  tell("/admin/control", { on }, at("steer"), () => (on ? "the policy decides" : "the policy is stopped"));
});
for (const choice of document.querySelectorAll("input[name=axis]")) {
  choice.addEventListener("change", () => state && drawLadder(state, choice.value));
}
at("theme").value = document.documentElement.dataset.theme ?? "auto";
at("theme").addEventListener("change", (event) => {
  const theme = event.target.value;
  if (theme === "auto") {
    delete document.documentElement.dataset.theme;
    localStorage.removeItem("lamella-theme");
  } else {
    document.documentElement.dataset.theme = theme;
    localStorage.setItem("lamella-theme", theme);
  }
  if (state) draw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => state && draw());
document.addEventListener("visibilitychange", look);
setInterval(() => {
  at("age").textContent = state ? (performance.now() - heardAt < 3 * PERIOD_MS ? "live" : `${seconds()} old`) : "";
}, PERIOD_MS);

const access = await fetch("/dashboard/access").then((answer) => answer.json());
if (access.needs_key) openGate("");
else look();
