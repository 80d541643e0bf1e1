// The card of one latent: its numbers, what it reads (rules), what it writes (tokens), its codes and its contexts.

async function cardElement(page, sae, row, notes, go) {
  const latent = sae.latents[row];
  const details = await sae.details(row);
  const card = make("article", { class: "card", "aria-label": `latent ${latent}` });
  const name = page.saes.length > 1 ? `${sae.about.name} · latent ${latent}` : `latent ${latent}`;
  card.append(make("header", {}, make("h2", {}, name), make("button", { onclick: () => copyLink(sae.key, latent), title: "copy a link to this latent" }, "copy link")));
  const explanation = sae.about.explanations?.[row];
  if (explanation) card.append(make("p", { class: "explanation", dir: "auto" }, explanation));
  card.append(numbersElement(sae, row));
  const partner = partnerElement(page, sae, row, go);
  if (partner) card.append(partner);
  const columns = make("div", { class: "columns" });
  if (details.rules) columns.append(readsElement(page, details.rules));
  for (const kind of ["measured", "lens"]) if (details[kind]?.promoted.length || details[kind]?.suppressed.length) columns.append(writesElement(page, sae.about[kind], details[kind], kind));
  if (details.histogram && details.maximum > 0)
    columns.append(make("section", {}, make("h3", {}, "codes", help("held-out tokens by code, on a logarithmic scale, without those on which it is silent")), histogramElement(details.histogram, details.maximum)));
  if (columns.children.length) card.append(columns);
  if (sae.about.store !== null) card.append(contextsElement(page, sae, details));
  if (details.neighbours.length) card.append(neighboursElement(sae, details.neighbours, go));
  card.append(notes.element(sae.key, latent));
  return card;
}

function help(text) {
  return make("small", {}, ` ${text}`);
}

function numbersElement(sae, row) {
  const list = make("dl", { class: "numbers" });
  for (const column of sae.columns) {
    const value = column.values[row];
    if (Number.isNaN(value)) continue;
    const cell = make("dd", {}, formatValue(value, column));
    if (column.kind === "percentile") cell.append(percentileBar(value));
    if (column.key === "density" && value > 0 && value < 0.1) cell.append(help(`1 in ${digits(1 / value)}`));
    list.append(make("div", { title: column.note }, make("dt", {}, column.label), cell));
  }
  return list;
}

function partnerElement(page, sae, row, go) {
  if (!page.pairs) return null;
  const other = page.saes.find((one) => one !== sae);
  const pair = page.pairs[sae.partner.get(row)];
  if (!pair) return make("p", { class: "partner" }, `It has no partner in ${other.about.name}.`);
  const latent = other.latents[pair.rows[page.saes.indexOf(other)]];
  const link = make("a", { href: `#${other.key}/${latent}`, onclick: (event) => (event.preventDefault(), go({ sae: other.key, latent, view: "all" })) }, `latent ${latent}`);
  const correlation = pair.correlation === undefined ? "" : `, correlation of codes ${digits(pair.correlation, 2)}`;
  return make("p", { class: "partner" }, `Its partner in ${other.about.name} is `, link, ` (cosine ${digits(pair.cosine, 2)}${correlation}).`);
}

function readsElement(page, rules) {
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...["rule", "code", "tokens", "share"].map((name) => make("th", {}, name)))));
  const body = make("tbody");
  for (const rule of rules)
    body.append(make("tr", {}, make("td", { class: "rule" }, ...rule.parts.map((p) => pieceElement(page.pieces, p))), make("td", {}, rule.adds ? signed(rule.mean) : digits(rule.mean, 2)), make("td", {}, rule.count.toLocaleString("en")), make("td", {}, `${digits(100 * rule.share, 2)} %`)));
  table.append(body);
  const note = help("the code that each rule predicts (with a sign: adds to it), the training tokens it matches, and its share of the sum of codes");
  return make("section", { class: "reads" }, make("h3", {}, "reads", note), rules.length ? table : make("p", {}, "No rule predicts it."));
}

function writesElement(page, about, effects, kind) {
  const side = (heading, rows) => {
    const table = make("table", {}, make("caption", {}, heading)), body = make("tbody");
    for (const { piece, effect, error } of rows) {
      const cell = make("td", {}, signed(effect));
      if (error !== undefined) cell.append(make("small", {}, ` ± ${digits(error, 1)}`));
      body.append(make("tr", {}, make("td", {}, pieceElement(page.pieces, piece)), cell));
    }
    table.append(body);
    return table;
  };
  const heading = make("h3", {}, kind === "measured" ? "writes, measured" : "writes, direct path (lens)", help(about.unit));
  return make("section", { class: "writes" }, heading, make("div", { class: "sides" }, side("promotes", effects.promoted), side("suppresses", effects.suppressed)));
}

function neighboursElement(sae, neighbours, go) {
  const body = make("tbody");
  for (const { latent, cosine, correlation } of neighbours) {
    const known = sae.rowOf.has(latent);
    const link = make("a", { href: `#${sae.key}/${latent}`, onclick: (event) => (event.preventDefault(), go({ sae: sae.key, latent, view: "all" })) }, String(latent));
    body.append(make("tr", {}, make("td", {}, known ? link : String(latent)), make("td", {}, digits(cosine, 2)), correlation === undefined ? null : make("td", {}, digits(correlation, 2))));
  }
  const names = ["latent", "cosine", ...(neighbours[0].correlation === undefined ? [] : ["correlation"])];
  return make("section", { class: "neighbours" }, make("h3", {}, "nearest latents"), make("table", {}, make("thead", {}, make("tr", {}, ...names.map((name) => make("th", {}, name)))), body));
}

function contextsElement(page, sae, details) {
  const section = make("section", { class: showsCe ? "contexts show-ce" : "contexts" });
  const store = page.stores[sae.about.store];
  const changes = details.contexts.flatMap((context) => (context.ce ? [...context.ce] : []));
  const largest = Math.max(0, ...changes.map(Math.abs));
  if (largest > 0) section.append(ceSwitch(section, largest));
  let group = null;
  for (const context of details.contexts) {
    if (context.group !== group) section.append(make("h3", {}, sae.about.groups[(group = context.group)]));
    section.append(contextElement(page, store, context, details.maximum, largest));
  }
  if (!details.contexts.length) section.append(make("p", {}, "It does not fire in the held-out text."));
  return section;
}

let showsCe = false; // for all latents

// Returns the button by which the strongest contexts show the change of the cross-entropy on each token instead of the codes.
function ceSwitch(section, largest) {
  const button = make("button", { "aria-pressed": String(showsCe), onclick: () => {
    showsCe = section.classList.toggle("show-ce");
    button.setAttribute("aria-pressed", String(showsCe));
  } }, "ΔCE by token");
  const note = help(`in the strongest contexts: by how many nats the token is harder to predict if the latent is ablated in the window (line below), or easier (line above); the strongest shade is ${digits(largest, 2)}`);
  return make("p", { class: "switch" }, button, note);
}

function copyLink(key, latent) {
  const link = `${location.href.split("#")[0]}#${key}/${latent}`;
  if (navigator.clipboard) navigator.clipboard.writeText(link).catch(() => window.prompt("link", link));
  else window.prompt("link", link);
}

// Notes are kept in the browser, under the page's own name, and can be saved as a file.
class Notes {
  constructor(page) {
    this.key = `crux-notes-${page.manifest.id}`;
    this.title = page.manifest.title;
    try {
      this.all = JSON.parse(localStorage.getItem(this.key) ?? "{}");
    } catch {
      this.all = {}; // some browsers keep nothing for files
    }
  }

  element(sae, latent) {
    const place = `${sae}/${latent}`;
    const area = make("textarea", { rows: 2, placeholder: "note (kept in this browser)", "aria-label": `note on latent ${latent}` });
    area.value = this.all[place] ?? "";
    area.addEventListener("input", () => {
      if (area.value) this.all[place] = area.value;
      else delete this.all[place];
      try {
        localStorage.setItem(this.key, JSON.stringify(this.all));
      } catch {
        area.title = "this browser does not keep it: save the notes before you close the page";
      }
    });
    return make("div", { class: "note" }, area);
  }

  save() {
    const content = JSON.stringify({ page: this.title, id: this.key, notes: this.all }, null, 2);
    const link = make("a", { href: URL.createObjectURL(new Blob([content], { type: "application/json" })), download: "notes.json" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }
}
