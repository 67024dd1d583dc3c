const ROW = 28, HEAD = 62;
// ---- packed columns -------------------------------------------------------------------------
const gunzip = async (bytes) => new Uint8Array(await new Response(
  new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer());
const WIDE = { u1: Uint8Array, u2: Uint16Array, i4: Int32Array, f4: Float32Array, f8: Float64Array };
const NULLS = { u1: 255, u2: 65535, i4: -2147483648 };
function decode(col, all, rows) {
  const raw = all.subarray(col.at, col.at + col.size);
  if (col.kind === "text" || col.kind === "picture") { const t = rows ? new TextDecoder().decode(raw).split("\n") : []; col.get = (i) => t[i] || null; return; }
  if (col.kind === "spark") { col.get = (i) => raw.subarray(10 * i, 10 * i + 10); return; }
  const T = WIDE[col.type], w = T.BYTES_PER_ELEMENT, out = new Uint8Array(raw.length);
  for (let b = 0; b < w; b++) for (let i = 0; i < rows; i++) out[i * w + b] = raw[b * rows + i];
  const v = new T(out.buffer), none = NULLS[col.type], s = col.scale || 1;
  if (col.kind === "words") { col.codes = v; col.none = none; col.get = (i) => v[i] === none ? null : col.words[v[i]]; }
  else { col.num = true; col.get = (i) => { const x = v[i]; return x === none || x !== x ? null : x / s; }; }
}
const show = (x, col) => {
  if (x == null) return "–";
  if (!col.num) return x;
  if (x === 0 && col.name === "p") return "≈ 0";
  if (col.kind === "integer") return x.toLocaleString("en").replace("-", "−");
  if (x !== 0 && Math.abs(x) < 1e-3) return x.toExponential(1).replace(/-/g, "−");
  return Number(x.toPrecision(3)).toLocaleString("en", { maximumSignificantDigits: 3 }).replace("-", "−");
};

// ---- the filter box: task=ocr sparsity>0.5 finding=dead word --------------------------------
function parse(text, cols) {
  const terms = [], bad = [];
  for (const m of text.matchAll(/([\w.]+)\s*(!=|>=|<=|=|>|<|~)\s*("[^"]*"|\S+)|"([^"]*)"|(\S+)/g)) {
    if (!m[1]) { terms.push({ word: (m[4] ?? m[5]).toLowerCase() }); continue; }
    const col = cols.find((c) => c.name === m[1] && c.sql), value = m[3].replace(/^"|"$/g, "");
    if (!col) bad.push(`no column ${m[1]}; there are ${cols.filter((c) => c.sql).map((c) => c.name).join(", ")}`);
    else if (col.num && (m[2] === "~" || !Number.isFinite(+value))) bad.push(`${m[1]} takes a number`);
    else terms.push({ col, op: m[2], value });
  }
  return { terms, bad };
}
const OPS = { "=": (a, b) => a === b, "!=": (a, b) => a !== b, ">": (a, b) => a > b, "<": (a, b) => a < b, ">=": (a, b) => a >= b, "<=": (a, b) => a <= b, "~": (a, b) => a.includes(b) };
function tester(t, cols) {
  if (t.word != null) { const some = cols.filter((c) => !c.num && c.sql && c.kind !== "picture"); return (i) => some.some((c) => (c.get(i) || "").toLowerCase().includes(t.word)); }
  const f = OPS[t.op], { col } = t;
  if (col.num) { const v = col.kind === "float" ? Math.fround(+t.value) : +t.value; return (i) => { const x = col.get(i); return x != null && f(x, v); }; }
  const want = t.value.toLowerCase();
  const ok = (w) => { w = w.toLowerCase(); if (!col.many) return f(w, want); const has = w.split(" ").includes(want); return t.op === "=" ? has : t.op === "!=" ? !has : f(w, want); };
  if (!col.codes) return (i) => { const x = col.get(i); return x != null && ok(x); };
  const hit = col.words.map(ok), empty = col.many && ok("");
  return (i) => { const c = col.codes[i]; return c === col.none ? empty : hit[c]; };
}
const quote = (s) => "'" + s.replace(/'/g, "''") + "'";
function sqlOf(t, cols) {
  if (t.word != null) return "(" + cols.filter((c) => !c.num && c.sql).map((c) => `contains(lower(coalesce(${c.many ? `array_to_string(${c.sql}, ' ')` : c.sql}, '')), ${quote(t.word)})`).join(" or ") + ")";
  const e = t.col.sql;
  if (t.col.num) return `${e} ${t.op} ${t.col.kind === "float" ? `cast(${+t.value} as float)` : +t.value}`;
  const v = quote(t.value.toLowerCase());
  if (t.col.many) { const words = `lower(coalesce(array_to_string(${e}, ' '), ''))`; return t.op === "~" ? `contains(${words}, ${v})` : `${t.op === "!=" ? "not " : ""}contains(' ' || ${words} || ' ', ${quote(` ${t.value.toLowerCase()} `)})`; }
  return t.op === "~" ? `contains(lower(${e}), ${v})` : `lower(${e}) ${t.op} ${v}`;
}

// ---- the grid -------------------------------------------------------------------------------
async function grid(root) {
  const meta = JSON.parse(root.querySelector(".fg-meta").textContent), body = root.querySelector(".fg-data");
  const all = await gunzip(bytesOf(body.textContent.trim()));
  const cols = meta.columns, seen = cols.filter((c) => !c.hidden), n = meta.rows;
  cols.forEach((c) => decode(c, all, n));
  body.remove();
  const tall = cols.some((c) => c.kind === "picture"), ROWH = tall ? 56 : ROW;
  const input = root.querySelector("input"), out = root.querySelector(".fg-count"), box = root.querySelector(".fg-box");
  const sqlBox = root.querySelector(".fg-sql"), width = seen.reduce((s, c) => s + c.width, 0) * 16;
  let order = Uint32Array.from({ length: n }, (_, i) => i), rows = order, sort = null, at = { r: -1, c: 0 }, terms = [], hot = null;
  const head = make("div", "fg-head"), area = make("div", "fg-body");
  head.setAttribute("role", "row"); head.setAttribute("aria-rowindex", 1); area.setAttribute("role", "rowgroup");
  head.style.width = area.style.width = `max(100%,${width}px)`;
  const span = {};
  const grow = (c) => { const w = `${c.width * 16}px`; return ["text", "words"].includes(c.kind) && !c.num ? `1 0 ${w}` : `0 0 ${w}`; };
  seen.forEach((c, k) => {
    const th = make("div", "fg-th" + (c.num ? " num" : "")); th.id = `${meta.slug}-h${k}`; th.style.flex = grow(c);
    th.setAttribute("role", "columnheader"); th.setAttribute("aria-colindex", k + 1); th.title = c.text || "";
    if (c.num) {
      let lo = Infinity, hi = -Infinity; for (let i = 0; i < n; i++) { const x = c.get(i); if (x != null) { if (x < lo) lo = x; if (x > hi) hi = x; } }
      span[c.name] = [lo, hi];
      if (hi > lo) { const S = D.createElementNS("http://www.w3.org/2000/svg", "svg"), P = D.createElementNS("http://www.w3.org/2000/svg", "path");
        const bins = new Array(30).fill(0); for (let i = 0; i < n; i++) { const x = c.get(i); if (x != null) bins[Math.min(29, Math.floor((x - lo) / (hi - lo) * 30))]++; }
        const top = Math.max(...bins); S.setAttribute("viewBox", "0 0 30 16"); S.setAttribute("preserveAspectRatio", "none"); S.setAttribute("aria-hidden", "true");
        P.setAttribute("d", bins.map((b, j) => b ? `M${j} 16h.9v-${Math.max(1, 15 * Math.sqrt(b / top))}h-.9z` : "").join("")); S.append(P); th.append(S); brush(S, c, lo, hi); }
    }
    th.append(make("span", "", c.label)); head.append(th);
  });
  box.append(head, area);
  box.setAttribute("aria-colcount", seen.length);

  function brush(S, c, lo, hi) { // drag over a histogram: keep that range
    let from = null; const value = (e) => { const b = S.getBoundingClientRect(); return lo + (hi - lo) * Math.min(1, Math.max(0, (e.clientX - b.left) / b.width)); };
    S.addEventListener("pointerdown", (e) => { from = value(e); S.setPointerCapture(e.pointerId); e.preventDefault(); });
    S.addEventListener("click", (e) => e.stopPropagation());
    S.addEventListener("pointerup", (e) => { if (from == null) return; const [a, b] = [from, value(e)].sort((x, y) => x - y); from = null;
      const rest = input.value.replace(new RegExp(`\\b${c.name}\\s*[<>]=?\\s*\\S+`, "g"), "").trim();
      input.value = (rest + (b - a < (hi - lo) / 60 ? "" : ` ${c.name}>=${+a.toPrecision(3)} ${c.name}<=${+b.toPrecision(3)}`)).trim(); apply(); });
  }
  const query = () => {
    const where = terms.map((t) => sqlOf(t, cols)).join("\n  and "), by = sort ? `${sort.col.sql} ${sort.dir < 0 ? "desc" : "asc"} nulls last` : "";
    return `select ${cols.filter((c) => c.sql && !c.hidden).map((c) => `${c.sql} as "${c.name}"`).join(", ")}\nfrom ${meta.source}${where ? `\nwhere ${where}` : ""}${by ? `\norder by ${by}` : ""}`;
  };
  const remember = () => {
    const p = new URLSearchParams(); if (input.value) p.set("q", input.value); if (sort) p.set("sort", sort.col.name + (sort.dir < 0 ? "-" : "")); if (at.r > 0) p.set("row", at.r);
    if (`${p}` || location.hash.startsWith(`#${meta.slug}?`)) history.replaceState(null, "", `#${meta.slug}?${p}`);
  };
  function apply(keep) {
    const { terms: ts, bad } = parse(input.value, cols); terms = ts;
    const tests = ts.map((t) => tester(t, cols));
    rows = order.filter((i) => tests.every((f) => f(i)));
    out.textContent = bad.length ? bad.join("; ") : `${rows.length.toLocaleString("en")} of ${n.toLocaleString("en")} rows`;
    box.setAttribute("aria-rowcount", rows.length + 1);
    area.style.height = `${rows.length * ROWH}px`;
    if (!keep) { at = { r: -1, c: at.c }; box.scrollTop = 0; }
    paint(true); if (!sqlBox.hidden) sqlBox.value = query();
    if (!keep) remember();
  }
  function resort() {
    order = Uint32Array.from({ length: n }, (_, i) => i);
    if (sort) { const { col, dir } = sort;
      if (col.num) { const v = Float64Array.from({ length: n }, (_, i) => col.get(i) ?? NaN); order.sort((a, b) => { const x = v[a], y = v[b]; return x !== x ? (y !== y ? a - b : 1) : y !== y ? -1 : dir * (x - y) || a - b; }); }
      else order.sort((a, b) => { const x = col.get(a), y = col.get(b); return x == null ? (y == null ? a - b : 1) : y == null ? -1 : x < y ? -dir : x > y ? dir : a - b; }); }
    seen.forEach((c, k) => { const th = head.children[k]; if (sort && sort.col === c) th.setAttribute("aria-sort", sort.dir < 0 ? "descending" : "ascending"); else th.removeAttribute("aria-sort");
      th.lastChild.textContent = c.label + (sort && sort.col === c ? (sort.dir < 0 ? " ↓" : " ↑") : ""); });
  }
  const sortBy = (c) => { if (!c.sql) return; sort = sort && sort.col === c ? (sort.dir < 0 ? { col: c, dir: 1 } : null) : { col: c, dir: c.num ? -1 : 1 }; resort(); apply(); };
  const spark = (v) => { let d = "", up = true; v.forEach((y, i) => { if (y === 255) up = true; else { d += `${up ? "M" : "L"}${i * 10} ${(24 - y / 254 * 22).toFixed(1)}`; up = false; } });
    const S = D.createElementNS("http://www.w3.org/2000/svg", "svg"), P = D.createElementNS("http://www.w3.org/2000/svg", "path"); S.setAttribute("viewBox", "-2 0 94 26"); S.setAttribute("aria-hidden", "true"); P.setAttribute("d", d); S.append(P); return S; };
  function line(r) {
    const i = rows[r], tr = make("div", "fg-tr" + (tall ? " tall" : "")); tr.setAttribute("role", "row"); tr.setAttribute("aria-rowindex", r + 2); tr.style.top = `${r * ROWH}px`;
    seen.forEach((c, k) => { const x = c.get(i), td = make("div", "fg-td" + (c.num ? " num" : "") + (c.width > 12 ? " long" : "")); td.setAttribute("role", "gridcell"); td.setAttribute("aria-colindex", k + 1); td.id = `${meta.slug}-${r}-${k}`; td.style.flex = grow(c);
      const href = c.link && cols.find((d) => d.name === c.link).get(i);
      if (c.kind === "spark") { td.append(spark(x)); td.setAttribute("aria-label", Array.from(x, (y) => y === 255 ? "–" : Math.round(y / 2.54) + " %").join(", ")); }
      else if (c.kind === "picture") { if (x) { const im = make("img", "pix"); im.src = x; im.alt = "filters"; td.append(im); } }
      else if (href) { const a = make("a", "", show(x, c)); a.href = href; a.tabIndex = -1; td.append(a); td.title = x; }
      else { td.textContent = show(x, c); if (!c.num && x) td.title = x; }
      if (c.num && x != null && c.kind !== "integer") { const [lo, hi] = span[c.name], z = Math.min(lo, 0); if (hi > z) td.style.setProperty("--w", `${100 * (x - z) / Math.max(hi - z, 1e-9)}%`); }
      if (r === at.r && k === at.c) td.classList.add("fg-on");
      tr.append(td); });
    return tr;
  }
  let drawn = [-1, -1];
  function paint(force) {
    const a = Math.max(0, Math.floor(box.scrollTop / ROWH) - 2), b = Math.min(rows.length, a + Math.ceil((box.clientHeight - HEAD) / ROWH) + 4);
    if (!force && a === drawn[0] && b === drawn[1]) return;
    drawn = [a, b]; const f = D.createDocumentFragment(); for (let r = a; r < b; r++) f.append(line(r)); area.replaceChildren(f);
  }
  function focusCell() {
    head.querySelectorAll(".fg-on").forEach((e) => e.classList.remove("fg-on"));
    if (at.r < 0) head.children[at.c].classList.add("fg-on");
    else { const top = at.r * ROWH; if (top < box.scrollTop) box.scrollTop = top; else if (top + ROWH + HEAD > box.scrollTop + box.clientHeight) box.scrollTop = top + ROWH + HEAD - box.clientHeight; }
    paint(true); const id = at.r < 0 ? `${meta.slug}-h${at.c}` : `${meta.slug}-${at.r}-${at.c}`; box.setAttribute("aria-activedescendant", id);
    const el = D.getElementById(id); if (el) { if (el.offsetLeft < box.scrollLeft) box.scrollLeft = el.offsetLeft; else if (el.offsetLeft + el.offsetWidth > box.scrollLeft + box.clientWidth) box.scrollLeft = el.offsetLeft + el.offsetWidth - box.clientWidth; }
  }
  box.addEventListener("keydown", (e) => {
    const page = Math.max(1, Math.floor((box.clientHeight - HEAD) / ROWH) - 1);
    const go = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1], PageDown: [page, 0], PageUp: [-page, 0] }[e.key];
    if (go) at = { r: Math.min(rows.length - 1, Math.max(-1, at.r + go[0])), c: Math.min(seen.length - 1, Math.max(0, at.c + go[1])) };
    else if (e.key === "Home") at = e.ctrlKey ? { r: 0, c: 0 } : { r: at.r, c: 0 };
    else if (e.key === "End") at = e.ctrlKey ? { r: rows.length - 1, c: at.c } : { r: at.r, c: seen.length - 1 };
    else if (e.key === "Enter" || e.key === " ") { if (at.r < 0) sortBy(seen[at.c]); else { const a = area.querySelector(".fg-on a"); if (a) { remember(); a.click(); } } }
    else return;
    e.preventDefault(); focusCell();
  });
  box.addEventListener("focus", focusCell);
  box.addEventListener("scroll", () => { if (!hot) hot = requestAnimationFrame(() => { hot = null; paint(); }); });
  head.addEventListener("click", (e) => { const th = e.target.closest(".fg-th"); if (th) sortBy(seen[[...head.children].indexOf(th)]); });
  area.addEventListener("click", (e) => { const td = e.target.closest(".fg-td"); if (!td) return; const [, r, k] = td.id.match(/-(\d+)-(\d+)$/); at = { r: +r, c: +k }; remember(); });
  let timer; input.addEventListener("input", () => { clearTimeout(timer); timer = setTimeout(apply, 80); });
  root.querySelector(".fg-save").addEventListener("click", () => {
    const cell = (c, i) => { const x = c.get(i); return x == null ? "" : /[",\n]/.test(`${x}`) ? `"${`${x}`.replace(/"/g, '""')}"` : `${x}`; }, some = cols.filter((c) => c.sql && !c.hidden);
    const csv = [some.map((c) => c.name).join(","), ...Array.from(rows, (i) => some.map((c) => cell(c, i)).join(","))].join("\n") + "\n";
    const a = make("a"); a.href = URL.createObjectURL(new Blob([csv], { type: "text/csv" })); a.download = `${meta.slug}.csv`; a.click(); setTimeout(() => URL.revokeObjectURL(a.href), 1000);
  });
  root.querySelector(".fg-copy").addEventListener("click", () => { sqlBox.hidden = !sqlBox.hidden; if (!sqlBox.hidden) { sqlBox.value = query(); sqlBox.select(); try { D.execCommand("copy"); } catch { /* selected at least */ } } });
  function recall() {
    const m = location.hash.match(/^#([\w-]+)\?(.*)$/); if (!m || m[1] !== meta.slug) return;
    const p = new URLSearchParams(m[2]); input.value = p.get("q") || "";
    const s = p.get("sort"); sort = null; if (s) { const col = cols.find((c) => c.name === s.replace(/-$/, "")); if (col) sort = { col, dir: s.endsWith("-") ? -1 : 1 }; }
    resort(); apply(true); root.scrollIntoView({ block: "start", behavior: "instant" });
    if (p.has("row")) { at = { r: Math.min(+p.get("row"), rows.length - 1), c: 0 }; box.scrollTop = Math.max(0, at.r * ROWH - 90); paint(true); }
  }
  box.style.height = `${Math.min(480, HEAD + Math.max(2, n) * ROWH + 16)}px`;
  resort(); apply(true); recall(); addEventListener("hashchange", recall);
}

