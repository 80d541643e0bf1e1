// Puts the page together: the state is in the address; every change writes the address and draws what depends on it.

class App {
  constructor(page) {
    this.page = page;
    this.notes = new Notes(page);
    this.list = new LatentTable(page, { onSelect: (row) => this.select(row), onSort: (key) => this.sort(key) });
    this.plot = new ScatterPlot(page, {
      onBrush: (ranges) => this.go({ filters: { ...this.state.filters, ...ranges }, view: this.state.view === "pairs" ? "all" : this.state.view }),
      onSelect: (sae, latent) => this.go({ sae, latent, view: "all" }), onAxes: (x, y) => this.go({ plot: `${x},${y}` }),
    });
    this.cards = make("div", { class: "cards", "aria-live": "polite" });
    this.search = make("input", { type: "search", placeholder: page.saes[0].index.rules ? "search rules and promoted tokens" : "search promoted tokens", "aria-label": "search", oninput: () => this.go({ q: this.search.value }) });
    this.count = make("span", { class: "count", role: "status" });
    this.tabs = make("nav", { class: "tabs", "aria-label": "what the list shows" });
    this.filters = make("details", { class: "filters" });
    this.build();
    window.addEventListener("hashchange", () => this.read());
    document.addEventListener("keydown", (event) => this.press(event));
    this.read();
  }

  build() {
    const { manifest, saes } = this.page;
    const facts = make("dl", { class: "facts" });
    const lists = [manifest.facts, ...saes.map((sae) => (saes.length > 1 ? [["SAE", sae.about.name], ...sae.about.facts] : sae.about.facts))];
    for (const [name, value] of lists.flat()) facts.append(make("dt", {}, name), make("dd", {}, value));
    const about = make("details", { class: "about" }, make("summary", {}, "about this page"), facts, make("p", {}, LEGEND), columnNotes(saes[0]));
    const tools = make("div", { class: "tools" }, this.tabs, this.search, this.count, this.filters,
      make("button", { onclick: () => this.go({ plot: this.state.plot ? "" : ScatterPlot.axes(this.page) }), class: "toggle-plot" }, "scatter"),
      make("button", { onclick: () => this.notes.save(), title: "save your notes as a JSON file" }, "save notes"),
      make("button", { onclick: nextTheme, title: "light, dark, or as the system" }, "theme"));
    const main = make("main", {}, make("div", { class: "left" }, this.plot.element, this.list.element), this.cards);
    document.getElementById("app").append(make("header", { class: "top" }, make("h1", {}, manifest.title), about, tools), main);
  }

  read() {
    this.state = readAddress(this.page);
    this.draw();
  }

  // Changes the state, and writes it into the address; keeps the place in the history unless the latent changes.
  go(changes) {
    const before = this.state;
    this.state = { ...this.state, ...changes };
    this.draw(); // chooses a latent if there is none
    const address = writeAddress(this.state);
    if (this.state.latent !== before.latent || this.state.sae !== before.sae) history.pushState(null, "", address);
    else history.replaceState(null, "", address);
  }

  sae() {
    return this.page.saes.find((one) => one.key === this.state.sae);
  }

  draw() {
    const { state } = this;
    const columns = listColumns(this.page, state);
    if (state.sort !== "latent" && !columns.some((c) => c.key === state.sort)) state.sort = defaultSort(columns);
    const rows = listRows(this.page, state);
    if (state.latent === null) state.latent = rows.length ? this.latentOf(rows[0]) : null;
    if (this.search.value !== state.q) this.search.value = state.q;
    this.count.textContent = `${rows.length.toLocaleString("en")} of ${(state.view === "pairs" ? this.page.pairs.length : this.sae().latents.length).toLocaleString("en")}`;
    this.drawTabs();
    this.drawFilters(columns);
    this.list.show(state, rows, columns, this.selectedRow());
    this.list.reveal(this.selectedRow());
    this.plot.show(state, rows);
    this.drawCards();
  }

  // Returns the latent of a row of the list; of a pair, that of the first SAE.
  latentOf(row) {
    return this.state.view === "pairs" ? this.page.saes[0].latents[this.page.pairs[row].rows[0]] : this.sae().latents[row];
  }

  selectedRow() {
    const row = this.sae().rowOf.get(this.state.latent);
    return this.state.view === "pairs" ? this.sae().partner.get(row) : row;
  }

  select(row) {
    this.go(this.state.view === "pairs" ? { sae: "a", latent: this.latentOf(row) } : { latent: this.latentOf(row) });
  }

  sort(key) {
    const order = this.state.sort === key ? (this.state.order === "down" ? "up" : "down") : key === "latent" ? "up" : "down";
    this.go({ sort: key, order });
    this.list.element.scrollTop = 0;
  }

  drawTabs() {
    const { saes, pairs } = this.page;
    if (saes.length === 1) return;
    const tab = (label, changes) => {
      const chosen = Object.entries(changes).every(([key, value]) => this.state[key] === value);
      return make("button", { "aria-pressed": String(chosen), onclick: () => this.go({ latent: null, sort: null, order: "down", filters: {}, ...changes }) }, label);
    };
    this.tabs.replaceChildren(
      ...saes.map((sae) => tab(sae.about.name, { sae: sae.key, view: "all" })), ...(pairs ? [tab(VIEWS.pairs, { sae: "a", view: "pairs" })] : []),
      ...(pairs ? saes.map((sae) => tab(`only in ${sae.about.name}`, { sae: sae.key, view: "only" })) : []),
    );
  }

  drawFilters(columns) {
    const active = Object.keys(this.state.filters).filter((key) => columns.some((c) => c.key === key)).length;
    const names = columns.map((c) => c.key).join();
    if (this.filters.dataset.names !== names) {
      const fields = columns.map((column) => {
        const bound = (which, name) => make("input", { type: "number", step: "any", placeholder: name, "data-filter": column.key, "data-bound": which, "aria-label": `${name} ${column.label}`, onchange: () => this.filter() });
        return make("label", { title: column.note }, column.label, make("span", {}, bound(0, "from"), " to ", bound(1, "to")));
      });
      this.filters.replaceChildren(make("summary", {}), make("div", {}, ...fields, make("button", { onclick: () => this.go({ filters: {} }) }, "clear")));
      this.filters.dataset.names = names;
    }
    this.filters.firstChild.textContent = active ? `filters (${active})` : "filters";
    for (const input of this.filters.querySelectorAll("input"))
      if (input !== document.activeElement) input.value = this.state.filters[input.dataset.filter]?.[input.dataset.bound] ?? "";
  }

  filter() {
    const filters = {};
    for (const input of this.filters.querySelectorAll("input")) {
      if (input.value === "") continue;
      filters[input.dataset.filter] ??= [null, null];
      filters[input.dataset.filter][input.dataset.bound] = Number(input.value);
    }
    this.go({ filters });
  }

  async drawCards() {
    const { state } = this, wanted = [];
    const pair = state.view === "pairs" ? this.page.pairs[this.selectedRow()] : null;
    if (pair) this.page.saes.forEach((sae, n) => wanted.push([sae, pair.rows[n]]));
    else if (this.sae().rowOf.has(state.latent)) wanted.push([this.sae(), this.sae().rowOf.get(state.latent)]);
    const key = wanted.map(([sae, row]) => `${sae.key}${row}`).join();
    if (key === this.drawn) return;
    this.drawn = key;
    const cards = await Promise.all(wanted.map(([sae, row]) => cardElement(this.page, sae, row, this.notes, (changes) => this.go(changes))));
    if (this.drawn !== key) return; // another latent was chosen in the meantime
    const missing = make("p", {}, state.latent === null ? "No latent passes the search and the filters." : `There is no latent ${state.latent} on this page.`);
    this.cards.replaceChildren(...(cards.length ? cards : [missing]));
    this.cards.scrollTop = 0;
    this.cards.dataset.shown = key;
    document.title = cards.length ? `latent ${state.latent} · ${this.page.manifest.title}` : this.page.manifest.title;
  }

  press(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && event.target instanceof HTMLElement) event.target.blur();
    if (/^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "/") {
      event.preventDefault();
      this.search.focus();
    }
    const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
    if (!step || !this.list.rows.length) return;
    event.preventDefault();
    const place = this.list.rows.indexOf(this.selectedRow());
    const next = place < 0 ? 0 : Math.max(0, Math.min(this.list.rows.length - 1, place + step));
    this.select(this.list.rows[next]);
  }
}

const LEGEND =
  "A context is a part of a held-out text; the framed token is the one for which it was chosen, the number before it is the latent's code " +
  "there and, if it has rules, below it the code that these predict. Shading and underline show the size of the code on each token; thin lines separate tokens. A character that several tokens make has " +
  "one stripe per token, ⟨e4⟩ is a byte that is part of no character, · is a space, and ⊢ the beginning of the window that the network reads. " +
  "Groups by code are equal shares of the tokens on which the latent fires, by rank. Keys: ↑ ↓ next latent, / search.";

function columnNotes(sae) {
  const list = make("dl", { class: "facts" });
  for (const column of sae.columns) list.append(make("dt", {}, column.label), make("dd", {}, column.note));
  return list;
}

function nextTheme() {
  const root = document.documentElement, themes = ["", "light", "dark"];
  const next = themes[(themes.indexOf(root.dataset.theme ?? "") + 1) % 3];
  if (next) root.dataset.theme = next;
  else delete root.dataset.theme;
  window.dispatchEvent(new Event("resize"));
}

async function start() {
  const started = performance.now();
  const page = await loadPage();
  document.getElementById("app").hidden = false;
  document.getElementById("plain").hidden = true;
  new App(page);
  document.documentElement.dataset.ready = Math.round(performance.now() - started);
}

start().catch((error) => {
  const reason = "DecompressionStream" in window ? error.message : "this browser is too old to unpack its data";
  document.getElementById("app").hidden = true;
  const plain = document.getElementById("plain");
  plain.hidden = false;
  plain.prepend(make("p", { class: "failure", role: "alert" }, `The list of all latents cannot be shown: ${reason}.`));
  console.error(error);
});
