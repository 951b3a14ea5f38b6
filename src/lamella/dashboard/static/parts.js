// All that is text and boxes.  Everything the server says is set as text, never as HTML.

const at = (id) => document.getElementById(id);
const DASH = "–";
const CLASSES = [2, 3, 4, 5, 6, 8, 16];

export function drawParts(state) {
  const running = state.rungs.find((rung) => rung.is_running);
  at("model").textContent = state.model;
  drawHealth(state);
  drawRunning(running, state);
  drawTiles(state, running);
  drawTargets(state);
  drawSwitches(state);
  drawTable(state);
}

export function drawAnswer(words, isBad = false) {
  at("switch-answer").textContent = words;
  at("switch-answer").className = isBad ? "bad" : "quiet";
}

// --- how things are called ------------------------------------------------------------------------------------------

export function bytes(count) {
  if (count === null || count === undefined) return DASH;
  return count >= 2 ** 30 ? `${(count / 2 ** 30).toFixed(2)} GiB` : `${(count / 2 ** 20).toFixed(0)} MiB`;
}

export function ms(seconds) {
  if (seconds === null || seconds === undefined) return DASH;
  return seconds >= 10 ? `${seconds.toFixed(1)} s` : `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
}

export function kl(value) {
  return value === null || value === undefined ? DASH : value.toPrecision(2);
}

/** The colour class of so many bits: that of the nearest precision. */
function bitsClass(bits) {
  return CLASSES.reduce((best, each) => (Math.abs(each - bits) < Math.abs(best - bits) ? each : best));
}

function clock(state, unixTime) {
  const here = new Date(Date.now() - (state.now - unixTime) * 1000);
  return here.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
}

function element(tag, words = "", className = "") {
  const made = document.createElement(tag);
  made.textContent = words;
  made.className = className;
  return made;
}

// --- what runs ------------------------------------------------------------------------------------------------------

function drawHealth(state) {
  const [words, look] = state.is_draining
    ? ["shutting down", "bad"]
    : state.is_ready ? ["ready", "good"] : ["no engine answers", "bad"];
  if (at("health").textContent !== words) at("health").textContent = words;
  at("health").className = `pill ${look}`;
}

function drawRunning(running, state) {
  at("variant").textContent = running?.name ?? DASH;
  at("variant-facts").textContent = running
    ? `${running.bits_per_weight.toFixed(2)} bits a weight, ${bytes(running.n_bytes)}`
    : "";
  const layers = running?.layers ?? [];
  const drawn = JSON.stringify(layers);
  if (at("layers").dataset.drawn !== drawn) {
    at("layers").dataset.drawn = drawn;
    drawLayers(layers);
  }
  drawPolicy(state);
}

function drawLayers(layers) {
  at("layers").replaceChildren(
    ...layers.map((layer, index) => {
      const box = element("span", short(layer), `bits-${bitsClass(layer.bits)}`);
      box.title = `layer ${index}: ${layer.precision}, ${layer.bits.toFixed(2)} bits`;
      return box;
    }),
  );
  const counts = new Map();
  for (const layer of layers) {
    const words = isPlain(layer) ? layer.precision : `about ${bitsClass(layer.bits)} bits, mixed`;
    const found = counts.get(words) ?? { count: 0, bits: layer.bits };
    counts.set(words, { ...found, count: found.count + 1 });
  }
  const groups = [...counts].sort(([, one], [, other]) => other.bits - one.bits);
  at("legend").replaceChildren(
    ...groups.map(([words, { count, bits }]) => {
      const entry = element("span");
      entry.append(element("i", "", `bits-${bitsClass(bits)}`), `${count} × ${words}`);
      return entry;
    }),
  );
  const said = groups.map(([words, { count }]) => `${count} of ${words}`).join(", ");
  at("layers").setAttribute("aria-label", `Precision of the ${layers.length} layers: ${said || "not known"}`);
}

function isPlain(layer) {
  return !layer.precision.includes(" ");
}

/** What fits into a narrow box: the bits. */
function short(layer) {
  return `${Number(layer.bits.toFixed(1))}`;
}

/** Whether a policy decides now: it is on, and no choice by hand stands. */
export function steers(control) {
  return control.is_on && !control.is_held;
}

function drawPolicy(state) {
  const control = state.control;
  at("policy").textContent = policyWords(state, control);
  at("steer").hidden = !control;
  if (control) at("steer").textContent = steers(control) ? "Stop the policy" : "Let the policy decide";
}

function policyWords(state, control) {
  if (!control) return "No policy: the variant changes when somebody asks for it.";
  if (steers(control)) return `Policy ${control.policy} chooses the variant: ${control.reason}.`;
  if (!control.is_on) return `Policy ${control.policy} is stopped: the variant changes when somebody asks for it.`;
  if (control.held_until === null) return "A choice by hand stands until the policy may decide again.";
  return `A choice by hand stands until ${clock(state, control.held_until)}; then policy ${control.policy} decides again.`;
}

// --- figures --------------------------------------------------------------------------------------------------------

function drawTiles(state, running) {
  const last = state.points.at(-1);
  drawLatency("ttft", state, last, "ttft_p95_seconds", "ttft_seconds");
  drawLatency("tpot", state, last, "tpot_p95_seconds", "tpot_seconds");
  put("requests", last ? `${last.n_running} of ${state.n_sequences}` : DASH, last ? `run; ${last.n_waiting} wait` : "");
  put("speed", last?.tokens_per_second == null ? DASH : last.tokens_per_second.toFixed(1), "of all requests together");
  const ceiling = state.control?.memory_bytes;
  const free = last?.available_bytes == null ? "" : `${bytes(last.available_bytes)} free here`;
  put("memory", bytes(last?.engine_bytes), [ceiling ? `ceiling ${bytes(ceiling)}` : "", free].filter(Boolean).join(", "));
  put("power", last?.watts == null ? DASH : `${last.watts.toFixed(1)} W`, powerNote(state, last));
  const known = running?.kl == null ? "not known" : running.kl_is_measured ? "measured, nats a token" : "as planned, nats a token";
  put("kl", kl(running?.kl), known);
}

function put(name, words, note) {
  at(`tile-${name}`).textContent = words;
  at(`note-${name}`).textContent = note;
}

/** The worst class against its own promise; where nothing is promised, the slowest. */
function drawLatency(name, state, last, measured, promised) {
  const promises = new Map((state.control?.promises ?? []).map((promise) => [promise.class_name, promise[promised]]));
  const seen = (last?.latencies ?? []).filter((latency) => latency[measured] !== null);
  const share = (latency) => latency[measured] / (promises.get(latency.class_name) ?? Infinity);
  const worst = seen.sort((one, other) => share(other) - share(one) || other[measured] - one[measured])[0];
  const promise = worst ? promises.get(worst.class_name) : [...promises.values()].find((value) => value != null);
  const of = worst && seen.length > 1 ? `${worst.class_name}, ` : "";
  const isOver = worst && promise != null && worst[measured] > promise;
  const asked = promise == null ? "no objective" : `${isOver ? "over the objective of" : "objective"} ${ms(promise)}`;
  put(name, ms(worst?.[measured]), worst ? `${of}${asked}` : `no request lately; ${asked}`);
  at(`tile-${name}`).className = isOver ? "bad" : "";
}

function powerNote(state, last) {
  if (last?.watts == null) return state.why_no_watts ? "this machine does not say" : "not known yet";
  return state.control?.power_watts ? `ceiling ${state.control.power_watts} W` : "";
}

// --- changes and the ladder -----------------------------------------------------------------------------------------

function drawTargets(state) {
  const names = state.rungs.map((rung) => rung.name);
  const select = at("target");
  if (JSON.stringify([...select.options].map((option) => option.value)) !== JSON.stringify(names)) {
    const chosen = select.value;
    select.replaceChildren(...names.map((name) => new Option(name, name)));
    if (names.includes(chosen)) select.value = chosen;
  }
  for (const option of select.options) {
    const rung = state.rungs.find((each) => each.name === option.value);
    const words = `${rung.name}${rung.is_running ? " (runs)" : rung.is_warm ? " (in memory)" : ""}`;
    if (option.text !== words) option.text = words;
  }
}

function drawSwitches(state) {
  const drawn = JSON.stringify(state.changes);
  const list = at("switches");
  if (list.dataset.drawn === drawn) return;
  list.dataset.drawn = drawn;
  list.replaceChildren(
    ...[...state.changes].reverse().map((change) => {
      const entry = element("li");
      const words = change.before === null ? change.after : `${change.before} → ${change.after}`;
      entry.append(element("time", clock(state, change.at)), element("strong", words));
      entry.append(element("span", `${change.reason} (${change.by})`, "reason"));
      if (change.failure) entry.append(element("span", `It did not happen: ${change.failure}`, "bad"));
      return entry;
    }),
  );
}

function drawTable(state) {
  const drawn = JSON.stringify(state.rungs);
  const table = at("ladder-table");
  if (table.dataset.drawn === drawn) return;
  table.dataset.drawn = drawn;
  table.replaceChildren(
    ...state.rungs.map((rung) => {
      const row = element("tr");
      const name = element("th", rung.is_running ? `${rung.name} (runs)` : rung.name);
      name.scope = "row";
      const cells = [
        bytes(rung.n_bytes),
        rung.bits_per_weight.toFixed(2),
        kl(rung.kl) + (rung.kl !== null && !rung.kl_is_measured ? " planned" : ""),
        rung.ms_per_token === null ? DASH : rung.ms_per_token.toFixed(1),
      ];
      row.append(name, ...cells.map((cell) => element("td", cell)));
      return row;
    }),
  );
}
