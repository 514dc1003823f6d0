// Which view of which run is shown: the address decides.

const VIEWS = {runs: showRuns, train: showTrain, read: showRead, tokens: showTokens, look: showLook,
  break: showBreak, compare: showCompare, chat: showChat};
const runOf = name => runs.find(run => run.name === name);
const hash = parts => "#" + new URLSearchParams(
  Object.entries(parts).filter(([, value]) => value !== "" && value !== undefined));
const reroute = () => attempt(route);
async function loadRuns() {
  ({runs, chosen} = await get("api/runs"));
}
function remember(changes, push = false) {
  Object.assign(state, changes);
  history[push ? "pushState" : "replaceState"](null, "", hash(state));
  drawNav();
}
function drawNav() {
  const {page, run, file, text} = state;
  const names = Object.keys(VIEWS).filter(name => name !== "chat" || runOf(run)?.chat);
  fill("views", names.map(name => el("li", el("a", {href: hash({page: name, run, file, text}),
    "aria-current": name === page ? "page" : undefined}, name[0].toUpperCase() + name.slice(1)))));
}
function sent(...works) {  // what a view does with its text: now, and whenever the button is pressed
  document.querySelector(".ask").addEventListener("submit", () => works.forEach(work => work()));
  works.forEach(work => work());
}
function show(label) {  // the value of a slider beside its name
  const output = label.querySelector("output:not([data-own])");
  if (output) output.textContent = label.querySelector("input").value;
}
function lay() {  // a copy of the view's template, with what views share
  const main = byId("main");
  main.replaceChildren(byId(`show-${state.page}`).content.cloneNode(true));
  main.querySelector("[data-sliders]")?.append(byId("sliders").content.cloneNode(true));
  main.querySelector(".ask:not([data-own])")?.prepend(el("label", {for: "text"}, "Text"),
    el("textarea", {id: "text", rows: 4, spellcheck: false}));
  for (const input of main.querySelectorAll("input, textarea")) {
    if (input.type === "checkbox") input.checked = input.id in state;
    else if (input.id in state) input.value = state[input.id];
  }
  main.querySelectorAll("label").forEach(show);
  for (const place of main.querySelectorAll("[data-formulas]")) {
    const keys = place.dataset.formulas.split(/\s+/).filter(key => formulas[key]);
    place.after(...keys.map(key => {
      const {name, formula, file, line} = formulas[key], href = `${url(`source/${file}`)}#L${line}`;
      return el("details", {id: key}, el("summary", `formula: ${name}`), el("p", el("code", formula), " ",
        el("a", {href}, `${file}, line ${line}`)));
    }));
  }
}
async function route() {
  leaving.abort();
  leaving = new AbortController();
  alarm("");
  byId("main").setAttribute("aria-busy", true);
  await loadRuns();
  state = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  if (!VIEWS[state.page]) state.page = chosen ? "train" : "runs";
  if (!runOf(state.run)) state.run = chosen || (runs.find(run => run.state === "training") ?? runs[0])?.name;
  if (!state.run) state = {page: "runs"};
  const {files = [], chat} = runOf(state.run) ?? {};
  const mute = state.page === "chat" && !chat;
  if (mute) state.page = "train";
  if (!files.includes(state.file)) delete state.file;
  options("run", runs.map(run => [run.name]), state.run);
  options("file", [["", files[0] ?? "none"], ...files.slice(1).map(file => [file])], "");
  document.title = `${state.page}: ${state.run ?? "tinylm"}`;
  drawNav();
  lay();
  const about = ["runs", "train"].includes(state.page) ? {} : await get("api/model", model());
  if (byId("text")) byId("text").value ||= about.text;
  VIEWS[state.page](about);
  if (mute) byId("alert").textContent = `${state.run} has learned from no conversations: there is no chat.`;
  byId("main").setAttribute("aria-busy", false);
}
byId("main").addEventListener("submit", event => {
  event.preventDefault();
  if (byId("text")) remember({text: byId("text").value, at: undefined}, byId("text").value !== state.text);
});
byId("main").addEventListener("input", ({target}) => {
  if (target.tagName === "TEXTAREA" || !target.id) return;
  remember({[target.id]: target.type === "checkbox" ? target.checked || undefined : target.value});
  show(target.labels[0]);
});
on("run file", ({target}) => {
  const page = state.page === "runs" ? "train" : state.page;
  location.hash = hash({page, text: state.text, run: state.run, [target.id]: target.value});
});
addEventListener("hashchange", reroute);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", reroute);  // canvases are painted once
attempt(async () => formulas = await get("api/formulas")).then(reroute);
