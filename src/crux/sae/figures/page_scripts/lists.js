// What the list shows: which latents or pairs, in which order. The state is in the address, so that it can be sent to others.

const VIEWS = { all: "all", pairs: "matched pairs", only: "only here" };
const STATE_KEYS = ["view", "sort", "order", "q", "plot"];

// Reads `#a/17?sort=influence&order=up&q=the&density=0.001..0.01`.
function readAddress(page) {
  const [place, query = ""] = location.hash.replace(/^#/, "").split("?");
  const match = /^([ab])(?:\/(\d+))?$/.exec(place);
  const state = { sae: "a", latent: null, view: "all", sort: null, order: "down", q: "", plot: "", filters: {} };
  if (match && page.saes.some((sae) => sae.key === match[1])) {
    state.sae = match[1];
    if (match[2] !== undefined) state.latent = Number(match[2]);
  }
  for (const [key, value] of new URLSearchParams(query)) {
    if (STATE_KEYS.includes(key)) state[key] = value;
    else if (/^-?[\d.eE+-]*\.\.-?[\d.eE+-]*$/.test(value)) state.filters[key] = value.split("..").map((x) => (x === "" ? null : Number(x)));
  }
  if (!(state.view in VIEWS) || !page.pairs) state.view = "all";
  return state;
}

function writeAddress(state) {
  const query = new URLSearchParams();
  if (state.view !== "all") query.set("view", state.view);
  if (state.sort) query.set("sort", state.sort);
  if (state.order === "up") query.set("order", "up");
  if (state.q) query.set("q", state.q);
  if (state.plot) query.set("plot", state.plot);
  for (const [key, [low, high]] of Object.entries(state.filters)) query.set(key, `${low ?? ""}..${high ?? ""}`);
  const text = query.toString();
  return `#${state.sae}${state.latent === null ? "" : `/${state.latent}`}${text ? `?${text}` : ""}`;
}

// Returns the columns of the list: for pairs, those in which the two latents may disagree.
function listColumns(page, state) {
  const sae = page.saes.find((one) => one.key === state.sae);
  if (state.view !== "pairs") return sae.columns;
  const [a, b] = page.saes;
  const numbers = (read) => Float32Array.from(page.pairs, read);
  const columns = [{ key: "cosine", label: "cosine", note: "cosine of the two directions", kind: "number", values: numbers((p) => p.cosine) }];
  if (page.pairs.some((p) => p.correlation !== undefined))
    columns.push({ key: "correlation", label: "correlation", note: "correlation of the two codes over tokens", kind: "number", values: numbers((p) => p.correlation) });
  for (const column of a.columns) {
    const other = b.column(column.key);
    if (!other) continue;
    const ratio = column.log;
    const read = ({ rows: [i, j] }) => (ratio ? Math.log2(other.values[j] / column.values[i]) : other.values[j] - column.values[i]);
    columns.push({
      key: column.key, label: ratio ? `${column.label}, factor` : `Δ ${column.label}`, kind: ratio ? "factor" : "number", bySize: true, names: page.saes.map((sae) => sae.about.name),
      note: `${column.note}; ${ratio ? "in which of the two it is larger, and how many times" : `${b.about.name} minus ${a.about.name}`}; sorted by the size of the difference`,
      values: numbers(read),
    });
  }
  return columns;
}

// Returns the rows of the list, or the numbers of the pairs, that pass the search and the filters, in order.
function listRows(page, state) {
  const pairs = state.view === "pairs";
  const sae = page.saes.find((one) => one.key === state.sae);
  const n = pairs ? page.pairs.length : sae.latents.length;
  const columns = listColumns(page, state);
  const bounds = Object.entries(state.filters).flatMap(([key, range]) => {
    const column = columns.find((c) => c.key === key);
    return column ? [[column.values, range[0] ?? -Infinity, range[1] ?? Infinity]] : [];
  });
  const query = state.q.toLowerCase();
  const texts = query ? page.saes.map((one) => (pairs || one === sae ? one.texts(page.pieces) : null)) : null;
  const found = [];
  for (let i = 0; i < n; i++) {
    if (state.view === "only" && sae.partner.has(i)) continue;
    if (!bounds.every(([values, low, high]) => values[i] >= low && values[i] <= high)) continue;
    if (query) {
      const hit = pairs ? page.pairs[i].rows.some((row, k) => texts[k][row].includes(query)) : texts[page.saes.indexOf(sae)][i].includes(query);
      if (!hit) continue;
    }
    found.push(i);
  }
  return sortRows(found, columns, state, pairs ? (i) => page.saes[0].latents[page.pairs[i].rows[0]] : (i) => sae.latents[i]);
}

// Sorts by a column, latents without a value last; equal ones by their index.
function sortRows(rows, columns, state, latentOf) {
  const column = columns.find((c) => c.key === state.sort);
  const up = state.order === "up" ? 1 : -1;
  if (!column) return rows.sort((i, j) => up * (latentOf(i) - latentOf(j)));
  const key = (i) => (column.bySize ? Math.abs(column.values[i]) : column.values[i]);
  return rows.sort((i, j) => {
    const [x, y] = [key(i), key(j)];
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y) || latentOf(i) - latentOf(j);
    return up * (x - y) || latentOf(i) - latentOf(j);
  });
}

function defaultSort(columns) {
  return ["influence", "cosine", "density"].find((key) => columns.some((c) => c.key === key)) ?? "latent";
}
