// The script of every report: unpacks data blocks, brings figures to life when they come near the screen, sorts tables.
// Nothing is fetched: all data stands in the page.
(() => {
  "use strict";
  const nonce = document.currentScript && document.currentScript.nonce;
  const driftbook = (window.driftbook = window.driftbook || {});
  if (driftbook.start) return;
  driftbook.kinds = {};

  const bytesOf = (text) => {
    const raw = atob(text);
    const bytes = new Uint8Array(raw.length);
    for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
    return bytes;
  };
  const inflate = async (bytes) => {
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  };
  const unpack = (element) => inflate(bytesOf(element.textContent));
  const utf8 = new TextDecoder();

  // A data block of a figure, as bytes, text or JSON.
  const element = (figure, name) => figure.querySelector(`.db-block[data-name="${name}"]`);
  driftbook.bytes = async (figure, name) => {
    const found = element(figure, name);
    return found ? unpack(found) : null;
  };
  driftbook.text = async (figure, name) => {
    const found = element(figure, name);
    if (!found) return null;
    return found.dataset.packed ? utf8.decode(await unpack(found)) : found.textContent;
  };
  driftbook.json = async (figure, name) => {
    const text = await driftbook.text(figure, name);
    return text === null ? null : JSON.parse(text);
  };

  // ------------------------------------------------------------------------------------------------------------- themes
  const themes = JSON.parse(document.querySelector(".db-theme").textContent);
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const fixedLight = () => !document.documentElement.classList.contains("db-page");
  driftbook.theme = () => (dark.matches && !fixedLight() ? themes.dark : themes.light);

  // Colours in a specification are those of the light theme; on dark paper each becomes its partner.
  const recolour = (value, theme) => {
    if (theme === themes.light || typeof value !== "string") return value;
    const lower = value.toLowerCase();
    let at = themes.light.palette.indexOf(lower);
    if (at >= 0) return theme.palette[at];
    for (const name of ["ink", "muted", "line", "grid", "paper"]) if (themes.light[name] === lower) return theme[name];
    const match = /^rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)$/.exec(lower);
    if (match) {
      const hex = "#" + match.slice(1, 4).map((part) => (+part).toString(16).padStart(2, "0")).join("");
      at = themes.light.palette.indexOf(hex);
      if (at >= 0) {
        const own = theme.palette[at];
        return `rgba(${[1, 3, 5].map((i) => parseInt(own.slice(i, i + 2), 16)).join(",")},${match[4]})`;
      }
    }
    return value;
  };
  const walk = (node, theme) => {
    if (!node || typeof node !== "object" || ArrayBuffer.isView(node)) return node;
    for (const [key, value] of Object.entries(node)) {
      if (/color$/i.test(key) && typeof value === "string") node[key] = recolour(value, theme);
      else if (/color$/i.test(key) && Array.isArray(value)) node[key] = value.map((v) => recolour(v, theme));
      else if (key === "colorscale" && Array.isArray(value)) node[key] = value.map(([at, c]) => [at, recolour(c, theme)]);
      else walk(value, theme);
    }
    return node;
  };
  driftbook.recolour = walk;

  const spread = (colours) => colours.map((c, i) => [i / (colours.length - 1), c]);
  driftbook.layout = (layout, theme) => {
    const axis = { gridcolor: theme.grid, linecolor: theme.line, zerolinecolor: theme.line, tickcolor: theme.line, automargin: true };
    const out = {
      ...layout,
      paper_bgcolor: theme.paper,
      plot_bgcolor: theme.paper,
      font: { family: themes.font, size: 13, color: theme.ink },
      colorway: theme.palette,
      hoverlabel: { bgcolor: theme.panel, bordercolor: theme.muted, font: { family: themes.font, color: theme.ink }, align: "left" },
      margin: { l: 56, r: 18, t: layout.showlegend === false ? 34 : 58, b: 48, ...(layout.margin || {}) },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: theme.muted, activecolor: theme.ink },
      autosize: true,
    };
    for (const key of Object.keys({ xaxis: 0, yaxis: 0, ...layout })) {
      if (/^[xy]axis\d*$/.test(key)) {
      out[key] = { ...axis, ...(layout[key] || {}) };
      if (out[key].title) out[key].title = { font: { size: 13 }, ...out[key].title };
      }
    }
    delete out.width;
    return out;
  };
  // Named one by one: plotly's own set holds a button that sends the chart to a server.
  const buttons = [["toImage"], ["zoom2d", "pan2d"], ["zoomIn2d", "zoomOut2d", "resetScale2d"]];
  driftbook.config = { responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: buttons };

  // ------------------------------------------------------------------------------------------------------------- plotly
  // Its block stands last in the page, so that pictures come first: it may not be parsed yet when a figure asks for it.
  const parsed = new Promise((done) => {
    if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", () => done());
    else done();
  });
  let plotly = null;
  driftbook.plotly = () => {
    if (window.Plotly) return Promise.resolve(window.Plotly);
    if (!plotly) {
      plotly = parsed.then(() => unpack(document.getElementById("db-plotly"))).then((bytes) => {
        const script = document.createElement("script");
        if (nonce) script.nonce = nonce;
        script.textContent = utf8.decode(bytes);
        document.head.append(script);
        return window.Plotly;
      });
    }
    return plotly;
  };

  // Labels of rows take at most four tenths of the width.
  const narrowed = (layout, width) => {
    const most = Math.max(10, Math.floor((width * 0.4) / 7));
    const short = (text) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
    const axis = layout.yaxis;
    if (Array.isArray(axis.categoryarray)) [axis.tickvals, axis.ticktext] = [axis.categoryarray, axis.categoryarray];
    if (Array.isArray(axis.ticktext)) axis.ticktext = axis.ticktext.map((text) => escaped(short(unescaped(text))));
    return layout;
  };
  // plotly reads a little HTML in labels, so texts hold entities; an entity must not be cut in two.
  const unescaped = (text) => text.replace(/&lt;/g, "<").replace(/&gt;/g, ">").replace(/&amp;/g, "&");
  const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  driftbook.kinds.gl = (figure, live) => driftbook.kinds.plot(figure, live); // the page then brings all of plotly
  driftbook.kinds.plot = async (figure, live) => {
    const [Plotly, spec, settings] = await Promise.all([driftbook.plotly(), driftbook.json(figure, "spec"), driftbook.json(figure, "settings")]);
    let choice = 0;
    const text = JSON.stringify(spec);
    const draw = () => {
      const theme = driftbook.theme();
      const fresh = walk(JSON.parse(text), theme);
      for (const trace of fresh.data) {
        const own = trace.meta && trace.meta.choice;
        if (own !== undefined) trace.visible = own === choice;
        if (trace.type === "heatmap" && !trace.colorscale) trace.colorscale = spread(trace.zmin < 0 && trace.zmax > 0 ? theme.diverging : theme.sequential);
        if (trace.visible !== false && trace.meta && trace.meta.tokens && fresh.layout.xaxis) fresh.layout.xaxis.ticktext = trace.meta.tokens;
        if (trace.meta && trace.meta.tokens) {
          fresh.layout.xaxis.tickvals = trace.visible === false ? fresh.layout.xaxis.tickvals : trace.meta.tokens.map((_, i) => i);
        }
      }
      return Plotly.react(live, fresh.data, narrowed(driftbook.layout(fresh.layout, theme), live.clientWidth), driftbook.config);
    };
    if (settings.choices.length) {
      driftbook.select(figure, settings.choiceLabel, settings.choices, choice, (value) => { choice = value; draw(); });
    }
    await draw();
    return draw;
  };

  // A link to what lies in a fold opens it.
  const unfoldTarget = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    for (let box = target; box; box = box.parentElement) if (box.tagName === "DETAILS") box.open = true;
  };
  addEventListener("hashchange", unfoldTarget);
  addEventListener("DOMContentLoaded", unfoldTarget);

  // A labelled <select> among a figure's controls.
  driftbook.select = (figure, label, options, value, change) => {
    const box = document.createElement("label");
    const select = document.createElement("select");
    options.forEach((text, i) => select.add(new Option(text, i, false, i === value)));
    select.addEventListener("change", () => change(+select.value));
    box.append(`${label} `, select);
    figure.querySelector(".db-controls").append(box);
    return select;
  };

  // ------------------------------------------------------------------------------------------- figures come to life
  const redraws = new Map();
  const webgl = []; // figures that hold WebGL contexts, oldest first; browsers allow few
  driftbook.keepFew = (figure, release) => {
    webgl.push({ figure, release });
    if (webgl.length > 4) {
      const old = webgl.shift();
      // A context counts until it is collected, which may be late: give it back now.
      const contexts = [...old.figure.querySelectorAll("canvas")].map((canvas) => canvas.getContext("webgl"));
      old.release();
      for (const gl of contexts) gl?.getExtension("WEBGL_lose_context")?.loseContext();
      redraws.delete(old.figure);
      old.figure.querySelector(".db-live").hidden = true;
      old.figure.querySelector(".db-static").hidden = false;
      old.figure.querySelector(".db-controls").replaceChildren();
      delete old.figure.dataset.state;
      watch(old.figure);
    }
  };
  const wake = async (figure) => {
    if (figure.dataset.state) return;
    figure.dataset.state = "waking";
    const live = figure.querySelector(".db-live");
    const still = figure.querySelector(".db-static");
    live.hidden = false;
    still.hidden = true;
    const settings = await driftbook.json(figure, "settings");
    live.setAttribute("role", "group");
    live.setAttribute("aria-label", settings.alt);
    try {
      redraws.set(figure, await driftbook.kinds[figure.dataset.kind](figure, live));
      figure.dataset.state = "live";
    } catch (error) {
      live.hidden = true; // the static picture says what the live one would have said
      still.hidden = false;
      figure.dataset.state = "failed";
      throw error;
    }
  };
  let queue = Promise.resolve();
  const observer = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      observer.unobserve(entry.target);
      queue = queue.then(() => wake(entry.target)).catch((error) => console.error(error));
    }
  }, { rootMargin: "500px" });
  const watch = (figure) => observer.observe(figure);
  dark.addEventListener("change", () => { for (const redraw of redraws.values()) redraw(); });

  // --------------------------------------------------------------------------------------------------------- tables
  const sortable = (table) => {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending";
        const numeric = head.classList.contains("n");
        const body = table.tBodies[0];
        const key = (row) => {
          const cell = row.cells[column];
          if (!numeric) return cell.dataset.v || cell.textContent;
          return cell.dataset.v === undefined ? NaN : +cell.dataset.v;
        };
        const rows = [...body.rows].map((row) => [key(row), row]);
        rows.sort(([a], [b]) => {
          if (numeric) return isNaN(a) ? 1 : isNaN(b) ? -1 : up ? a - b : b - a; // what is missing stays last
          return up ? a.localeCompare(b) : b.localeCompare(a);
        });
        body.append(...rows.map(([, row]) => row));
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
      });
    });
  };
  const download = (details) => {
    const button = details.querySelector(".db-csv");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", async () => {
      const found = element(details, "csv");
      const text = found.dataset.packed ? utf8.decode(await unpack(found)) : JSON.parse(found.textContent);
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = "data.csv";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
  };

  driftbook.start = (root) => {
    for (const figure of root.querySelectorAll(".db-figure:not([data-seen])")) {
      figure.dataset.seen = "1";
      if (driftbook.kinds[figure.dataset.kind]) watch(figure);
    }
    root.querySelectorAll(".db-table:not([data-seen])").forEach((t) => { t.dataset.seen = "1"; sortable(t); });
    root.querySelectorAll(".db-data:not([data-seen])").forEach((d) => { d.dataset.seen = "1"; download(d); });
    const next = root.querySelector(".db-next");
    const pairs = [...root.querySelectorAll(".db-read .db-pair")];
    if (next && pairs.length > 2) {
      let first = 0;
      const show = () => pairs.forEach((pair, i) => { pair.hidden = (i - first + pairs.length) % pairs.length > 1; });
      next.hidden = false;
      next.addEventListener("click", () => { first = (first + 2) % pairs.length; show(); });
      show();
    }
    const unfold = root.querySelector(".db-unfold");
    if (unfold) {
      unfold.hidden = false;
      unfold.addEventListener("click", () => {
        const open = unfold.getAttribute("aria-pressed") !== "true";
        unfold.setAttribute("aria-pressed", open);
        unfold.textContent = open ? "Fold all code" : "Show all code";
        root.querySelectorAll(".db-code").forEach((d) => { d.open = open; });
      });
    }
  };
})();
