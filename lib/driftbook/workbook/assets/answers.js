// The answers browser: all pairs stand in the page, packed; a search, filters and links to a claim or an answer.
(async () => {
  "use strict";
  const PAGE = 20;
  const form = document.querySelector(".db-find");
  const list = document.querySelector(".db-list");
  const found = document.querySelector(".db-found");
  const turn = document.querySelector(".db-turn");
  const { names, claims } = await driftbook.json(document, "settings");
  const data = await driftbook.json(document, "answers");
  const total = data.prompts.length;
  const lower = data.prompts.map((prompt, i) => [prompt, ...data.texts[0][i], ...data.texts[1][i]].join("\n").toLowerCase());
  const differ = data.prompts.map((_, i) => data.texts[0][i].join("\0") !== data.texts[1][i].join("\0"));
  for (const column of ["family", "split"]) {
    data[column].names.forEach((name, k) => { if (name) form[column].add(new Option(name, k)); });
    form[column].parentElement.hidden = data[column].names.length < 2;
  }
  form.claim.parentElement.hidden = !claims.length;
  let page = 0, shown = [], only = "";

  const claimAt = () => claims.findIndex((c) => String(c.n) === form.claim.value);
  const choose = () => {
    const query = form.text.value.trim().toLowerCase();
    const claim = claimAt();
    const shows = claim >= 0 ? data.shows[claim] : "";
    const side = claim >= 0 && claims[claim].by === "base" ? "b" : "c";
    shown = [];
    for (let i = 0; i < total; i++) {
      if (only && !data.ids.some((ids) => ids[i].includes(only))) continue;
      if (query && !lower[i].includes(query)) continue;
      if (form.family.value && data.family.of[i] !== +form.family.value) continue;
      if (form.split.value && data.split.of[i] !== +form.split.value) continue;
      if (form.differing.checked && !(shows ? "bc".includes(shows[i]) : differ[i])) continue;
      if (shows && !"bc=".includes(shows[i])) continue;
      shown.push(i);
    }
    if (shows) {
      const marks = data.marks[claim];
      const rank = (i) => (i in marks && shows[i] === side ? 0 : shows[i] === side ? 1 : shows[i] === "=" ? 3 : 2);
      shown.sort((a, b) => rank(a) - rank(b) || a - b);
    }
    page = 0;
    draw();
  };

  const node = (tag, name, ...inside) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inside);
    return made;
  };
  // Text with its evidence and what was searched for in <mark>; nothing is read as HTML.
  const text = (said, spans, query) => {
    const all = spans.map(([a, b]) => [a, b]);
    if (query) {
      const low = said.toLowerCase();
      if (low.length === said.length) for (let at = low.indexOf(query); at >= 0; at = low.indexOf(query, at + query.length)) all.push([at, at + query.length]);
    }
    all.sort((x, y) => x[0] - y[0]);
    const out = [];
    let at = 0;
    for (const [a, b] of all) {
      if (a < at) continue;
      out.push(said.slice(at, a), node("mark", "", said.slice(a, b)));
      at = b;
    }
    return [...out, said.slice(at)];
  };
  // Spans count code points, as Python does; strings here count UTF-16 units.
  const units = (said, spans) => {
    if (!spans.length || /^[\u0000-\uffff]*$/.test(said) && !/[\ud800-\udfff]/.test(said)) return spans;
    const at = [0];
    for (const c of said) at.push(at[at.length - 1] + c.length);
    return spans.map(([a, b]) => [at[a], at[b]]);
  };
  const told = { b: `${names[0]} shows more`, c: `${names[1]} shows more`, "=": "both show it", ".": "neither shows it", " ": "" };
  const draw = () => {
    const query = form.text.value.trim().toLowerCase();
    const claim = claimAt();
    const last = Math.max(0, Math.ceil(shown.length / PAGE) - 1);
    page = Math.min(Math.max(page, 0), last);
    found.textContent = `${shown.length.toLocaleString("en")} of ${total.toLocaleString("en")} prompts` + (claim >= 0 ? `: ${claims[claim].said}` : "") + (only ? " (one pair; clear the search to see all)" : "");
    list.replaceChildren(...shown.slice(page * PAGE, page * PAGE + PAGE).map((i) => {
      const head = node("p", "", node("b", "", "Prompt "), ...text(data.prompts[i], [], query));
      const about = [data.family.names[data.family.of[i]], data.split.names[data.split.of[i]], claim >= 0 ? told[data.shows[claim][i]] : ""].filter(Boolean).join(" · ");
      head.append(" ", node("span", "db-shows", about));
      const pair = node("article", "db-pair", head);
      [0, 1].forEach((side) => {
        const marks = claim >= 0 && data.marks[claim][i] ? data.marks[claim][i][side] : [];
        const box = node("div", "", node("span", `db-side s${side}`, names[side]));
        data.texts[side][i].forEach((said, k) => {
          const link = node("a", "db-here", "#");
          link.href = `#answer-${data.ids[side][i][k]}`;
          link.setAttribute("aria-label", "link to this answer");
          const answer = node("div", "db-answer", ...text(said || "(empty)", units(said, marks[k] || []), query), " ", link);
          answer.id = `answer-${data.ids[side][i][k]}`;
          box.append(answer);
        });
        pair.append(box);
      });
      return pair;
    }));
    turn.hidden = last === 0;
    turn.querySelector("span").textContent = `page ${page + 1} of ${last + 1}`;
  };
  turn.addEventListener("click", (event) => {
    const by = event.target.dataset.by;
    if (!by) return;
    page += +by;
    draw();
    list.scrollIntoView();
  });
  const follow = () => {
    const [, kind, name] = /^#(claim|answer)-(.+)$/.exec(decodeURIComponent(location.hash)) || [];
    only = kind === "answer" ? name : "";
    if (kind === "claim") {
      const claim = claims.find((c) => String(c.n) === name || c.id === name);
      form.reset();
      form.claim.value = claim ? claim.n : "";
    }
    choose();
    if (only) document.getElementById(`answer-${only}`)?.scrollIntoView({ block: "center" });
  };
  form.addEventListener("input", () => { only = ""; choose(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  addEventListener("hashchange", follow);
  form.hidden = false;
  follow();
  document.documentElement.dataset.ready = "1";
})();
