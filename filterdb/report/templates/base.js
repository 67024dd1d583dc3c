"use strict";
const D = document, make = (tag, cls, text) => { const e = D.createElement(tag); if (cls) e.className = cls; if (text != null) e.textContent = text; return e; };
const bytesOf = (b64) => Uint8Array.from(atob(b64), (c) => c.charCodeAt(0));

// ---- figures: arrows among marks, spoken text shown on hover and focus ----------------------
const tip = make("div", "tip"); tip.hidden = true; tip.setAttribute("aria-hidden", "true");
function say(text, x, y) { tip.hidden = !text; if (!text) return; tip.textContent = text; const w = tip.offsetWidth, h = tip.offsetHeight; tip.style.left = `${Math.max(4, Math.min(x + 12, innerWidth - w - 8))}px`; tip.style.top = `${y + 16 + h > innerHeight ? Math.max(4, y - h - 10) : y + 16}px`; }
const spoken = (e) => { const m = e.target.closest && e.target.closest("svg.chart a,svg.chart [aria-label],[data-tip]"); if (!m) return ""; if (m.dataset.tip) return m.dataset.tip;
  const l = m.getAttribute("aria-label") || (m.querySelector("[aria-label]") || m).getAttribute("aria-label"); return m.closest(".role-axis,.role-legend,.role-title") ? "" : (l || "").replace(/; /g, "\n"); };
// What scrolls sideways and holds nothing to step to can be reached by keyboard itself.
function reachable() {
  for (const e of D.querySelectorAll(".scroll,.plot")) if (e.scrollWidth > e.clientWidth && !e.querySelector("a[href],button,[tabindex]")) { e.tabIndex = 0; e.setAttribute("role", "group"); e.setAttribute("aria-label", "Scrolls sideways"); }
}
function figures() {
  D.body.append(tip); reachable();
  D.addEventListener("pointermove", (e) => { if (!e.target.closest || !e.target.closest("[data-f]")) say(spoken(e), e.clientX, e.clientY); });
  D.addEventListener("focusin", (e) => { const t = spoken(e); if (t) { const b = e.target.getBoundingClientRect(); say(t, b.left, b.bottom); } else say(""); });
  D.addEventListener("keydown", (e) => { if (e.key === "Escape") say("");
    const step = { ArrowRight: [1, 0], ArrowLeft: [-1, 0], ArrowDown: [0, 1], ArrowUp: [0, -1] }[e.key], a = e.target.closest && e.target.closest("svg.chart a"); if (!step || !a) return;
    const mid = (el) => { const b = el.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2]; }, [x, y] = mid(a); let best = null, least = Infinity;
    for (const b of a.closest("svg").querySelectorAll("a")) { const [p, q] = mid(b), u = (p - x) * step[0] + (q - y) * step[1], v = Math.abs((p - x) * step[1]) + Math.abs((q - y) * step[0]); if (u > 0.5 && u + 4 * v < least) { least = u + 4 * v; best = b; } }
    if (best) { a.tabIndex = -1; best.tabIndex = 0; best.focus(); e.preventDefault(); } });
}

