// Scatter of two columns for the latents of one or both SAEs: a drag sets the filters of both columns, a click selects a latent.

const MARGIN = { left: 56, right: 14, top: 10, bottom: 34 };

class ScatterPlot {
  constructor(page, { onBrush, onSelect, onAxes }) {
    Object.assign(this, { page, onBrush, onSelect });
    const columns = page.saes[0].columns; // latents of an SAE of which one of the two numbers is not known are not drawn
    const axis = (name) => make("select", { "aria-label": `${name} axis`, onchange: () => onAxes(this.x.value, this.y.value) }, ...columns.map((c) => make("option", { value: c.key }, c.label)));
    [this.x, this.y] = [axis("horizontal"), axis("vertical")];
    this.canvas = make("canvas");
    this.brush = make("div", { class: "brush", hidden: true });
    this.area = make("div", { class: "area" }, this.canvas, this.brush);
    const key = page.saes.length > 1 ? make("span", {}, `● ${page.saes[0].about.name}  ▲ ${page.saes[1].about.name}`) : null;
    this.element = make("section", { class: "plot", hidden: true }, make("p", {}, this.y, " over ", this.x, key, make("small", {}, " drag: filter · click: latent")), this.area);
    this.area.addEventListener("pointerdown", (event) => this.drag(event));
    new ResizeObserver(() => this.draw()).observe(this.area);
  }

  static axes(page) {
    const keys = page.saes[0].columns.map((c) => c.key);
    const y = ["influence", "max", ...keys].find((key) => keys.includes(key));
    const x = ["rho10", "density", ...keys].find((key) => keys.includes(key) && key !== y) ?? y;
    return `${x},${y}`;
  }

  show(state, rows) {
    Object.assign(this, { state, shown: state.view === "pairs" ? null : new Set(rows) });
    this.element.hidden = !state.plot;
    if (!state.plot) return;
    [this.x.value, this.y.value] = state.plot.split(",");
    this.draw();
  }

  // Returns how values become places: on a logarithmic scale, without zeros, if the column asks for it.
  scale(key, from, to) {
    let low = Infinity, high = -Infinity, positive = Infinity;
    for (const sae of this.page.saes)
      for (const value of sae.column(key)?.values ?? []) {
        if (!Number.isFinite(value)) continue;
        low = Math.min(low, value);
        high = Math.max(high, value);
        if (value > 0) positive = Math.min(positive, value);
      }
    const log = this.page.saes[0].column(key).log && positive < high;
    if (log) low = positive;
    if (!(high > low)) [low, high] = [low - 0.5, low + 0.5];
    const f = log ? Math.log : (v) => v, g = log ? Math.exp : (v) => v;
    const place = (value) => from + ((to - from) * (f(value) - f(low))) / (f(high) - f(low));
    const value = (at) => g(f(low) + ((f(high) - f(low)) * (at - from)) / (to - from));
    return { place, value, log, ticks: ticks(low, high, log) };
  }

  draw() {
    if (this.element.hidden || !this.state || !this.x.value || !this.y.value) return;
    const { clientWidth: width, clientHeight: height } = this.area, ratio = devicePixelRatio || 1;
    if (!width || !height) return;
    Object.assign(this.canvas, { width: width * ratio, height: height * ratio });
    const pen = this.canvas.getContext("2d"), style = getComputedStyle(this.element);
    const color = (name) => style.getPropertyValue(name).trim();
    pen.scale(ratio, ratio);
    this.xs = this.scale(this.x.value, MARGIN.left, width - MARGIN.right);
    this.ys = this.scale(this.y.value, height - MARGIN.bottom, MARGIN.top);
    this.drawAxes(pen, width, height, color);
    this.page.saes.forEach((sae, n) => {
      const [x, y] = [sae.column(this.x.value), sae.column(this.y.value)];
      if (!x || !y) return;
      pen.fillStyle = color(n ? "--second" : "--first");
      for (let row = 0; row < sae.latents.length; row++) {
        const [i, j] = [this.xs.place(x.values[row]), this.ys.place(y.values[row])];
        if (!Number.isFinite(i) || !Number.isFinite(j)) continue;
        pen.globalAlpha = sae.key === this.state.sae && this.shown && !this.shown.has(row) ? 0.12 : 0.6;
        drawPoint(pen, i, j, n, 2.2);
      }
    });
    pen.globalAlpha = 1;
    this.drawSelected(pen, color("--ink"));
  }

  drawSelected(pen, ink) {
    const sae = this.page.saes.find((one) => one.key === this.state.sae), row = sae.rowOf.get(this.state.latent);
    if (row === undefined || !sae.column(this.x.value) || !sae.column(this.y.value)) return;
    pen.strokeStyle = ink;
    pen.lineWidth = 2;
    pen.beginPath();
    pen.arc(this.xs.place(sae.column(this.x.value).values[row]), this.ys.place(sae.column(this.y.value).values[row]), 6, 0, 7);
    pen.stroke();
  }

  drawAxes(pen, width, height, color) {
    pen.strokeStyle = color("--line");
    pen.fillStyle = color("--soft");
    pen.font = "11px system-ui, sans-serif";
    pen.textAlign = "center";
    for (const tick of this.xs.ticks) {
      const i = this.xs.place(tick);
      line(pen, i, MARGIN.top, i, height - MARGIN.bottom);
      pen.fillText(digits(tick, 2), i, height - MARGIN.bottom + 14);
    }
    const label = (key) => this.page.saes[0].column(key).label;
    pen.fillText(label(this.x.value), (width + MARGIN.left) / 2, height - 5);
    pen.textAlign = "right";
    for (const tick of this.ys.ticks) {
      const j = this.ys.place(tick);
      line(pen, MARGIN.left, j, width - MARGIN.right, j);
      pen.fillText(digits(tick, 2), MARGIN.left - 5, j + 4);
    }
    pen.save();
    pen.textAlign = "center";
    pen.translate(11, (height - MARGIN.bottom) / 2);
    pen.rotate(-Math.PI / 2);
    pen.fillText(label(this.y.value), 0, 0);
    pen.restore();
  }

  drag(event) {
    const box = this.area.getBoundingClientRect(), from = [event.clientX - box.left, event.clientY - box.top];
    const corners = (e) => {
      const to = [e.clientX - box.left, e.clientY - box.top];
      return [0, 1].map((k) => [Math.min(from[k], to[k]), Math.max(from[k], to[k])]);
    };
    const move = (e) => {
      const [[left, right], [top, bottom]] = corners(e);
      Object.assign(this.brush.style, { left: `${left}px`, top: `${top}px`, width: `${right - left}px`, height: `${bottom - top}px` });
      this.brush.hidden = false;
    };
    const end = (e) => {
      this.area.removeEventListener("pointermove", move);
      this.brush.hidden = true;
      const [[left, right], [top, bottom]] = corners(e);
      const rounded = (scale) => (at) => Number(scale.value(at).toPrecision(3));
      if (right - left < 4 && bottom - top < 4) this.selectNearest(...from);
      else this.onBrush({ [this.x.value]: [left, right].map(rounded(this.xs)), [this.y.value]: [bottom, top].map(rounded(this.ys)) });
    };
    this.area.setPointerCapture(event.pointerId);
    this.area.addEventListener("pointermove", move);
    this.area.addEventListener("pointerup", end, { once: true });
  }

  selectNearest(i, j) {
    let best = { distance: 225 };
    for (const sae of this.page.saes) {
      const [x, y] = [sae.column(this.x.value)?.values, sae.column(this.y.value)?.values];
      if (!x || !y) continue;
      for (let row = 0; row < sae.latents.length; row++) {
        const distance = (this.xs.place(x[row]) - i) ** 2 + (this.ys.place(y[row]) - j) ** 2;
        if (distance < best.distance) best = { distance, sae: sae.key, latent: sae.latents[row] };
      }
    }
    if (best.sae) this.onSelect(best.sae, best.latent);
  }
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

// A circle for the first SAE, a triangle for the second.
function drawPoint(pen, x, y, n, size) {
  pen.beginPath();
  if (n === 0) pen.arc(x, y, size, 0, 7);
  else {
    pen.moveTo(x, y - 1.3 * size);
    pen.lineTo(x + 1.2 * size, y + size);
    pen.lineTo(x - 1.2 * size, y + size);
  }
  pen.fill();
}

function ticks(low, high, log) {
  const found = [];
  if (log) {
    const [first, last] = [Math.ceil(Math.log10(low) - 1e-6), Math.floor(Math.log10(high) + 1e-6)];
    const step = Math.max(1, Math.ceil((last - first) / 6));
    for (let e = first; e <= last; e += step) found.push(10 ** e);
    return found;
  }
  const raw = (high - low) / 5, size = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * size).find((s) => s >= raw);
  for (let v = Math.ceil(low / step) * step; v <= high + 1e-9 * step; v += step) found.push(Math.abs(v) < 1e-12 ? 0 : v);
  return found;
}
