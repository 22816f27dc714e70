
"use strict";
(() => {
  const one = (query, at = document) => at.querySelector(query);
  const all = (query, at = document) => [...at.querySelectorAll(query)];
  const panel = one("#panel"), body = one("#panel-body"), title = one("#panel-title");
  const keyOf = (i) => all("details.all")[i].dataset.key;
  const nameOf = (i) => one(`.card[data-col="${i}"] h2`).textContent.trim();
  const there = (link) => decodeURIComponent(link.getAttribute("href").slice(1));
  const cellOf = new Map(all("a.cell").map((cell) => [there(cell), cell]));
  const kindOf = (element) => ["failed", "should", "xfailed", "skipped", "passed"].find((k) => element.classList.contains(k));
  const seen = (element) => !element.closest(".out");
  const failing = new Set(["failed", "should", "xfailed"]);
  let from = null;

  // The panel: what is behind a cell. Everything in it is a copy of what the page has.
  function show(hash, focus) {
    const cell = cellOf.get(hash), one_check = document.getElementById(hash);
    let checks = [one_check];
    if (cell && !one_check) {
      const row = cell.closest("tr"), i = Number(cell.parentElement.dataset.col);
      checks = row.dataset.checks.split(" ")
        .map((name) => document.getElementById(`check/${name}/${keyOf(i)}`)).filter(Boolean);
      one("#panel-where").textContent =
        [row.dataset.name, row.dataset.requirement, nameOf(i), kindOf(cell)].filter(Boolean).join(" · ");
      title.textContent = row.dataset.title;
    } else if (one_check && one_check.matches("details.check")) {
      const i = all("details.all").indexOf(one_check.closest("details.all"));
      one("#panel-where").textContent = `check · ${nameOf(i)}`;
      title.textContent = hash.split("/")[1];
    } else {
      return hide(false);
    }
    const weight = (d) => (d.matches(".failed, .should, .xfailed") ? 0 : 1);
    const copies = checks.sort((a, b) => weight(a) - weight(b)).map((check) => check.cloneNode(true));
    copies.forEach((copy, i) => {
      copy.removeAttribute("id");
      copy.open = weight(copy) === 0 || copies.length === 1;
      copy.tabIndex = -1;
    });
    if (!copies.length) {
      const none = document.createElement("p");
      none.textContent = "No check that tests this ran.";
      copies.push(none);
    }
    body.replaceChildren(...copies);
    mark(cell);
    panel.hidden = false;
    document.body.classList.add("open");
    panel.scrollTop = 0;
    if (cell && seen(cell)) {
      const at = cell.getBoundingClientRect();
      if (at.top < 220 || at.bottom > innerHeight - 40) cell.scrollIntoView({ block: "center" });
    }
    if (focus) title.focus({ preventScroll: true });
  }
  function mark(cell) {
    all("[aria-current]").forEach((old) => old.removeAttribute("aria-current"));
    if (cell) cell.setAttribute("aria-current", "true");
    from = cell || from;
  }
  function hide(back) {
    if (panel.hidden) return;
    panel.hidden = true;
    document.body.classList.remove("open");
    mark(null);
    if (location.hash) history.replaceState(null, "", location.pathname + location.search);
    if (back && from) from.focus();
  }
  function here() {
    try { return decodeURIComponent(location.hash.slice(1)); } catch { return ""; }
  }
  const follow = () => show(here(), true);
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) { event.preventDefault(); follow(); }
    const copy = event.target.closest(".copy");
    if (copy) take(copy);
  });
  one("#close").addEventListener("click", () => hide(true));

  // A page from a file has no clipboard in some browsers; then the text is selected instead.
  async function take(button) {
    const code = button.parentElement.nextElementSibling;
    const label = (text) => {
      button.textContent = text;
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
    try {
      await navigator.clipboard.writeText(code.textContent);
      label("Copied");
    } catch {
      getSelection().selectAllChildren(code);
      label(document.execCommand("copy") ? "Copied" : "Selected");
    }
  }

  // Filter: a word that names a backend picks columns, any other must be in a row.
  const box = one("#filter"), only = one("#failures");
  const columns = all(".card").map((card, i) => nameOf(i).toLowerCase());
  function filter() {
    const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
    const texts = all(".row").map((row) => Object.values(row.dataset).join(" ").toLowerCase());
    const isRow = (word) => texts.some((text) => text.includes(word));
    const picks = words.filter((word) => columns.some((name) => name.includes(word)) && !isRow(word));
    const rest = words.filter((word) => !picks.includes(word));
    const shows = columns.map((name) => !picks.length || picks.some((word) => name.includes(word)));
    all("[data-col]").forEach((cell) => cell.classList.toggle("out", !shows[cell.dataset.col]));
    all("details.all").forEach((group, i) => group.classList.toggle("out", !shows[i]));
    const fails = (at) => all("td:not(.out) > a", at).some((a) => failing.has(kindOf(a)));
    all(".row").forEach((row, i) => {
      const named = rest.every((word) => texts[i].includes(word));
      row.classList.toggle("out", !named || (only.checked && !fails(row)));
    });
    all("details.check", one("#checks")).forEach((check) => {
      const text = `${one("b", check).textContent} ${all(":not(pre) > code", check).map((c) => c.textContent).join(" ")}`;
      const named = rest.every((word) => text.toLowerCase().includes(word));
      check.classList.toggle("out", !named || (only.checked && !check.matches(".failed, .should, .xfailed")));
    });
    all("tbody.level").forEach((head) => {
      head.classList.toggle("out", !all(".row", head.nextElementSibling).some((row) => seen(row)));
    });
    const rows = all(".matrix .row"), kept = rows.filter(seen).length;
    one("#count").textContent = kept === rows.length ? "" : `${kept} of ${rows.length} clauses`;
  }
  box.addEventListener("input", filter);
  only.addEventListener("change", filter);
  one(".filter").addEventListener("submit", (event) => event.preventDefault());

  // Keys.
  const cells = () => all(".matrix a.cell").filter(seen);
  function failure(step) {
    const failures = cells().filter((cell) => failing.has(kindOf(cell)));
    if (!failures.length) return;
    const everything = cells(), at = everything.indexOf(from);
    const places = failures.map((cell) => everything.indexOf(cell));
    let next = step > 0 ? places.findIndex((p) => p > at) : places.findLastIndex((p) => p < at);
    if (next < 0) next = step > 0 ? 0 : failures.length - 1;
    go(failures[next]);
  }
  function go(cell) {
    location.hash = cell.getAttribute("href");
  }
  one("#before").addEventListener("click", () => failure(-1));
  one("#after").addEventListener("click", () => failure(1));
  function move(key) {
    const now = document.activeElement.matches("a.cell") ? document.activeElement : null;
    if (!now) return false;
    const rows = all(".row", now.closest("table")).filter(seen);
    const row = now.closest("tr"), links = (r) => all("a.cell", r).filter(seen);
    const column = now.parentElement.dataset.col;
    let next;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      next = links(row)[links(row).indexOf(now) + (key === "ArrowLeft" ? -1 : 1)];
    } else {
      const r = rows[rows.indexOf(row) + (key === "ArrowUp" ? -1 : 1)];
      next = r && (links(r).find((a) => a.parentElement.dataset.col === column) || links(r)[0]);
    }
    if (next) {
      next.focus();
      if (!panel.hidden) { history.replaceState(null, "", next.getAttribute("href")); show(there(next), false); }
    }
    return true;
  }
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input[type=search]");
    if (event.key === "Escape") {
      if (typing && box.value) { box.value = ""; filter(); } else if (typing) box.blur(); else hide(true);
    } else if (typing) {
      return;
    } else if (event.key === "/") {
      event.preventDefault();
      box.focus();
    } else if (event.key === "n" || event.key === "p") {
      failure(event.key === "n" ? 1 : -1);
    } else if (event.key.startsWith("Arrow")) {
      if (event.shiftKey) return;
      if (!document.activeElement.matches("a.cell") && !panel.hidden && from && !panel.contains(event.target)) from.focus();
      if (move(event.key)) event.preventDefault();
    }
  });

  // What a cell says, to those who point at it and to those who hear the page.
  cellOf.forEach((cell) => {
    const size = cell.dataset.r ? `, ${cell.dataset.r} × allowed` : "";
    const row = cell.closest("tr").dataset.name, i = cell.parentElement.dataset.col;
    cell.title = `${row}, ${nameOf(i)}: ${kindOf(cell)}${size}`;
    cell.setAttribute("aria-label", cell.title);
  });

  // Values under the pointer in a plot.
  const told = (v) => (typeof v === "number" ? String(Number(v.toPrecision(4))) : v);
  document.addEventListener("pointermove", (event) => {
    const svg = event.target.closest?.(".series svg");
    if (!svg) return;
    const [first, truth, found, allowed] = (svg.points ||= JSON.parse(svg.dataset.points));
    const last = Math.max(1, truth.length - 1);
    const box = svg.getBoundingClientRect(), left = Number(svg.dataset.left), right = Number(svg.dataset.right);
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const i = Math.min(truth.length - 1, Math.max(0, Math.round(((x - left) / (right - left || 1)) * last)));
    const at = left + (i / last) * (right - left);
    const cross = one(".cross", svg);
    cross.setAttribute("x1", at);
    cross.setAttribute("x2", at);
    cross.classList.add("on");
    one(".readout", svg.parentElement).textContent =
      `step ${first + i}: oracle ${told(truth[i])}, backend ${told(found[i])}, allowed ±${told(allowed[i])}`;
  });

  // On paper what failed is unfolded.
  addEventListener("beforeprint", () => {
    all("details.all, details.check.failed, details.check.should, details.check.xfailed").forEach((d) => { d.open = true; });
  });

  if (location.hash) follow();
})();
