// Maps of texts: one scatter, text fetched by index from a packed column, the texts of a region in a panel.
(() => {
  "use strict";
  window.driftbook.kinds.map = async (figure, live) => {
    const db = window.driftbook;
    const Plotly = await db.plotly();
    const s = await db.json(figure, "settings");
    const steps = new Int32Array((await db.bytes(figure, "x")).buffer);
    const x = new Int16Array(s.n);
    for (let i = 0, sum = 0; i < s.n; i++) { sum += steps[i]; x[i] = sum; }
    const y = new Int16Array((await db.bytes(figure, "y")).buffer);
    s.sides = s.sides.map((side) => (s.names || {})[side] || side);
    const side = (await db.bytes(figure, "side")) || new Uint8Array(s.n);
    const clusterBytes = await db.bytes(figure, "cluster");
    const cluster = clusterBytes ? new Int16Array(clusterBytes.buffer) : null;
    const labels = s.labels || [];
    const nameOf = new Map(labels.map((l) => [l.cluster, l.text]));
    const rankOf = new Map(labels.map((l, i) => [l.cluster, i]));

    // Texts are unpacked at the first need: they are most of the page.
    let words = null;
    const readTexts = async () => {
      if (words) return words;
      const bits = await db.bytes(figure, "kept");
      const index = new Int32Array(s.n).fill(-1);
      if (bits) for (let i = 0, k = 0; i < s.n; i++) if (bits[i >> 3] & (1 << (i & 7))) index[i] = k++;
      const texts = bits ? (await db.text(figure, "texts")).split("\0") : [];
      const prompts = figure.querySelector('.db-block[data-name="prompts"]') ? (await db.text(figure, "prompts")).split("\0") : null;
      const codes = prompts ? (await db.bytes(figure, "prompt")).buffer : null;
      const promptOf = codes ? (s.promptBytes === 4 ? new Uint32Array(codes) : new Uint16Array(codes)) : null;
      words = {
        text: (i) => (index[i] >= 0 ? texts[index[i]] : null),
        prompt: (i) => (promptOf ? prompts[promptOf[i]] : null),
      };
      return words;
    };

    let shownSide = -1; // both
    let byCluster = false;
    let shown = null; // indices of the points that are drawn; null: all
    const controls = figure.querySelector(".db-controls");
    controls.replaceChildren();
    if (s.sides.length > 1) {
      db.select(figure, "Side", ["both", ...s.sides], 0, (v) => { shownSide = v - 1; draw(); });
    }
    if (cluster && s.sides.length) db.select(figure, "Colour by", ["side", "cluster"], 0, (v) => { byCluster = v === 1; draw(); });
    if (!s.sides.length) byCluster = !!cluster;
    if (cluster) {
      const order = labels.slice().sort((a, b) => b.n - a.n);
      db.select(figure, "Read a cluster", ["…", ...order.map((l) => `${l.text} (${l.n})`)], 0, (v) => {
        if (v === 0) return list(null);
        const wanted = order[v - 1].cluster;
        const found = [];
        for (let i = 0; i < s.n; i++) if (cluster[i] === wanted && (shownSide < 0 || side[i] === shownSide)) found.push(i);
        return list(found, order[v - 1].text);
      });
    }
    const lasso = Object.assign(document.createElement("button"), { type: "button", textContent: "Lasso" });
    lasso.setAttribute("aria-pressed", "false");
    lasso.addEventListener("click", () => {
      const on = lasso.getAttribute("aria-pressed") !== "true";
      lasso.setAttribute("aria-pressed", on);
      Plotly.relayout(plot, { dragmode: on ? "lasso" : "pan" });
    });
    controls.append(lasso);

    live.replaceChildren();
    const plot = document.createElement("div");
    const names = document.createElement("div");
    names.className = "db-names";
    names.setAttribute("aria-hidden", "true"); // the same names stand in the picker of clusters
    const tip = document.createElement("div");
    tip.className = "db-tip";
    tip.hidden = true;
    const panel = document.createElement("section");
    panel.className = "db-panel";
    panel.tabIndex = 0;
    panel.setAttribute("aria-label", "Texts of the chosen region");
    panel.setAttribute("aria-live", "polite");
    live.append(plot, names, tip, panel);

    const draw = async () => {
      const theme = db.theme();
      const keep = [];
      if (shownSide >= 0) for (let i = 0; i < s.n; i++) if (side[i] === shownSide) keep.push(i);
      shown = shownSide >= 0 ? Int32Array.from(keep) : null;
      const take = (all) => (shown ? all.constructor.from(shown, (i) => all[i]) : all);
      const hues = theme.palette.slice(0, 6);
      const codes = new Uint8Array(s.n);
      const hue = (k) => (k === s.grey ? 6 : k);
      for (let i = 0; i < s.n; i++) codes[i] = byCluster ? (cluster[i] < 0 ? 6 : rankOf.get(cluster[i]) % 6) : s.sides.length ? hue(side[i]) : 6;
      const colours = [...hues, theme.palette[6]];
      const scale = colours.flatMap((c, i) => [[i / 7, c], [(i + 1) / 7, c]]);
      const trace = {
        type: s.gl ? "scattergl" : "scatter",
        mode: "markers",
        x: take(x),
        y: take(y),
        hoverinfo: "none",
        marker: { color: take(codes), cmin: -0.5, cmax: 6.5, colorscale: scale, size: s.n > 50000 ? 2.5 : s.n > 5000 ? 4 : 6, opacity: s.n > 50000 ? 0.6 : 0.75 },
        showlegend: false,
      };
      if (!s.gl && s.sides.length > 1) trace.marker.symbol = Array.from(take(side), (c) => ["circle", "diamond"][c % 2]);
      const data = [trace];
      if (!byCluster) {
        s.sides.forEach((name, i) => {
          data.push({ type: "scatter", mode: "markers", x: [null], y: [null], name, marker: { color: colours[hue(i)], size: 9, symbol: s.gl ? "circle" : ["circle", "diamond"][i % 2] } });
        });
      }
      const bare = { visible: false, showgrid: false, zeroline: false };
      const old = plot.layout;
      const crisp = s.n > 50000 ? 1 : 2; // pixels a point is drawn with: without a GPU, many points at two are slow
      const layout = db.layout({
        height: 540, xaxis: { ...bare }, yaxis: { ...bare }, dragmode: old ? old.dragmode : "pan", hovermode: "closest",
        showlegend: s.sides.length > 1 && !byCluster, legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" }, uirevision: "map",
        margin: { l: 6, r: 6, t: 34, b: 6 },
      }, theme);
      await Plotly.react(plot, data, layout, { ...db.config, scrollZoom: true, displayModeBar: true, plotGlPixelRatio: crisp });
      place();
    };
    // Labels that fit: largest cluster first, none over another, and others as one zooms in. They are elements of the page,
    // since a change to plotly's own annotations draws all points again.
    const place = () => {
      const { xaxis, yaxis } = plot._fullLayout;
      const taken = [];
      names.replaceChildren();
      for (const l of labels) {
        if (!l.shown) continue;
        const [px, py] = [xaxis.d2p((l.x - s.x[0]) / s.x[1]), yaxis.d2p((l.y - s.y[0]) / s.y[1])];
        if (px < 0 || py < 0 || px > xaxis._length || py > yaxis._length) continue;
        const text = l.text.length > 36 ? `${l.text.slice(0, 35)}…` : l.text;
        const [w, h] = [text.length * 3.7 + 8, 11];
        if (taken.some(([x2, y2, w2, h2]) => Math.abs(px - x2) < w + w2 && Math.abs(py - y2) < h + h2)) continue;
        taken.push([px, py, w, h]);
        const name = document.createElement("span");
        name.textContent = text;
        name.style.left = `${px + xaxis._offset}px`;
        name.style.top = `${py + yaxis._offset}px`;
        names.append(name);
        if (taken.length >= 30) break;
      }
    };
    const original = (point) => (shown ? shown[point.pointNumber] : point.pointNumber);
    const about = (i) => [s.sides.length ? s.sides[side[i]] : null, cluster ? (cluster[i] < 0 ? "noise" : nameOf.get(cluster[i])) : null].filter(Boolean).join(" · ");

    const list = async (points, what) => {
      panel.replaceChildren();
      const head = document.createElement("h3");
      panel.append(head);
      if (!points) {
        head.textContent = "Click a point, draw a lasso, or choose a cluster to read the texts of a region.";
        return;
      }
      const { text, prompt } = await readTexts();
      const counts = s.sides.map((name, k) => `${points.filter((i) => side[i] === k).length} ${name}`).join(", ");
      const readable = points.filter((i) => text(i) !== null);
      const most = 40;
      const rest = readable.length > most ? `, the first ${most} shown` : "";
      const missing = readable.length < points.length ? `; this page holds ${readable.length} of these texts, all are in the stage's data folder` : "";
      head.textContent = `${what ? `${what}: ` : ""}${points.length} texts${counts ? ` (${counts})` : ""}${rest}${missing}`;
      const items = document.createElement("ul");
      for (const i of readable.slice(0, most)) {
        const item = document.createElement("li");
        if (s.sides.length) {
          const tag = document.createElement("span");
          tag.className = `db-side s${side[i]}`;
          tag.textContent = s.sides[side[i]];
          item.append(tag);
        }
        item.append(text(i));
        if (prompt(i) !== null) {
          const q = document.createElement("span");
          q.className = "q";
          q.textContent = `prompt: ${prompt(i)}`;
          item.append(q);
        }
        items.append(item);
      }
      panel.append(items);
      panel.scrollTop = 0;
    };

    await draw();
    plot.on("plotly_hover", async (event) => {
      const point = event.points && event.points[0];
      if (!point || point.curveNumber !== 0) return;
      const i = original(point);
      const { text } = await readTexts();
      tip.replaceChildren();
      const head = document.createElement("b");
      head.textContent = about(i);
      tip.append(head, text(i) === null ? (s.texts === undefined ? "" : "text in the stage's data folder") : text(i));
      tip.hidden = false;
      const box = live.getBoundingClientRect();
      const left = event.event.clientX - box.left + 14;
      tip.style.left = `${Math.min(left, box.width - tip.offsetWidth - 6)}px`;
      tip.style.top = `${event.event.clientY - box.top + 14}px`;
    });
    for (const moved of ["plotly_relayout", "plotly_relayouting"]) plot.on(moved, place);
    plot.on("plotly_unhover", () => { tip.hidden = true; });
    plot.on("plotly_click", (event) => {
      const i = original(event.points[0]);
      const near = [];
      const count = shown ? shown.length : s.n;
      const axis = plot._fullLayout;
      const [w, h] = [axis.xaxis.range[1] - axis.xaxis.range[0], axis.yaxis.range[1] - axis.yaxis.range[0]];
      for (let k = 0; k < count; k++) {
        const j = shown ? shown[k] : k;
        const d = ((x[j] - x[i]) / w) ** 2 + ((y[j] - y[i]) / h) ** 2;
        if (d < 0.0016) near.push([d, j]); // within 4% of the view
      }
      near.sort((a, b) => a[0] - b[0]);
      list(near.map(([, j]) => j), "Around this point");
    });
    plot.on("plotly_selected", (event) => {
      if (event && event.points) list(event.points.filter((p) => p.curveNumber === 0).map(original), "In the lasso");
    });
    list(null);
    if (s.gl) db.keepFew(figure, () => Plotly.purge(plot));
    return draw;
  };
})();
