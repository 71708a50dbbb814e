// Terms of art explained where they stand: the first of each in a section, and each heading of a table, gets its
// definition on hover and focus.
(() => {
  "use strict";
  const read = (name) => JSON.parse((document.querySelector(name) || { textContent: "{}" }).textContent);
  const meanings = read(".db-glossary");
  const headings = read(".db-headings");
  const words = Object.keys(meanings);
  if (!words.length && !Object.keys(headings).length) return;
  const escaped = words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
  const pattern = new RegExp(`(?<![\\w-])(${escaped.join("|")})(?![\\w-])`, "i");
  const meaning = new Map(words.map((w) => [w.toLowerCase(), meanings[w]]));
  const skip = "a, button, summary, code, pre, script, style, svg, h1, h2, select, option, label, mark, th, .db-term, .db-told, .db-live, .db-controls, .db-static";
  const where = "p, li, dd, dt, figcaption, td.t, .db-table-caption";

  const tip = document.createElement("div");
  tip.className = "db-tip";
  tip.id = "db-tip";
  tip.setAttribute("role", "tooltip");
  tip.hidden = true;
  document.body.append(tip);
  const show = (term, said, at) => {
    tip.textContent = said;
    tip.hidden = false;
    const box = term.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(box.left, innerWidth - tip.offsetWidth - 8)) + scrollX}px`;
    const below = box.bottom + tip.offsetHeight + 12 < innerHeight;
    tip.style.top = `${(below ? box.bottom + 6 : box.top - tip.offsetHeight - 6) + scrollY}px`;
    at.setAttribute("aria-describedby", tip.id);
  };
  const hide = (at) => { tip.hidden = true; at.removeAttribute("aria-describedby"); };
  const explained = (element, said) => {
    element.classList.add("db-term");
    // a heading holds a button that sorts and takes the focus: it is what the definition is of
    for (const name of ["mouseenter", "focusin"]) element.addEventListener(name, (e) => show(element, said, e.target));
    for (const name of ["mouseleave", "focusout"]) element.addEventListener(name, (e) => hide(e.target));
  };
  addEventListener("keydown", (event) => { if (event.key === "Escape") tip.hidden = true; });

  const explain = (root) => {
    const seen = new Set();
    for (const box of root.querySelectorAll(where)) {
      if (box.closest(skip)) continue;
      const walker = document.createTreeWalker(box, NodeFilter.SHOW_TEXT);
      const nodes = [];
      while (walker.nextNode()) if (!walker.currentNode.parentElement.closest(skip)) nodes.push(walker.currentNode);
      for (let node of nodes) {
        for (let guard = 0; guard < 20; guard++) {
          const found = pattern.exec(node.data);
          if (!found) break;
          let rest = node.splitText(found.index);
          const after = rest.splitText(found[0].length);
          const key = meaning.get(found[0].toLowerCase());
          if (!seen.has(key)) {
            seen.add(key);
            const term = document.createElement("span");
            term.tabIndex = 0;
            term.setAttribute("role", "term");
            rest.replaceWith(term);
            term.append(rest);
            explained(term, key);
          }
          node = after;
        }
      }
    }
  };
  for (const head of document.querySelectorAll("main .db-table th")) {
    const said = headings[head.textContent.trim()];
    if (said) explained(head, said);
  }
  if (!words.length) return;
  const sections = document.querySelectorAll("main section, main .db-cell-group");
  if (sections.length) sections.forEach(explain);
  else explain(document.querySelector("main"));
})();
