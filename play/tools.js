// What all views use: elements, numbers, colours, and the server's answers.

// ---- small tools. Text of users and models becomes text nodes: it is never read as HTML.
const SVG = ["svg", "path", "line", "circle", "text"];
function el(tag, ...parts) {  // el("p", {class: "soft", click: work}, "text", other)
  const namespace = SVG.includes(tag) ? "2000/svg" : "1999/xhtml";
  const node = document.createElementNS(`http://www.w3.org/${namespace}`, tag);
  for (const part of parts.flat(2)) {
    if (typeof part !== "object" || part instanceof Node) node.append(part);
    else for (const [key, value] of Object.entries(part)) {
      if (typeof value === "function") node.addEventListener(key, value);
      else if (value !== undefined) node.setAttribute(key, value);
    }
  }
  return node;
}
const byId = id => document.getElementById(id);
const fill = (id, ...parts) => byId(id).replaceChildren(...parts.flat(2));
const say = (node, text) => node.textContent === text || (node.textContent = text);  // aloud, if it is news
const on = (ids, work) => ids.split(" ").forEach(id => byId(id).addEventListener("input", work));
const number = id => Number(byId(id).value);
const range = (low, high) => Array.from({length: high - low + 1}, (_, i) => low + i);  // both ends
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
const between = (low, x, high) => Math.min(Math.max(x, low), high);
const shown = piece => piece.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/ /g, "·") || "∅";
const round = (x, digits = 3) => typeof x !== "number" ? "–"
  : Number.isInteger(x) || Math.abs(x) >= 1000 ? Math.round(x).toLocaleString("en") : x.toPrecision(digits);
const exact = (x, text = round(x)) => el("span", {"data-value": x ?? "", title: x ?? ""}, text);
const facts = (...list) => fill("facts", list.map(([id, name, x, text]) =>
  el("div", el("dt", name), el("dd", {id}, exact(x, text)))));
const table = (kind, columns, rows) => el("table", {class: kind}, el("thead", el("tr", columns.map(name =>
  el("th", {scope: "col"}, name)))), el("tbody", rows.map(row => el("tr", row))));
function options(id, list, chosen) {  // list: [value, text]
  fill(id, list.map(([value, text = value]) => el("option", {value}, text)));
  byId(id).value = list.some(([value]) => String(value) === state[id]) ? state[id] : chosen;
}
const cutNote = (id, {pieces, cut}) => fill(id, cut
  ? `Only the first ${pieces.length} tokens count here; ${cut} characters are left out.` : "");
function arrows(node, moves, work) {  // moves: what each key hands to work
  node.addEventListener("keydown", event => {
    if (!(event.key in moves)) return;
    event.preventDefault();
    work(moves[event.key]);
  });
}
const VIRIDIS = "440154 482878 3e4a89 31688e 26828e 1f9e89 35b779 6dcd59 b4de2c fde725".split(" ")
  .map(hex => [0, 2, 4].map(i => parseInt(hex.slice(i, i + 2), 16)));
function viridis(t) {  // 0..1 -> [red, green, blue]: colours that colour-blind people can tell apart, too
  const x = between(0, t || 0, 1) * 9, i = Math.min(Math.floor(x), 8);
  return VIRIDIS[i].map((from, c) => Math.round(from + (VIRIDIS[i + 1][c] - from) * (x - i)));
}
function paint(node, t) {  // over a luminance of 0.179 black letters have more contrast than white ones
  const rgb = viridis(t), [r, g, b] = rgb.map(v => v <= 10 ? v / 3294 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  node.style.backgroundColor = `rgb(${rgb})`;
  node.style.color = 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000" : "#fff";
  return node;
}

// ---- the server. leaving: its signal ends all that a view has begun, once another one is shown.
let leaving = new AbortController(), formulas = {}, runs = [], chosen = "", state = {};
function url(path, query = {}) {
  const token = new URLSearchParams(location.search).get("token");
  return `${path}?${new URLSearchParams({...query, ...(token && {token})})}`;
}
async function ask(path, body, signal = leaving.signal) {
  const post = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)};
  const answer = await fetch(path, {...(body && post), signal});
  if (answer.ok) return answer;
  const {error} = await answer.json().catch(() => ({}));
  throw new Error(error?.message ?? `${path}: status ${answer.status}`);
}
const get = async (path, query) => (await ask(url(path, query))).json();
const api = async (path, body, signal) => (await ask(url(`api/${path}`), body, signal)).json();
const model = () => ({run: state.run, file: state.file ?? ""});
const onText = (path, signal, more) => api(path, {...model(), text: byId("text").value, ...more}, signal);
const choice = () => ({temperature: number("temperature"), top_p: number("top_p"), seed: number("seed")});
function alarm(message) {  // says what went wrong; what is shown below it is of the time before, and dimmed
  byId("alert").textContent = message;
  byId("main").classList.toggle("stale", message !== "");
}
async function attempt(work) {
  try {
    await work();
  } catch (error) {
    if (error.name === "AbortError") return;
    alarm(error.message);
    byId("main").setAttribute("aria-busy", false);
  }
}
function latest(id, work, wait = 0) {  // only the newest request counts: it aborts the one before it
  const box = byId(id), left = leaving.signal;
  let timer, newest = new AbortController();
  return () => {
    clearTimeout(timer);
    newest.abort();
    const mine = newest = new AbortController();
    box.setAttribute("aria-busy", true);
    alarm("");
    timer = setTimeout(async () => {
      await attempt(() => work(AbortSignal.any([mine.signal, left])));
      if (mine === newest) box.setAttribute("aria-busy", false);
    }, wait);
  };
}
async function streamed(path, body, take) {  // take() gets each object that is sent, until #stop is pressed
  const mine = new AbortController();
  alarm("");
  byId("stop").onclick = () => mine.abort();
  [byId("stop").disabled, byId("go").disabled] = [false, true];
  try {
    const answer = await ask(url(path), body, AbortSignal.any([mine.signal, leaving.signal]));
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = "", part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const line of lines.filter(line => line.startsWith("data: {"))) {
        const data = JSON.parse(line.slice(6));
        if (data.error) throw new Error(data.error.message);
        take(data);
      }
    }
  } finally {
    if (!leaving.signal.aborted && byId("stop")) [byId("stop").disabled, byId("go").disabled] = [true, false];
  }
}
