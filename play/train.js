// The views that need no model: the list of runs, and a run as it learns. A function for each view, here and
// in views.js; the address holds what controls are set to, under their ids.

function showRuns() {
  const href = run => hash({page: "train", run: run.name});
  const ago = s => s < 90 ? `${Math.round(s)} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago`
    : s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`;
  function draw() {
    fill("live", runs.filter(run => run.state === "training").map(run =>
      el("a", {class: "go", href: href(run)}, `Follow ${run.name}, which is training now`)));
    const rows = runs.map(run => [el("td", el("a", {href: href(run)}, run.name)),
      el("td", exact(run.val_loss, round(run.val_loss, 4))), el("td", `${run.step} of ${run.max_iters}`),
      el("td", ago(run.age)), el("td", run.state)]);
    fill("list", rows.length ? table("runs", ["run", "val loss", "step", "last wrote", "state"], rows)
      : "None yet. Train one in seconds: python train.py config/tiny.py");
  }
  draw();
  const timer = setInterval(() => document.hidden || attempt(async () => {
    await loadRuns();
    draw();
  }), 3000);
  leaving.signal.addEventListener("abort", () => clearInterval(timer));
}

const SMALL = {lr: "learning rate", grad_norm: "gradient norm", tokens_per_second: "tokens/s",
  memory_mb: "memory, MB"};
function showTrain() {
  const losses = chart(byId("losses"), "train and val loss", 380, "step");
  const small = Object.entries(SMALL).map(([key, name]) =>
    [key, name, chart(byId("small").appendChild(el("div")), name, 150, "step")]);
  options("with", [["", "none"], ...runs.filter(run => run.name !== state.run).map(run => [run.name])], "");
  const names = [state.run, byId("with").value].filter(name => name), two = names.length > 1;
  const stores = names.map(name => ({name, rows: [], samples: [], run: {ladder: [], expected: {}}}));
  let last = 0, waits = false, newest = state.sample === undefined;
  byId("title").textContent = `How ${state.run} learns`;
  function drawSample() {
    const {samples} = stores[0], slider = byId("sample");
    slider.max = Math.max(samples.length - 1, 0);
    slider.value = newest ? slider.max : state.sample ?? slider.value;
    const {step = 0, text = "None yet: a run writes one at its end."} = samples[slider.value] ?? {};
    slider.labels[0].querySelector("output").textContent = `step ${step}`;
    slider.disabled = samples.length < 2;
    byId("written").textContent = text;
    say(byId("more"), samples.length > 1 ? "Move the slider to the left: so it wrote when it knew less."
      : "To see how the writing changes, train with --sample_interval=50: a sample every 50 steps.");
  }
  function draw() {
    [last, waits] = [performance.now(), false];
    const {rows, run} = stores[0], end = run.max_iters, step = rows.at(-1)?.step ?? 0;
    function of(rows, key) {  // 2,000 of a long run's points are enough for a picture
      const points = rows.filter(row => Number.isFinite(row[key])).map(row => [row.step, row[key]]);
      const every = Math.ceil(points.length / 2000);
      return points.filter((_, i) => (points.length - 1 - i) % every === 0);
    }
    const line = ({name, rows}, key, what, kind, dots) =>
      ({name: two ? `${what}, ${name}` : what, points: of(rows, key), class: kind, dots});
    const band = Object.entries(run.expected).map(([step, [low, high]]) => [Number(step), low, high]);
    losses({end, band, levels: run.ladder, lines: stores.flatMap((store, i) => [
      line(store, "loss", "train", i ? "dashed" : ""),
      line(store, "val_loss", "val", i ? "b dashed" : "b", true)])});
    for (const [key, what, drawOne] of small) {
      drawOne({end, lines: stores.map((store, i) => line(store, key, what, i ? "b dashed" : ""))});
    }
    const [train, val] = ["loss", "val_loss"].map(key => of(rows, key).at(-1) ?? []);
    const perplexity = val.length ? Math.exp(val[1]) : null;
    facts(["step", run.finished ? "finished" : "training", step, `step ${step} of ${end ?? "?"}`],
      ["train", "train loss, last batch", train[1]], ["val", "val loss", val[1], round(val[1], 4)],
      ["perplexity", "perplexity: as if choosing among", perplexity, `${round(perplexity, 2)} tokens`]);
    const [due, low, high] = band.find(([step]) => step === val[0]) ?? [];
    const where = val[1] < low ? "below" : val[1] > high ? "above" : "in";
    say(byId("normal"), (band.length ? "The green band is where a run of this config normally is. " : "")
      + (due === undefined ? "" : `At step ${due} the val loss is ${where} it: ${low} to ${high}.`));
    const [mine, other] = stores.map(store => store.run.dataset);
    say(byId("apart"), !mine || !other || mine === other ? ""
      : `The two runs read different data, ${mine} and ${other}: a lower loss here is not a better model. `
        + "Compare lets both read one text.");
    for (const rung of ["uniform", "letters", "bigram", "entropy"]) {
      byId(`ladder_${rung}`).hidden = !run.ladder.some(({key}) => key === rung);
    }
    fill("ladder", run.ladder.map(({name, nats, meaning}) =>
      [el("dt", `${name} `, exact(nats)), el("dd", meaning)]));
  }
  function soon() {  // at most twice a second, and never in a hidden tab: the run needs the CPU
    if (waits || document.hidden) return;
    waits = true;
    setTimeout(() => requestAnimationFrame(draw), Math.max(0, last + 500 - performance.now()));
  }
  for (const store of stores) {
    let lost = false;
    const source = new EventSource(url("api/follow", {run: store.name}));
    const take = (name, work) => source.addEventListener(name, event => {
      work(event.data && JSON.parse(event.data));
      soon();
    });
    take("open", () => {  // all rows are sent first, also after the connection was lost
      store.rows = [];
      if (lost) alarm("");
      lost = false;
    });
    take("message", ({error}) => {  // the stream's last one
      source.close();
      alarm(error.message);
    });
    source.addEventListener("error", () => {
      lost = true;
      if (source.readyState === EventSource.CLOSED) attempt(() => ask(source.url));  // it says why
      else alarm("The server does not answer. Is python -m play still running?");
    });
    take("reset", () => store.rows = []);
    take("rows", rows => store.rows.push(...rows));
    take("run", run => store.run = run);
    take("samples", samples => {
      store.samples = samples;
      drawSample();
    });
    leaving.signal.addEventListener("abort", () => source.close());
  }
  document.addEventListener("visibilitychange", soon, {signal: leaving.signal});
  on("with", reroute);
  on("sample", () => {
    newest = byId("sample").value === byId("sample").max;
    state.sample = byId("sample").value;
    drawSample();
  });
}
