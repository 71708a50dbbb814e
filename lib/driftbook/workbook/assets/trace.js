// Traces read as text: tokens coloured by projection, the line above them, the null band behind it.
(() => {
  "use strict";
  const SVG = "http://www.w3.org/2000/svg";
  const make = (name, attributes, parent) => {
    const node = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (parent) parent.append(node);
    return node;
  };
  const shown = (token) => token.replace(/\n/g, "⏎").replace(/\t/g, "⇥") || "∅";
  const number = (value) => (Number.isNaN(value) ? "–" : value.toPrecision(3).replace("-", "−"));
  const HEIGHT = 58;

  window.driftbook.kinds.trace = async (figure, live) => {
    const db = window.driftbook;
    const s = await db.json(figure, "settings");
    const tokens = await db.json(figure, "tokens");
    const [S, L, T, N] = [s.samples.length, s.layers.length, s.traits.length, s.length];
    const scales = new Float32Array((await db.bytes(figure, "scale")).buffer);
    const at = (kind, layer, trait) => scales[kind * L * T + layer * T + trait]; // 0 step, 1 low, 2 high
    const packed = {};
    const name = (side) => (s.names || {})[side] || side;
    for (const side of s.sides) {
      const steps = (packed[side] = new Int8Array((await db.bytes(figure, side)).buffer));
      for (let i = 0; i < S; i++) for (let k = i * L * T * N + T * N; k < (i + 1) * L * T * N; k++) steps[k] += steps[k - T * N]; // differences by layer
    }
    // The state at a token, and the one that predicted it, are one position apart.
    const readings = ["own", "producer"];
    let reading = readings.indexOf(s.convention);
    const value = (side, sample, layer, trait, token) => {
      const position = token + readings.indexOf(s.convention) - reading;
      if (position < 0 || position >= N || token >= tokens[side][sample].length) return NaN;
      const step = packed[side][((sample * L + layer) * T + trait) * N + position];
      return step === -128 ? NaN : step * at(0, layer, trait);
    };
    let [sample, layer, trait] = s.first;
    let current = -1;

    live.replaceChildren();
    const controls = figure.querySelector(".db-controls");
    controls.replaceChildren();
    const choose = db.select(figure, "Prompt", s.samples, sample, (v) => pick(v));
    const pick = (v) => { sample = v; choose.value = v; current = -1; build(); };
    db.select(figure, "Trait", s.traits, trait, (v) => { trait = v; paint(); });
    const box = document.createElement("label");
    const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: L - 1, step: 1, value: layer });
    const layerText = document.createElement("output");
    slider.addEventListener("input", () => { layer = +slider.value; paint(); });
    box.append("Layer ", slider, layerText);
    controls.append(box);
    db.select(figure, "Read", ["own: the state at the token", "producer: the state that predicted the token"], reading, (v) => { reading = v; paint(); });

    const key = document.createElement("div");
    key.className = "db-key";
    const colours = Object.fromEntries(s.sides.map((side, i) => [side, `var(--db-c${i})`]));
    const dashes = Object.fromEntries(s.sides.map((side, i) => [side, i ? "6 3" : ""]));
    for (const side of s.sides) {
      const item = document.createElement("span");
      const mark = make("svg", { width: 26, height: 8, "aria-hidden": "true" });
      make("path", { d: "M1 4h24", style: `stroke:${colours[side]}`, "stroke-width": 2.5, "stroke-dasharray": dashes[side] }, mark);
      item.append(mark, ` ${name(side)}${s.sides.length > 1 ? (side === s.sides[0] ? " (upper line of text)" : " (lower line of text)") : ""}`);
      key.append(item);
    }
    const item = document.createElement("span");
    const mark = make("svg", { width: 26, height: 10, "aria-hidden": "true" });
    make("rect", { width: 26, height: 10, style: "fill:var(--db-c6);opacity:.3" }, mark);
    item.append(mark, ` ${s.nullLabel}`);
    key.append(item);
    const marks = document.createElement("span");
    marks.textContent = `underlined: above the band; dotted: below it${s.promptEnd ? "; italic: the prompt" : ""}`;
    key.append(marks);
    if (s.note) key.append(Object.assign(document.createElement("span"), { textContent: s.note }));

    const profile = make("svg", { class: "db-profile", height: 70, width: "100%", role: "img" });
    const area = document.createElement("div");
    area.className = "db-tokens";
    area.tabIndex = 0;
    area.setAttribute("role", "group");
    area.setAttribute("aria-label", "Tokens. Arrow keys move along them; values are read out below.");
    const readout = document.createElement("output");
    readout.className = "db-readout";
    readout.setAttribute("aria-live", "polite");
    const prompts = document.createElement("div");
    prompts.className = "db-prompts";
    prompts.setAttribute("role", "group");
    prompts.setAttribute("aria-label", "Mean of every prompt; choose one to read it.");
    live.append(key, area, readout, profile);
    const hint = Object.assign(document.createElement("p"), { className: "db-key", textContent: "Mean over each response, prompt by prompt; click one to read it." });
    if (S > 1) live.append(hint, prompts);

    let columns = [];
    const build = () => {
      area.replaceChildren();
      columns = [];
      const length = Math.max(...s.sides.map((side) => tokens[side][sample].length));
      for (let p = 0; p < length; p++) {
        const column = document.createElement("span");
        column.className = "db-col";
        for (const side of s.sides) {
          const own = tokens[side][sample];
          const tok = document.createElement("span");
          tok.className = "db-tok";
          if (s.promptEnd && p < s.promptEnd[side][sample]) tok.classList.add("prompt");
          tok.textContent = p < own.length ? shown(own[p]) : "";
          column.append(tok);
        }
        column.addEventListener("mouseenter", () => read(p));
        area.append(column);
        columns.push(column);
      }
      paint();
    };

    const paint = () => {
      layerText.textContent = s.layers[layer];
      slider.setAttribute("aria-valuetext", `layer ${s.layers[layer]}`);
      const [low, high, reach] = [at(1, layer, trait), at(2, layer, trait), at(0, layer, trait) * s.steps];
      columns.forEach((column, p) => {
        [...column.children].filter((c) => c.classList.contains("db-tok")).forEach((tok, i) => {
          const v = value(s.sides[i], sample, layer, trait, p);
          tok.classList.toggle("above", v > high);
          tok.classList.toggle("below", v < low);
          const over = v > high ? (v - high) / Math.max(reach - high, 1e-9) : v < low ? (low - v) / Math.max(reach + low, 1e-9) : 0;
          const hue = v > high ? "var(--db-c1)" : "var(--db-c0)";
          tok.style.background = over > 0 ? `color-mix(in srgb, ${hue} ${Math.round(12 + 38 * Math.min(over, 1))}%, transparent)` : "";
        });
      });
      lines(low, high);
      layers();
      if (S > 1) overview(low, high);
      if (current >= 0) read(current);
      else readout.textContent = summary(low, high);
    };

    const summary = (low, high) => s.sides.map((side) => {
      let [sum, n, out] = [0, 0, 0];
      for (let p = 0; p < N; p++) {
        const v = value(side, sample, layer, trait, p);
        if (Number.isNaN(v)) continue;
        sum += v; n += 1; out += v > high || v < low;
      }
      return `${name(side)}: mean ${number(sum / n)}, ${out} of ${n} tokens outside the null band`;
    }).join("; ") + ".";

    const read = (p) => {
      if (current >= 0 && columns[current]) columns[current].classList.remove("now");
      current = p;
      columns[p].classList.add("now");
      const parts = s.sides.map((side) => {
        const own = tokens[side][sample];
        return p < own.length ? `${name(side)} “${shown(own[p])}” ${number(value(side, sample, layer, trait, p))}` : `${name(side)} has ended`;
      });
      readout.textContent = `Token ${p}: ${parts.join("; ")} (null band ${number(at(1, layer, trait))} to ${number(at(2, layer, trait))}; ${s.unit}; convention ${readings[reading]}).`;
    };
    area.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      const jump = { Home: 0, End: columns.length - 1 }[event.key];
      if (step === undefined && jump === undefined) return;
      event.preventDefault();
      read(jump !== undefined ? jump : Math.max(0, Math.min(columns.length - 1, current + step)));
    });

    // One small plot above each row of text, drawn where the tokens of the row happen to stand.
    const lines = (low, high) => {
      area.querySelectorAll(".db-line").forEach((node) => node.remove());
      let reach = Math.max(Math.abs(low), Math.abs(high)) * 1.3;
      for (const side of s.sides) for (let p = 0; p < N; p++) {
        const v = Math.abs(value(side, sample, layer, trait, p));
        if (v > reach) reach = v;
      }
      const y = (v) => HEIGHT / 2 - (v / (reach || 1)) * (HEIGHT / 2 - 3);
      const rows = new Map();
      columns.forEach((column, p) => {
        const top = column.offsetTop;
        if (!rows.has(top)) rows.set(top, []);
        rows.get(top).push(p);
      });
      for (const [top, members] of rows) {
        const right = columns[members.at(-1)].offsetLeft + columns[members.at(-1)].offsetWidth;
        const svg = make("svg", { class: "db-line", width: right, height: HEIGHT, style: `top:${top + 3}px`, "aria-hidden": "true" }, null);
        const clip = (v) => Math.max(1, Math.min(HEIGHT - 1, y(v)));
        make("rect", { x: 0, width: right, y: clip(high), height: Math.max(clip(low) - clip(high), 1), style: "fill:var(--db-c6);opacity:.22" }, svg);
        make("path", { d: `M0 ${y(0)}H${right}`, style: "stroke:var(--db-line)" }, svg);
        for (const side of s.sides) {
          let path = "";
          for (const p of members) {
            const v = value(side, sample, layer, trait, p);
            if (Number.isNaN(v)) continue;
            const x = columns[p].offsetLeft + columns[p].offsetWidth / 2;
            path += `${path ? "L" : "M"}${x.toFixed(1)} ${clip(v).toFixed(1)}`;
          }
          make("path", { d: path, fill: "none", style: `stroke:${colours[side]}`, "stroke-width": 2, "stroke-linejoin": "round", "stroke-dasharray": dashes[side] }, svg);
        }
        for (const [v, at] of [[reach, 9], [-reach, HEIGHT - 2]]) {
          const mark = make("text", { x: right + 5, y: at, style: "fill:var(--db-muted);font-size:10.5px" }, svg);
          mark.textContent = number(v);
        }
        area.append(svg);
      }
    };

    // The mean over the response at every layer, so that one knows where to slide.
    const layers = () => {
      profile.replaceChildren();
      const width = profile.clientWidth || 600;
      const means = s.sides.map((side) => s.layers.map((_, l) => {
        let [sum, n] = [0, 0];
        const start = s.promptEnd ? s.promptEnd[side][sample] : 0;
        for (let p = start; p < N; p++) {
          const v = value(side, sample, l, trait, p);
          if (!Number.isNaN(v)) { sum += v; n += 1; }
        }
        return n ? sum / n : NaN;
      }));
      const all = means.flat().concat(s.layers.flatMap((_, l) => [at(1, l, trait), at(2, l, trait)])).filter((v) => !Number.isNaN(v));
      const reach = Math.max(...all.map(Math.abs), 1e-9);
      const x = (l) => 46 + (l / Math.max(L - 1, 1)) * (width - 62);
      const y = (v) => 27 - (v / reach) * 23;
      const forth = s.layers.map((_, l) => `${x(l).toFixed(1)} ${y(at(2, l, trait)).toFixed(1)}`);
      const back = s.layers.map((_, l) => `${x(l).toFixed(1)} ${y(at(1, l, trait)).toFixed(1)}`).reverse();
      make("path", { d: `M${forth.concat(back).join("L")}Z`, style: "fill:var(--db-c6);opacity:.22" }, profile);
      make("path", { d: `M46 ${y(0)}H${width - 16}`, style: "stroke:var(--db-line)" }, profile);
      make("path", { d: `M${x(layer)} 2V52`, style: "stroke:var(--db-muted)", "stroke-dasharray": "2 2" }, profile);
      means.forEach((own, i) => {
        const path = own.map((v, l) => (Number.isNaN(v) ? "" : `${x(l).toFixed(1)} ${y(v).toFixed(1)}`)).filter(Boolean).join("L");
        make("path", { d: `M${path}`, fill: "none", style: `stroke:${colours[s.sides[i]]}`, "stroke-width": 2, "stroke-dasharray": dashes[s.sides[i]] }, profile);
      });
      const label = (text, px, py, anchor) => {
        const node = make("text", { x: px, y: py, "text-anchor": anchor, style: "fill:var(--db-muted);font-size:11.5px" }, profile);
        node.textContent = text;
      };
      label("mean by layer", 46, 63, "start");
      label(`layer ${s.layers[layer]}`, Math.min(Math.max(x(layer), 150), width - 60), 63, "middle");
      label(number(reach), 42, 12, "end");
      label("0", 42, y(0) + 4, "end");
      const said = s.sides.map((side, i) => `${name(side)} ${number(means[i][layer])}`).join(", ");
      profile.setAttribute("aria-label", `Mean of ${s.traits[trait]} by layer; at layer ${s.layers[layer]}: ${said}.`);
    };
    // One row a prompt: its mean on either side, and the way to it.
    const overview = (low, high) => {
      const means = s.samples.map((_, i) => s.sides.map((side) => {
        let [sum, n] = [0, 0];
        for (let p = s.promptEnd ? s.promptEnd[side][i] : 0; p < N; p++) {
          const v = value(side, i, layer, trait, p);
          if (!Number.isNaN(v)) { sum += v; n += 1; }
        }
        return n ? sum / n : NaN;
      }));
      const reach = Math.max(Math.abs(low), Math.abs(high), ...means.flat().filter((v) => !Number.isNaN(v)).map(Math.abs), 1e-9) * 1.08;
      const x = (v) => (100 * (1 + v / reach)) / 2;
      if (!prompts.children.length) {
        for (let i = 0; i < S; i++) {
          const row = Object.assign(document.createElement("button"), { type: "button", className: "db-prompt" });
          const name = Object.assign(document.createElement("span"), { textContent: s.samples[i], title: s.samples[i] });
          row.append(name, make("svg", { height: 16, width: "100%", "aria-hidden": "true" }));
          row.addEventListener("click", () => pick(i));
          prompts.append(row);
        }
      }
      [...prompts.children].forEach((row, i) => {
        row.setAttribute("aria-pressed", i === sample);
        const said = s.sides.map((side, k) => `${name(side)} ${number(means[i][k])}`).join(", ");
        row.setAttribute("aria-label", `${s.samples[i]}: ${said}`);
        const svg = row.querySelector("svg");
        svg.replaceChildren();
        make("rect", { x: `${x(low)}%`, width: `${x(high) - x(low)}%`, y: 0, height: 16, style: "fill:var(--db-c6);opacity:.22" }, svg);
        make("line", { x1: "50%", x2: "50%", y1: 0, y2: 16, style: "stroke:var(--db-line)" }, svg);
        s.sides.forEach((side, k) => {
          const v = means[i][k];
          if (Number.isNaN(v)) return;
          if (k) make("rect", { width: 8, height: 8, x: `${x(v)}%`, y: 4, transform: "translate(-4)", style: `fill:${colours[side]}` }, svg);
          else make("circle", { cx: `${x(v)}%`, cy: 8, r: 4.5, style: `fill:${colours[side]}` }, svg);
        });
      });
    };
    profile.addEventListener("click", (event) => {
      const width = profile.clientWidth || 600;
      const share = (event.clientX - profile.getBoundingClientRect().left - 46) / (width - 62);
      layer = Math.max(0, Math.min(L - 1, Math.round(share * (L - 1))));
      slider.value = layer;
      paint();
    });

    build();
    let seen = area.clientWidth;
    new ResizeObserver(() => { if (area.clientWidth !== seen) { seen = area.clientWidth; paint(); } }).observe(area);
    return () => {};
  };
})();
