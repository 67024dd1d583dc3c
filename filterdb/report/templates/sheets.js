// ---- model pages: scale of the pictures, and the numbers of the filter under the pointer ------
function sheets() {
  const all = [...D.querySelectorAll("[data-f]")]; if (!all.length) return;
  const vik = D.body.dataset.vik.match(/../g).map((h) => parseInt(h, 16)), model = Math.max(...all.map((e) => +e.dataset.limit));
  for (const im of all) {
    const b = bytesOf(im.dataset.f), k2 = im.dataset.k.split("x").reduce((a, c) => a * +c, 1), w = +im.dataset.w, n = b.length / (4 + w + k2), view = new DataView(b.buffer);
    im.got = { n, k2, row: (i) => w === 2 ? view.getUint16(4 * n + 2 * i, true) : view.getUint32(4 * (n + i), true), top: (i) => view.getFloat32(4 * i, true), v: (i, j) => view.getInt8((4 + w) * n + i * k2 + j) / 127 };
  }
  const redraw = (how) => { for (const im of all) { const g = im.got, [kh, kw, depth] = shape(im), cols = +im.dataset.cols, c = D.createElement("canvas"); c.width = im.naturalWidth || im.width; c.height = im.naturalHeight || im.height;
    if (im.first == null) im.first = im.src; const under = im.closest(".sheet").querySelector(".limit"); if (under.first == null) under.first = under.textContent;
    if (how === "layer") { im.src = im.first; under.textContent = under.first; continue; }
    const ctx = c.getContext("2d"), d = ctx.createImageData(c.width, c.height);
    for (let i = 0; i < g.n; i++) { const lim = how === "model" ? model : g.top(i); for (let j = 0; j < g.k2; j++) {
      const level = 31 + Math.round(31 * Math.max(-1, Math.min(1, lim ? g.v(i, j) * g.top(i) / lim : 0))), z = Math.floor(j / (kh * kw)), y = Math.floor(i / cols) * (kh + 1) + Math.floor(j / kw) % kh, x = (i % cols) * (depth * (kw + 1)) + z * (kw + 1) + j % kw;
      d.data.set([vik[3 * level], vik[3 * level + 1], vik[3 * level + 2], 255], 4 * (y * c.width + x)); } }
    ctx.putImageData(d, 0, 0); im.src = c.toDataURL(); under.textContent = how === "model" ? `±${model.toPrecision(3)}, the largest of this model` : "each filter on its own scale"; } };
  const shape = (im) => { const k = im.dataset.k.split("x").map(Number); return k.length === 1 ? [1, k[0], 1] : k.length === 2 ? [k[0], k[1], 1] : [k[1], k[2], k[0]]; };
  const tell = (im, x, y) => { const g = im.got, b = im.getBoundingClientRect(), [kh, kw, depth] = shape(im), cols = +im.dataset.cols, s = (im.naturalWidth || 1) / b.width;
    const i = Math.floor((y - b.top) * s / (kh + 1)) * cols + Math.floor((x - b.left) * s / (depth * (kw + 1))); if (i < 0 || i >= g.n) return say("");
    im.now = i; const per = +im.dataset.in, num = (z) => { const t = (z * g.top(i)).toPrecision(2); return (+t).toString().replace("-", "−"); };
    let norm = 0, text = ""; for (let j = 0; j < g.k2; j++) { norm += g.v(i, j) ** 2; text += num(g.v(i, j)) + ((j + 1) % kw ? "  " : "\n"); }
    say(`output ${Math.floor(g.row(i) / per)}, input ${g.row(i) % per}, norm ${(Math.sqrt(norm) * g.top(i)).toPrecision(2)}\n${g.k2 <= 49 ? text : ""}`, x, y); };
  D.addEventListener("pointermove", (e) => { if (e.target.got) tell(e.target, e.clientX, e.clientY); });
  D.querySelectorAll(".switch input").forEach((r) => r.addEventListener("change", () => redraw(r.value)));
}

