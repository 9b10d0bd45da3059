// The page: asks for the runs once a second and draws what changed. Every number shown comes from /runs.json as it is.

import { el, figure, isNumber, legend, lineChart, say, stackedChart, swimlane, table } from "/draw.js";

const PAUSE = 1000;
const CURVES = [
  ["return", "Return of an episode", []],
  ["val_accuracy", "Validation accuracy at the end, %", []],
  ["val_loss", "Validation loss at the end, nats", []],
  ["entropy", "Entropy of the policy, nats", [0]],
  ["kl", "Change of the policy by an update, nats", [0]],
  ["seed_params", "Parameters in seeds at the end", [0]],
  ["surprise", "Surprise at recorded decisions, nats", [0]],
  ["held_out_surprise", "Surprise at decisions that are held out, nats", [0]],
];
const OPERATIONS = [["wait", 7], ["germinate", 4], ["advance", 5], ["cull", 1], ["fossilize", 2], ["change_blueprint", 3], ["retarget", 6]];
const TILES = [
  ["return", "last return"], ["val_accuracy", "validation, %"], ["entropy", "entropy, nats"], ["seconds", "seconds per round"],
  ["memory_bytes", "memory, MiB", (value) => value / 2 ** 20], ["seed_success", "seeds that succeed, %", (value) => 100 * value],
];
const LISTED = ["return", "val_accuracy", "val_loss", "entropy", "kl", "seed_params", "refused", "rolled_back", "seconds"];
const STAGES = ["germinated", "training", "blending", "shadowing", "probationary", "fossilized", "culled", "embargoed", "resetting"];
const MOST_LANES = 8, MOST_LISTED = 60;

const place = (id) => document.getElementById(id);
const hidden = new Set();
let runs = [], seen = null, drawnFor = "";

const widthOf = (node, columns) => {
  const whole = node.clientWidth || 360;
  return Math.max(280, Math.min(columns && whole > 900 ? (whole - 28) / 2 : whole, 1140));
};
const rowsOf = (run) => run.rows;
const lastOf = (run) => run.rows[run.rows.length - 1];
const chosen = () => runs.find((run) => run.name === place("run").value) ?? runs[0];

function options(select, entries) {
  const words = JSON.stringify(entries), before = select.value;
  if (select.dataset.words === words) return;
  select.dataset.words = words;
  select.replaceChildren(...entries.map(([value, text]) => el("option", { value }, text)));
  if (entries.some(([value]) => value === before)) select.value = before;
}

function drawRuns() {
  const labels = runs.map((run, number) => {
    const box = el("input", { type: "checkbox", id: `run-${number}` });
    box.checked = !hidden.has(run.name);
    box.addEventListener("change", () => { box.checked ? hidden.delete(run.name) : hidden.add(run.name); drawCurves(); });
    const words = `${run.task}, seed ${say(run.seed)}: ${run.rounds} of ${say(run.wanted)} rounds`;
    return el("label", { for: `run-${number}` }, box, el("span", { class: `swatch c${number % 8}` }), run.name, " ", el("small", {}, words));
  });
  place("runs").replaceChildren(...labels);
  options(place("run"), runs.map((run) => [run.name, run.name]));
  place("pick-run").hidden = runs.length < 2;
}

function drawCurves() {
  const shown = runs.map((run, number) => [run, number % 8]).filter(([run]) => !hidden.has(run.name));
  const width = widthOf(place("curves"), true), parts = [];
  for (const [name, title, include] of CURVES) {
    const series = shown.filter(([run]) => run.rows.some((row) => isNumber(row[name]))).map(([run, colour]) => ({
      name: run.name, colour,
      points: rowsOf(run).map((row) => [row.round, row[name]]),
      marks: run.anomalies.filter((each) => each.series === name).map((each) => [each.round, each.value, `round ${each.round}: ${each.says}`]),
    }));
    if (series.length) parts.push(figure(title, lineChart(width, title, "round", series, include)));
  }
  place("curves").replaceChildren(...(parts.length ? parts : [el("p", { class: "remark" }, "No round was finished yet.")]));
}

function drawOne(run) {
  const row = lastOf(run) ?? {}, tiles = [["round", `${run.rounds} of ${say(run.wanted)}`, "rounds"]];
  for (const [name, words, scaled] of TILES) {
    if (name in row) tiles.push([name, say(isNumber(row[name]) && scaled ? scaled(row[name]) : row[name]), words]);
  }
  tiles.push(["anomalies", String(run.anomalies.length), "anomalies"]);
  place("tiles").replaceChildren(...tiles.map(([name, value, words]) =>
    el("div", { class: "tile" }, el("span", {}, words), el("strong", { "data-number": name }, value))));
  place("story").replaceChildren(...run.story.map((each) =>
    el("li", { class: each.topic.split(" ")[0] }, `${each.topic}: ${each.text}`)));
}

function drawLanes(run) {
  const numbers = [...new Set(run.lanes.map((lane) => lane.round))].sort((a, b) => b - a);
  options(place("round"), [["", "newest"], ...numbers.map((number) => [String(number), String(number)])]);
  const wanted = Number(place("round").value) || numbers[0], node = place("lanes"), width = widthOf(node, false), parts = [];
  for (const lane of run.lanes.filter((each) => each.round === wanted)) {
    lane.envs.forEach((env, number) => {
      const goes = lane.played < lane.decisions ? `, ${lane.played} of ${lane.decisions} decisions so far` : "";
      const title = `Round ${lane.round}, ${lane.task}, environment ${number}${goes}`;
      const drawn = figure(title, swimlane(width, title, lane, env));
      drawn.className = "lane-figure";
      parts.push(drawn);
    });
  }
  const none = el("p", { class: "remark" }, "No environment of this run is watched (--watch-envs).");
  node.replaceChildren(...(parts.length ? parts.slice(0, MOST_LANES) : [none]));
}

function drawStacks(run) {
  const width = widthOf(place("stacks"), true), rows = rowsOf(run), xs = rows.map((row) => row.round), parts = [];
  const known = OPERATIONS.filter(([name]) => rows.some((row) => row[`share_${name}`] > 0));
  if (known.length) {
    const mix = known.map(([name, colour]) => ({ name, colour, values: rows.map((row) => 100 * (row[`share_${name}`] ?? 0)) }));
    parts.push(figure("Operations chosen, % of decisions", legend(mix.map((each) => [`c${each.colour}`, each.name.replace("_", " ")])),
      stackedChart(width, "Operations chosen, % of decisions", "round", xs, mix, 100)));
  }
  if (rows.some((row) => isNumber(row.host_seconds))) {
    const phases = [
      ["training hosts", (row) => row.host_seconds - row.validation_seconds],
      ["validating them", (row) => row.validation_seconds],
      ["the rest of collecting", (row) => Math.max(row.collect_seconds - row.host_seconds, 0)],
      ["learning", (row) => row.learn_seconds],
    ].map(([name, of], colour) => ({ name, colour, values: rows.map(of) }));
    parts.push(figure("Time of a round, seconds", legend(phases.map((each) => [`c${each.colour}`, each.name])),
      stackedChart(width, "Time of a round, seconds", "round", xs, phases)));
  }
  place("stacks").replaceChildren(...parts);
}

const share = (value) => (isNumber(value) ? `${(100 * value).toFixed(0)} %` : "–");

function drawTables(run) {
  const kinds = run.blueprints.map((line) => [line.blueprint, line.germinated, line.fossilized, line.culled, share(line.success),
    say(line.gain), say(line.params), isNumber(line.multiplier) ? `×${line.multiplier.toFixed(2)}` : "–"]);
  place("blueprints").replaceChildren(kinds.length
    ? table(["blueprint", "germinated", "fossilized", "culled", "success", "mean gain", "parameters", "cost"], kinds,
      "Seeds of all rounds; gain in points of validation accuracy from germination to the end")
    : el("p", { class: "remark" }, "No seed was counted."));
  const found = run.anomalies.slice(-MOST_LISTED).reverse().map((each) =>
    [each.round, each.series, say(each.value), each.severity, `${each.rule}: ${each.says}`]);
  place("anomalies").replaceChildren(found.length
    ? table(["round", "number", "value", "severity", "what"], found, "The newest first")
    : el("p", { class: "remark" }, "None."));
  const lines = Object.entries(run.trends).map(([name, line]) => [name.replaceAll("_", " "), line.word, say(line.slope), say(line.error), line.samples]);
  place("trends").replaceChildren(...(lines.length ? [table(["trend", "", "per hour", "error", "rounds"], lines, "Over the last hour at most")] : []));
  const names = LISTED.filter((name) => run.rows.some((row) => name in row));
  const rows = run.rows.slice(-MOST_LISTED).reverse().map((row) => [row.round, ...names.map((name) => say(row[name]))]);
  place("numbers").replaceChildren(table(["round", ...names.map((name) => name.replaceAll("_", " "))], rows, "The newest first"));
}

function draw() {
  if (!runs.length) return;
  drawRuns();
  drawCurves();
  const run = chosen();
  drawOne(run);
  drawLanes(run);
  drawStacks(run);
  drawTables(run);
  drawnFor = `${window.innerWidth}`;
  document.body.dataset.rounds = runs.map((each) => each.rounds).join(",");
}

async function ask() {
  const state = place("state");
  try {
    const answer = await fetch("/runs.json", { headers: seen ? { "If-None-Match": seen } : {} });
    if (answer.status === 200) {
      seen = answer.headers.get("ETag");
      runs = (await answer.json()).runs;
      draw();
    } else if (answer.status !== 304) {
      throw new Error(`status ${answer.status}`);
    }
    state.textContent = `read at ${new Date().toLocaleTimeString()}`;
    state.className = "";
  } catch (error) {
    state.textContent = `the server is away (${error.message}); what is shown was read before`;
    state.className = "lost";
  }
  setTimeout(ask, PAUSE);
}

place("stages").replaceChildren(...legend(STAGES.map((name) => [`s-${name}`, `${name[0].toUpperCase()} ${name}`])).children);
for (const id of ["run", "round"]) place(id).addEventListener("change", draw);
window.addEventListener("resize", () => { if (drawnFor !== `${window.innerWidth}`) draw(); });
ask();
