// Bars, line charts and heat maps. Each can be read with the keyboard, too.

function bars(id, rows, peak) {  // rows: {name, value, text, class}
  fill(id, rows.map(row => {
    const bar = el("i");
    bar.style.width = `${100 * row.value / peak}%`;
    return el("li", {class: row.class}, el("span", {class: "mono"}, row.name),
      el("span", {class: "track"}, bar), exact(row.value, row.text));
  }));
}
function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find(nice => nice * power >= rough * 0.999);
  return range(Math.ceil(low / step), Math.floor(high / step)).map(i => Number((i * step).toPrecision(12)));
}
function chart(box, name, height, xName) {  // -> draw({lines: [{name, points, ...}], levels, band, end})
  const label = `${name} by ${xName}`, bottom = height - 38;
  const svg = el("svg", {class: "chart", role: "img", tabindex: 0, height, "aria-label": label});
  const keys = el("div", {class: "keys"}), readout = el("p", {class: "readout", "aria-live": "polite"});
  let picture = {lines: []}, at = null, xs = [], place = null;
  function draw() {
    const {levels = [], band = []} = picture, lines = picture.lines.filter(line => line.points.length);
    const width = box.clientWidth, wide = levels.length && width > 560;
    const left = 46, right = width - (wide ? 136 : 12);
    const points = lines.flatMap(line => line.points);
    if (right < left || !points.length) return;
    xs = [...new Set(points.map(p => p[0]))].sort((a, b) => a - b);
    const ys = [points.map(p => p[1]), band.flatMap(b => b.slice(1)), levels.map(level => level.nats)].flat();
    let [low, high] = ys.reduce(([a, b], y) => [Math.min(a, y), Math.max(b, y)], [Infinity, -Infinity]);
    const end = Math.max(picture.end ?? 1, xs.at(-1)), pad = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    [low, high] = [low < 0 ? low - pad : Math.max(0, low - pad), high + pad];
    place = (x, y) => [left + x / end * (right - left), bottom - (y - low) / (high - low) * (bottom - 8)];
    const path = points => "M" + points.map(p => place(...p).map(v => v.toFixed(1))).join("L");
    const across = (kind, y) => el("line", {class: kind, x1: left, x2: right, y1: y, y2: y});
    const words = (x, y, anchor, text) => el("text", {x, y, "text-anchor": anchor}, text);
    const compact = {maximumSignificantDigits: 4, notation: "compact"};
    const parts = [words((left + right) / 2, height - 5, "middle", xName)];
    for (const tick of ticks(low, high, height > 200 ? 6 : 3)) {
      const y = place(0, tick)[1];
      parts.push(across("grid", y), words(left - 6, y + 4, "end", tick.toLocaleString("en", compact)));
    }
    for (const tick of ticks(0, end, (right - left) / 70)) {
      parts.push(words(place(tick, 0)[0], bottom + 16, "middle", tick.toLocaleString("en")));
    }
    const edge = [...band.map(b => [b[0], b[1]]), ...[...band].reverse().map(b => [b[0], b[2]])];
    if (edge.length) parts.push(el("path", {class: "band", d: path(edge) + "Z"}));
    let free = 0;  // names of levels that lie close together move down until each can be read
    for (const {name, nats} of [...levels].sort((a, b) => b.nats - a.nats)) {
      const y = place(0, nats)[1], text = `${name} ${nats.toFixed(2)}`;
      free = Math.max(y + (wide ? 4 : -4), free + 14);
      parts.push(across("level", y), words(wide ? right + 6 : right, free, wide ? "start" : "end", text));
    }
    for (const line of lines) {
      parts.push(el("path", {class: `line ${line.class ?? ""}`, d: path(line.points)}));
      for (const [cx, cy] of line.dots ? line.points.map(p => place(...p)) : []) {
        parts.push(el("circle", {cx, cy, r: 3.5}));
      }
    }
    svg.replaceChildren(...parts);
    keys.replaceChildren(...lines.map(line => el("span", el("svg", {"aria-hidden": true}, el("path", {
      class: `line ${line.class ?? ""}`, d: "M0,5L26,5"})), `${line.name}: `,
    el("strong", exact(line.value ?? line.points.at(-1)[1])))));
    if (at !== null) point(at);
  }
  function point(x) {  // marks the nearest x that has a value, and says what stands there
    at = xs.reduce((best, next) => Math.abs(next - x) < Math.abs(best - x) ? next : best, xs[0]);
    const x1 = place(at, 0)[0], said = picture.lines.flatMap(({name, points}) =>
      points.filter(p => p[0] === at).map(p => `${name} ${round(p[1], 4)}`));
    svg.querySelector(".at")?.remove();
    svg.append(el("line", {class: "at", x1, x2: x1, y1: 8, y2: bottom}));
    say(readout, `${xName} ${at}: ${said.join(", ")}`);
  }
  svg.addEventListener("pointermove", event => {
    const x = event.clientX - svg.getBoundingClientRect().left;
    if (place) point((x - place(0, 0)[0]) / (place(1, 0)[0] - place(0, 0)[0]));
  });
  arrows(svg, {ArrowLeft: -1, ArrowRight: 1}, move => place
    && point(xs[at === null ? xs.length - 1 : between(0, xs.indexOf(at) + move, xs.length - 1)]));
  new ResizeObserver(draw).observe(box);
  box.append(keys, svg, readout);
  return next => {
    picture = next;
    draw();
  };
}
function cells(canvas, values, peak, size, margin) {  // row t, columns s <= t: later ones are hidden
  const pen = canvas.getContext("2d");
  values.forEach((row, t) => row.slice(0, t + 1).forEach((value, s) => {
    pen.fillStyle = `rgb(${viridis(value / peak)})`;
    pen.fillRect(margin + s * size, margin + t * size, size, size);
  }));
  return pen;
}
function heatmap(box, name, describe) {  // -> draw(pieces, values, peak). describe(t, s): what a cell says
  const canvas = el("canvas", {role: "img", "aria-label": name, tabindex: 0});
  const readout = el("p", {class: "readout", "aria-live": "polite"});
  let labels = [], values, peak, size, margin, at = [1e9, 1e9];
  function draw() {
    const last = labels.length - 1, longest = Math.max(...labels.map(label => label.length));
    margin = 14 + 7.5 * longest;
    size = between(13, Math.floor((Math.min(box.clientWidth, 760) - margin - 4) / labels.length), 30);
    at = [between(0, at[0], last), between(0, Math.min(...at), last)];
    canvas.width = canvas.height = devicePixelRatio * (margin + size * labels.length + 2);
    canvas.style.width = `${canvas.width / devicePixelRatio}px`;
    canvas.getContext("2d").scale(devicePixelRatio, devicePixelRatio);
    const pen = cells(canvas, values, peak, size, margin);
    pen.fillStyle = pen.strokeStyle = getComputedStyle(box).color;
    pen.font = "12px ui-monospace, Menlo, Consolas, monospace";
    labels.forEach((label, i) => {
      const middle = margin + size * (i + 0.5);
      pen.textAlign = "right";
      pen.fillText(label, margin - 6, middle + 4);
      pen.textAlign = "left";
      pen.save();
      pen.translate(middle, margin - 8);
      if (longest > 1) pen.rotate(-Math.PI / 2);
      pen.fillText(label, longest > 1 ? 0 : -4, longest > 1 ? 4 : 0);
      pen.restore();
    });
    pen.lineWidth = 2;
    pen.strokeRect(margin + at[1] * size, margin + at[0] * size, size, size);
    readout.replaceChildren(...describe(...at));
  }
  function choose(t, s) {
    if (!labels.length) return;
    at = [t, between(0, s, t)];
    draw();
  }
  canvas.addEventListener("pointermove", event =>
    choose(...[event.offsetY, event.offsetX].map(v => Math.max(0, Math.floor((v - margin) / size)))));
  const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
  arrows(canvas, moves, ([down, right]) =>
    choose(between(0, at[0] + down, labels.length - 1), at[1] + right));
  box.append(el("div", {class: "scroll", tabindex: 0, role: "region", "aria-label": name}, canvas), readout);
  return (pieces, ...more) => {
    labels = pieces.map(piece => shown(piece).slice(0, 7));
    [values, peak] = more;
    draw();
  };
}
