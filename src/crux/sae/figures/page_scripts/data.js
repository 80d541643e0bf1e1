// The page's data: the index of each SAE, and its chunks on demand.

const CHUNKS_KEPT = 12;

class Features {
  constructor(name, about, rowsPerChunk) {
    Object.assign(this, { key: name, about, rowsPerChunk, chunks: new Map(), searchTexts: null });
  }

  async load() {
    const index = await readArrays(`${this.key}-index`, this.about.index_types);
    this.index = index;
    this.latents = index.latents;
    this.rowOf = new Map();
    for (let row = 0; row < this.latents.length; row++) this.rowOf.set(this.latents[row], row);
    this.columns = this.about.columns.map((c) => ({ ...c, values: index[`column/${c.key}`] }));
    if (index.rules) {
      this.ruleOffsets = sumLengths(index.rules);
      this.partOffsets = sumLengths(index.rule_lengths);
    }
    this.promoted = this.about.measured ? "measured" : this.about.lens ? "lens" : null;
    this.partner = new Map(); // row → index of its pair
  }

  column(key) {
    return this.columns.find((c) => c.key === key);
  }

  // Returns the pieces of each rule of a latent.
  rules(row) {
    if (!this.index.rules) return [];
    const found = [];
    for (let rule = this.ruleOffsets[row]; rule < this.ruleOffsets[row + 1]; rule++)
      found.push([...this.index.rule_parts.subarray(this.partOffsets[rule], this.partOffsets[rule + 1])].map((p) => p - 1));
    return found;
  }

  // Returns the pieces of the tokens that a latent makes more likely: measured if they are known of it, else those of the lens.
  promotedPieces(row, n) {
    if (!this.promoted) return [];
    for (const kind of [this.promoted, "lens"]) {
      if (!this.about[kind]) continue;
      const top = this.about[kind].top;
      const tokens = [...this.index[`${kind}/promoted`].subarray(row * top, row * top + Math.min(n, top))].filter((p) => p > 0);
      if (tokens.length) return tokens.map((p) => p - 1);
    }
    return [];
  }

  // Returns one text per latent, in lower case: the tokens of rules, promoted tokens and explanation. Made at the first search.
  texts(pieces) {
    if (!this.searchTexts) {
      const lower = pieces.texts.map((text) => text.toLowerCase());
      this.searchTexts = Array.from(this.latents, (_, row) => {
        const rules = this.rules(row).map((rule) => rule.map((p) => (pieces.tokens[p] < 0 ? "\n" : lower[p])).join(""));
        const tokens = this.promotedPieces(row, Infinity).map((p) => lower[p]);
        const explanation = this.about.explanations?.[row].toLowerCase() ?? "";
        return [...rules, ...tokens, explanation].join("\n");
      });
    }
    return this.searchTexts;
  }

  // Returns what is shown of a latent; reads its chunk if that is not in memory.
  async details(row) {
    const number = Math.floor(row / this.rowsPerChunk);
    if (!this.chunks.has(number)) {
      this.chunks.set(number, readArrays(`${this.key}-${number}`, this.about.chunk_types));
      if (this.chunks.size > CHUNKS_KEPT) this.chunks.delete(this.chunks.keys().next().value);
    }
    return cutDetails(this, await this.chunks.get(number), row, row - number * this.rowsPerChunk);
  }
}

function cutDetails(features, chunk, row, n) {
  const about = features.about, details = { contexts: [] };
  if (chunk.maxima) {
    details.maximum = chunk.maxima[n];
    const lengths = sumLengths(chunk.lengths), contexts = sumLengths(chunk.contexts);
    const known = chunk.ce_known && sumLengths(chunk.lengths.map((length, i) => length * chunk.ce_known[i]));
    for (let i = contexts[n]; i < contexts[n + 1]; i++)
      details.contexts.push({
        group: chunk.groups[i], start: chunk.starts[i], peak: chunk.peaks[i], codes: chunk.codes.subarray(lengths[i], lengths[i + 1]),
        predicted: chunk.predicted?.[i], ce: chunk.ce_known?.[i] ? chunk.ce_changes.subarray(known[i], known[i + 1]) : undefined,
      });
  }
  if (chunk.histograms) details.histogram = chunk.histograms.subarray(n * about.bins, (n + 1) * about.bins);
  if (chunk.rule_means) {
    const firstRule = features.ruleOffsets[row - n];
    details.rules = features.rules(row).map((parts, i) => {
      const rule = features.ruleOffsets[row] + i - firstRule;
      return { parts, mean: chunk.rule_means[rule], count: chunk.rule_counts[rule], share: chunk.rule_shares[rule], adds: chunk.rule_adds[rule] };
    });
  }
  for (const name of ["measured", "lens"]) {
    if (!about[name]) continue;
    const top = about[name].top;
    const side = (which, tokens, first) => {
      const rows = [];
      for (let i = 0; i < top; i++)
        if (tokens[first + i] > 0)
          rows.push({
            piece: tokens[first + i] - 1, effect: chunk[`${name}/${which}_effects`][n * top + i],
            error: chunk[`${name}/${which}_errors`]?.[n * top + i],
          });
      return rows;
    };
    details[name] = {
      promoted: side("promoted", features.index[`${name}/promoted`], row * top), suppressed: side("suppressed", chunk[`${name}/suppressed`], n * top),
    };
  }
  details.neighbours = [];
  for (let i = n * about.neighbours; i < (n + 1) * about.neighbours; i++)
    if (chunk.neighbours[i] > 0)
      details.neighbours.push({ latent: chunk.neighbours[i] - 1, cosine: chunk.neighbour_cosines[i], correlation: chunk.neighbour_correlations?.[i] });
  return details;
}

async function loadPage() {
  const manifest = await readJson("manifest");
  const saes = manifest.saes.map((about, n) => new Features("ab"[n], about, manifest.rows_per_chunk));
  await Promise.all(saes.map((sae) => sae.load()));
  const stores = await Promise.all(manifest.stores.map(async ({ types, context }, n) => ({ context, ...(await readArrays(`store-${n}`, types)) })));
  const joined = new Set(manifest.pieces.joined);
  const pieces = { texts: manifest.pieces.texts, tokens: manifest.pieces.tokens, joined: (p) => joined.has(p) };
  const pairs = manifest.pairs ? await readPairs(manifest.pairs, saes) : null;
  return { manifest, saes, stores, pieces, pairs };
}

// Returns the pairs whose two latents are both on the page, by row.
async function readPairs({ types }, [a, b]) {
  const arrays = await readArrays("pairs", types);
  const pairs = [];
  for (let i = 0; i < arrays.first.length; i++) {
    const rows = [a.rowOf.get(arrays.first[i]), b.rowOf.get(arrays.second[i])];
    if (rows.includes(undefined)) continue;
    a.partner.set(rows[0], pairs.length);
    b.partner.set(rows[1], pairs.length);
    pairs.push({ rows, cosine: arrays.cosines[i], correlation: arrays.correlations?.[i] });
  }
  return pairs;
}
