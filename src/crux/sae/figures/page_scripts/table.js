// The list: a table of which only the rows that are seen are in the document.

const ROW_HEIGHT = 27, ROWS_AROUND = 8;

const TEXT_NOTES = { reads: "its first rule", promotes: "tokens that it makes more likely: measured if they are known of the latent, else those of the direct path (lens)" };

class LatentTable {
  constructor(page, { onSelect, onSort }) {
    Object.assign(this, { page, onSelect, onSort, rows: [], first: -1 });
    this.head = make("tr");
    this.body = make("tbody");
    this.table = make("table", { class: "latents" }, make("thead", {}, this.head), this.body);
    this.element = make("div", { class: "list", tabindex: "0", "aria-label": "latents" }, this.table);
    this.element.addEventListener("scroll", () => this.draw());
    new ResizeObserver(() => this.draw(true)).observe(this.element);
  }

  // Shows rows in a new order; `selected` is one of them, or null.
  show(state, rows, columns, selected) {
    Object.assign(this, { state, rows, columns, selected });
    this.sae = this.page.saes.find((one) => one.key === state.sae);
    const pairs = state.view === "pairs";
    const head = (key, label, note) => {
      const sorted = state.sort === key;
      const button = make("button", { onclick: () => this.onSort(key), title: note }, label + (sorted ? (state.order === "up" ? " ▲" : " ▼") : ""));
      return make("th", { scope: "col", "data-key": key, "aria-sort": sorted ? (state.order === "up" ? "ascending" : "descending") : "none" }, button);
    };
    this.texts = pairs ? [] : [...(this.sae.index.rules ? ["reads"] : []), ...(this.sae.promoted ? ["promotes"] : [])];
    const names = pairs ? this.page.saes.map((one) => one.about.name).join(" | ") : "latent";
    this.head.replaceChildren(head("latent", names, "index in the dictionary"), ...this.texts.map((name) => make("th", { scope: "col", class: "pieces", title: TEXT_NOTES[name] }, name)), ...columns.map((c) => head(c.key, c.label, c.note)));
    this.table.setAttribute("aria-rowcount", rows.length);
    this.draw(true);
  }

  draw(always = false) {
    if (!this.state) return;
    const n = this.rows.length;
    const first = Math.max(0, Math.floor(this.element.scrollTop / ROW_HEIGHT) - ROWS_AROUND);
    const last = Math.min(n, first + Math.ceil(this.element.clientHeight / ROW_HEIGHT) + 2 * ROWS_AROUND, first + 60);
    if (!always && first === this.first) return;
    this.first = first;
    const space = (rows) => {
      const row = make("tr", { class: "space", "aria-hidden": "true" });
      row.style.height = `${rows * ROW_HEIGHT}px`;
      return row;
    };
    const shown = this.rows.slice(first, last).map((row, i) => this.rowElement(row, first + i));
    this.body.replaceChildren(...(first ? [space(first)] : []), ...shown, ...(last < n ? [space(n - last)] : []));
  }

  rowElement(row, place) {
    const pair = this.state.view === "pairs" ? this.page.pairs[row].rows : null;
    const name = pair ? pair.map((r, k) => this.page.saes[k].latents[r]).join(" | ") : String(this.sae.latents[row]);
    const element = make("tr", { onclick: () => this.onSelect(row), "aria-rowindex": place + 1, "aria-selected": String(row === this.selected) }, make("th", { scope: "row" }, name));
    for (const text of this.texts) {
      const pieces = text === "reads" ? (this.sae.rules(row)[0] ?? []) : this.sae.promotedPieces(row, 3);
      element.append(make("td", { class: "pieces" }, ...pieces.map((p) => pieceElement(this.page.pieces, p))));
    }
    for (const column of this.columns) {
      const cell = make("td", {}, formatValue(column.values[row], column));
      if (column.kind === "percentile" && !Number.isNaN(column.values[row])) cell.append(percentileBar(column.values[row]));
      element.append(cell);
    }
    return element;
  }

  // Scrolls to a row: as little as is needed if it is next to those on the screen, otherwise to the middle.
  reveal(row) {
    const place = this.rows.indexOf(row);
    if (place < 0) return;
    const head = this.head.offsetHeight, top = place * ROW_HEIGHT, height = this.element.clientHeight - head;
    const above = this.element.scrollTop - top, below = top + ROW_HEIGHT - this.element.scrollTop - height;
    if (Math.max(above, below) > 2 * ROW_HEIGHT) this.element.scrollTop = top - height / 2;
    else if (above > 0) this.element.scrollTop = top;
    else if (below > 0) this.element.scrollTop += below;
    this.draw(true);
  }
}
