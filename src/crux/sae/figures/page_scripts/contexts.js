// Contexts: the tokens of a held-out text, shaded and underlined by the latent's code. A character of several tokens is shown once, with one
// stripe per token.

const RIGHT_TO_LEFT = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc\u{10800}-\u{10fff}\u{1e800}-\u{1efff}]/u;

function contextElement(page, store, context, maximum, largestCe) {
  const { pieces } = page;
  const text = make("span", { class: "text", dir: "auto" });
  if (context.start % store.context === 0) text.append(make("small", { title: "the window begins here" }, "⊢"));
  let group = [];
  const end = () => {
    if (group.length) text.append(tokensElement(pieces, group, maximum, largestCe));
    group = [];
  };
  context.codes.forEach((code, i) => {
    const piece = store.pieces[context.start + i];
    if (!pieces.joined(piece)) end();
    group.push({ piece, code, peak: i === context.peak, ce: context.ce?.[i] });
  });
  end();
  const value = digits((maximum * context.codes[context.peak]) / 255);
  const rules = context.predicted === undefined ? null : make("small", { title: "the code that the rules predict" }, `rules ${digits(context.predicted, 2)}`);
  return make("p", context.ce ? { class: "with-ce" } : {}, make("b", {}, value, rules), text);
}

function tokensElement(pieces, group, maximum, largestCe) {
  const peak = group.findIndex((token) => token.peak);
  const largest = Math.max(...group.map((token) => token.code));
  const text = group.map((token) => pieces.texts[token.piece]).join("") || `⟨token ${pieces.tokens[group[0].piece]}⟩`;
  const element = make(peak >= 0 ? "mark" : "span", {}, text);
  const values = group.map((token) => digits((maximum * token.code) / 255));
  if (largest > 0 || group.length > 1) element.title = group.length > 1 ? `${group.length} tokens: ${values.join(" · ")}` : values[0];
  if (group[0].ce !== undefined) addCe(element, group.reduce((sum, token) => sum + token.ce, 0), largestCe);
  if (group.length === 1) {
    element.style.setProperty("--a", (largest / 255).toFixed(3));
    element.style.setProperty("--w", `${largest ? 1 + Math.round((2 * largest) / 255) : 0}px`);
    return element;
  }
  const order = RIGHT_TO_LEFT.test(text) ? [...group].reverse() : group;
  const part = 100 / order.length;
  const stripes = order.map((token, i) => `rgba(var(--hot), ${(token.code / 255).toFixed(3)}) ${i * part}% ${(i + 1) * part}%`);
  element.classList.add("joined");
  element.style.setProperty("--n", order.length);
  element.style.setProperty("--codes", `linear-gradient(90deg, ${stripes.join(", ")})`);
  if (peak >= 0) element.style.setProperty("--peak", order.findIndex((token) => token.peak));
  return element;
}

// Adds the change of the cross-entropy on a token, or on the tokens of a character together.
function addCe(element, change, largest) {
  const size = Math.min(1, Math.abs(change) / largest);
  element.classList.add(change < 0 ? "hurts" : "helps");
  element.style.setProperty("--ce", (0.8 * size).toFixed(3));
  element.style.setProperty("--cw", `${size > 0.02 ? 1 + Math.round(2 * size) : 0}px`);
  element.title = `${element.title ? `code ${element.title}; ` : ""}ΔCE ${signed(change)}`;
}
