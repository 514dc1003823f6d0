// The views that ask a model, a function for each.

function showRead(about) {
  const most = Math.log2(about.config.vocab_size), box = byId("tokens");
  let read = {ids: []}, at = 0;
  fill("legend", "bits:", [0, 0.25, 0.5, 0.75, 1].map(x => paint(el("b", round(x * most, 2)), x)), "a guess");
  const look = latest("tokens", async signal => {
    read = await onText("read", signal);
    fill("written");
    facts(["bits_per_byte", "bits per byte", read.bits_per_byte], ["loss", "loss, nats per token", read.loss],
      ["total_bits", "bits in all", read.total_bits, round(read.total_bits, 4)],
      ["count", "tokens", read.ids.length]);
    fill("tokens", read.pieces.map((piece, i) => {
      const bits = read.bits[i], first = bits === null;
      const name = `${shown(piece)}: ${first ? "the first token, not counted" : `${round(bits)} bits`}`;
      const button = el("button", {tabindex: -1, "aria-pressed": false, "aria-label": name, title: name,
        "data-value": bits ?? "", click: () => choose(i)}, shown(piece));
      return [first ? button : paint(button, bits / most), piece.includes("\n") ? el("br") : ""];
    }));
    choose(Number(state.at ?? 1e9) || 0);
  });
  const next = latest("next", async signal => {
    const found = await api("next", {...model(), ids: read.ids.slice(0, at + 1), ...choice()}, signal);
    bars("next", found.tokens.map(({id, piece, probability, kept}) => {
      const note = id === read.ids[at + 1] ? " the text" : kept ? "" : " left out";
      const text = `${(100 * probability).toFixed(1)} %${note}`;
      return {name: shown(piece), value: probability, text, class: kept ? "" : "out"};
    }), 1);
    fill("kept", `Top-p keeps ${found.kept} of ${about.config.vocab_size} tokens; entropy `,
      exact(found.entropy_bits), " bits.");
  }, 60);
  function choose(i) {  // one token is chosen: it alone is a stop of the Tab key
    const buttons = box.querySelectorAll("button"), before = buttons[at];
    at = between(0, i, buttons.length - 1);
    for (const button of [before, buttons[at]]) {
      button?.setAttribute("aria-pressed", button === buttons[at]);
      button?.setAttribute("tabindex", button === buttons[at] ? 0 : -1);
    }
    remember({at});
    byId("title").textContent = `After “${shown(read.pieces[at])}”, token ${at + 1} of ${read.ids.length}`;
    byId("stop").click();
    next();
  }
  arrows(box, {ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9}, move => {
    choose(at + move);
    box.querySelector("[tabindex='0']").focus();
  });
  byId("go").addEventListener("click", () => attempt(async () => {
    const more = el("mark"), ids = read.ids.slice(0, at + 1);
    const body = {...model(), ids, ...choice(), max_new_tokens: 300};
    fill("written", read.pieces.slice(0, at + 1).join(""), more);
    await streamed("api/write", body, ({piece}) => more.append(piece));
  }));
  on("temperature top_p", next);
  sent(look);
}

function showTokens() {
  let words = [];
  function draw() {
    const slider = byId("merge"), {steps} = words[number("word")];
    slider.max = steps.length - 1;
    slider.value = state.merge ?? slider.max;
    slider.labels[0].querySelector("output").textContent = `${slider.value} of ${slider.max}`;
    fill("parts", steps[slider.value].map(part => el("span", {class: "mono"}, shown(part))));
  }
  on("word", draw);
  on("merge", () => {
    state.merge = byId("merge").value;
    draw();
  });
  sent(latest("tokens", async signal => {
    const cut = await onText("tokens", signal), bytes = new TextEncoder().encode(byId("text").value).length;
    fill("tokens", cut.pieces.map((piece, i) => el("span", el("span", {class: "mono"}, shown(piece)),
      el("small", exact(cut.ids[i], String(cut.ids[i]))))));
    facts(["count", "tokens", cut.ids.length], ["bytes", "bytes", bytes],
      ["ratio", "bytes per token", bytes / cut.ids.length]);
    words = cut.words;
    byId("merges").hidden = !words.length;
    options("word", words.map(({word}, i) => [i, shown(word)]), 0);
    if (words.length) draw();
  }));
}

function showLook(about) {
  let seen, moved, h = 0;
  const name = ({pieces}, i) => `“${shown(pieces[i])}”`;
  const big = heatmap(byId("big"), "Attention of the chosen head", (t, s) => [
    `${name(seen, t)} looks at ${name(seen, s)}: weight `, exact(seen.attention[h][t][s]),
    ", length of its value vector ", exact(seen.value_length[h][s])]);
  const depends = heatmap(byId("depends"), "Dependence", (t, s) => [
    `Another token for ${name(moved, s)} moves the prediction after ${name(moved, t)} by `,
    exact(moved.change[t][s])]);
  function draw() {
    const {pieces, attention, value_length} = seen, size = pieces.length, weighted = byId("weighted").checked;
    const weights = attention.map((rows, h) => rows.map(row =>
      row.map((w, s) => weighted ? w * value_length[h][s] : w)));
    const peak = Math.max(...weights.flat(2));
    h = between(0, Number(state.head) || 0, attention.length - 1);
    fill("heads", weights.map((values, i) => {
      const label = `Attention of head ${i + 1}`;
      const canvas = el("canvas", {role: "img", "aria-label": label, width: size, height: size});
      cells(canvas, values, peak, 1, 0);
      return el("button", {"aria-pressed": i === h, click: () => {
        remember({head: i});
        draw();
        byId("heads").children[i].focus();
      }}, canvas, `head ${i + 1}`);
    }));
    big(pieces, weights[h], peak);
  }
  const look = latest("heads", async signal => {
    seen = await onText("look", signal, {layer: number("layer")});
    cutNote("cut", seen);
    draw();
  });
  const rest = latest("lens", async signal => {
    const {pieces, cut, layers, top, probability, truth, ...sizes} = await onText("lens", signal);
    cutNote("cut_lens", {pieces, cut});
    fill("lens", table("cells", ["layer", ...pieces.map(shown)], layers.map((name, l) => [
      el("th", {scope: "row"}, name), top[l].map((piece, t) => {
        const p = probability[l][t], title = `${p}; the token that follows: ${truth[l][t] ?? "unknown"}`;
        return paint(el("td", {"data-value": p, title}, shown(piece)), p);
      })])));
    const added = l => [["  attention adds", sizes.attention_out[l]], ["  MLP adds", sizes.mlp_out[l]]].map(
      ([name, values]) => ({name, value: mean(values), class: "other"}));
    const rows = layers.flatMap((name, l) => [...(l ? added(l - 1) : []),
      {name: l ? `after ${name}` : name, value: mean(sizes.residual[l])}]);
    bars("sizes", rows, Math.max(...rows.map(row => row.value)));
    moved = await onText("depends", signal);
    cutNote("cut_depends", moved);
    depends(moved.pieces, moved.change, Math.max(...moved.change.flat()));
  });
  options("layer", range(0, about.config.n_layer - 1).map(l => [l, `block ${l + 1}`]), 0);
  on("layer", look);
  on("weighted", () => seen && draw());
  sent(look, rest);
}

function showBreak(about) {
  const off = new Set((state.off ?? "").split(",").filter(key => key)), groups = {};
  for (const {key, name} of about.switches) {
    const [kind, layer] = key.split("."), group = layer ? `Block ${Number(layer) + 1}` : "Everywhere";
    const box = el("input", {type: "checkbox", "data-key": key, change: () => {
      off[box.checked ? "add" : "delete"](key);
      remember({off: [...off].join(",")});
      run();
    }});
    box.checked = off.has(key);
    groups[group] ??= byId("switches").appendChild(el("fieldset", el("legend", group)));
    const short = kind === "block" ? "the whole block" : name.replace(/ of block \d+$/, "");
    groups[group].append(el("label", box, short));
  }
  const run = latest("facts", async signal => {
    const keys = about.switches.map(({key}) => key).filter(key => off.has(key));
    const found = await onText("break", signal, {off: keys, ...choice(), max_new_tokens: 200});
    const change = found.loss_after - found.loss_before, sign = change > 0 ? "+" : "";
    facts(["loss_before", "loss, whole", found.loss_before], ["loss_after", "loss, broken", found.loss_after],
      ["change", "change", change, sign + change.toFixed(3)],
      ["bits_before", "bits per byte, whole", found.bits_before], ["bits_after", "broken", found.bits_after]);
    fill("before", found.before);
    fill("after", found.after);
  }, 150);
  const measure = latest("worth", async signal => {
    const {heads, attention, mlp, block, ...text} = await onText("importance", signal);
    cutNote("cut", text);
    const rows = heads.map((row, l) => [...row, attention[l], mlp[l], block[l]]);
    const peak = Math.max(...rows.flat()), names = heads[0].map((_, h) => `head ${h + 1}`);
    const cell = x => paint(el("td", exact(x, x?.toFixed(2) ?? "–")), x / peak);
    fill("worth", table("cells", ["part", ...names, "attention", "MLP", "block"],
      rows.map((row, l) => [el("th", {scope: "row"}, `block ${l + 1}`), row.map(cell)])));
  });
  on("temperature top_p seed", run);
  sent(run, measure);
}

function showCompare(about) {
  const files = runs.flatMap(({name, files}) => files.map(file => [`${name}/${file}`, `${name}, ${file}`]));
  const other = files.find(([key]) => !key.startsWith(`${about.run}/`)) ?? files.at(-1), sides = ["a", "b"];
  const curve = chart(byId("curve"), "surprise in bits per byte", 260, "bytes before");
  options("a", files, `${about.run}/${about.file}`);
  options("b", files, other[0]);
  const run = latest("part", async signal => {
    const names = sides.map(side => byId(side).value), [a, b] = names.map(name => name.split("/"));
    const body = {a: {run: a[0], file: a[1]}, b: {run: b[0], file: b[1]}, text: byId("text").value};
    const found = await api("compare", {...body, ...choice(), max_new_tokens: 200}, signal);
    for (const side of sides) {
      const {pieces} = found[side], at = found.part?.[side] ?? pieces.length;
      fill(`name_${side}`, byId(side).value);
      fill(`text_${side}`, el("span", {class: "soft"}, body.text), pieces.slice(0, at).join(""),
        at < pieces.length ? el("mark", pieces[at]) : "", pieces.slice(at + 1).join(""));
    }
    const {part} = found;
    fill("part", part ? `Both write the same up to the mark, new token ${part.a + 1}.` : "They write the same.");
    facts(...sides.map((side, i) => [`bits_${side}`, names[i], found[side].bits_per_byte,
      `${round(found[side].bits_per_byte, 4)} bits per byte`]));
    curve({lines: sides.map((side, i) => ({name: names[i], class: i ? "b dashed" : "",
      points: found[side].curve, value: found[side].bits_per_byte}))});
  }, 150);
  on("a b temperature top_p seed", run);
  sent(run);
}

function showChat(about) {
  const messages = [], talk = byId("talk");
  function keep(count) {  // only the first messages
    messages.length = count;
    while (talk.children.length > count) talk.lastChild.remove();
  }
  function add(role, content) {
    const text = el("span", content), message = {role, content};
    talk.append(el("p", {class: role}, el("b", role === "user" ? "you" : about.run), text));
    messages.push(message);
    return more => text.textContent = message.content += more;
  }
  document.querySelector(".ask").addEventListener("submit", () => attempt(async () => {
    const content = byId("message").value, before = messages.length;
    if (!content.trim()) return;
    byId("message").value = "";
    add("user", content);
    const body = {model: about.run, messages: [...messages], stream: true, ...choice(), max_tokens: 400};
    const more = add("assistant", "");
    try {
      await streamed("v1/chat/completions", body, ({choices}) => more(choices[0]?.delta?.content ?? ""));
    } catch (error) {
      if (error.name !== "AbortError") {  // it was not understood: back into the box with it
        keep(before);
        byId("message").value = content;
      }
      throw error;
    }
  }));
  byId("fresh").addEventListener("click", () => {
    byId("stop").click();
    keep(0);
  });
}
