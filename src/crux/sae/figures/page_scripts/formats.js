// Small pieces of the document. All text is set as text, never as markup.

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value;
    else if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (value === true) element.setAttribute(key, "");
    else if (value !== false && value !== undefined) element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function drawing(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function digits(value, n = 3) {
  if (!Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const sign = value < 0 ? "−" : "";
  if (size < 1e-3 || size >= 1e6) {
    const [mantissa, exponent] = size.toExponential(n - 1).split("e");
    return `${sign}${Number(mantissa)}e${exponent.replace("+", "")}`;
  }
  return sign + (size >= 10 ** n ? Math.round(size).toLocaleString("en") : Number(size.toPrecision(n)));
}

function formatValue(value, { kind, names }) {
  if (Number.isNaN(value) || value === undefined) return "–";
  if (kind === "share") return `${digits(100 * value)} %`;
  if (kind === "count") return Math.round(value).toLocaleString("en");
  if (kind === "percentile") return digits(value, 2);
  if (kind === "factor" && !Number.isFinite(value)) return `only ${names[value > 0 ? 1 : 0]}`;
  if (kind === "factor") return value === 0 ? "×1" : `${names[value > 0 ? 1 : 0]} ×${digits(2 ** Math.abs(value), 2)}`;
  return digits(value);
}

function signed(value) {
  return (value > 0 ? "+" : "") + digits(value, 2);
}

// Returns a token or the words of a rule; a token is in a box, in which its spaces are dots.
function pieceElement(pieces, piece) {
  const text = pieces.texts[piece];
  if (pieces.tokens[piece] < 0) return make("span", { class: "words" }, text);
  const box = make("code", { dir: "auto", title: `${text} (token ${pieces.tokens[piece]})` });
  for (const part of text.split(/( )/)) if (part) box.append(part === " " ? make("i", {}, "·") : part);
  return box;
}

function percentileBar(value) {
  const bar = make("span", { class: "bar", role: "img", "aria-label": `percentile ${digits(value, 2)}` }, make("span"));
  bar.firstChild.style.width = `${Math.max(0, Math.min(100, value))}%`;
  return bar;
}

// Returns a chart of how many tokens have which code; the heights are logarithms of the counts.
function histogramElement(counts, maximum) {
  const width = 320, height = 74, step = width / counts.length;
  const top = Math.log1p(Math.max(1, ...counts));
  const chart = drawing("svg", { viewBox: `0 0 ${width} ${height + 16}`, class: "histogram", role: "img", "aria-label": "histogram of codes" });
  counts.forEach((count, i) => {
    const bar = (height * Math.log1p(count)) / top;
    const range = `${digits((maximum * i) / counts.length)} to ${digits((maximum * (i + 1)) / counts.length)}`;
    const title = drawing("title", {}, `${count.toLocaleString("en")} tokens with a code of ${range}`);
    chart.append(drawing("rect", { x: i * step + 0.5, y: height - bar, width: step - 1, height: bar }, title));
  });
  chart.append(
    drawing("line", { x1: 0, x2: width, y1: height, y2: height }), drawing("text", { x: 0, y: height + 13 }, "0"),
    drawing("text", { x: width, y: height + 13, "text-anchor": "end" }, digits(maximum)),
    drawing("text", { x: width / 2, y: height + 13, "text-anchor": "middle" }, "code"),
  );
  return chart;
}
