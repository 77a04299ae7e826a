"use strict";
/* The report. Names of cells, labels and genes are untrusted, so they are inserted as text nodes, never as HTML. */
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const u16 = (text) => new Uint16Array(bytes(text).buffer);
  const MISSING = 65535;
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const count = (n) => n.toLocaleString("en-US");

  const rgb = (hex) => [0, 2, 4].map((k) => parseInt(hex.replace("#", "").slice(k, k + 2), 16));
  const mixed = (color, other, share) => color.map((v, k) => Math.round(v * (1 - share) + other[k] * share));
  /* The colours of scvec.pl. People with any kind of colour vision can distinguish the first ones. No larger set of
     colours is safe, so the legend can show one label alone. */
  const PALETTE = data.palette.map(rgb);
  /* Cividis (Nunez et al. 2018), designed for colour-vision deficiency. */
  const RAMP = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"].map(rgb);
  let isDark = false;
  const ramp = (share) => {
    const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), k = Math.min(RAMP.length - 2, Math.floor(at));
    const color = mixed(RAMP[k], RAMP[k + 1], at - k);
    /* The dark end is invisible on a dark page. There the scale starts at a lighter blue and stays monotonic. */
    return isDark ? mixed(color, [120, 165, 255], 0.55 * (1 - share)) : color;
  };
  const pixel = ([r, g, b]) => (0xff000000 | (b << 16) | (g << 8) | r) >>> 0;
  const css = ([r, g, b]) => `rgb(${r}, ${g}, ${b})`;
  const GREY = rgb("8a8f98");

  const unit = (text) => Float32Array.from(u16(text), (v) => v / 65535);
  const cells = {
    n: data.n,
    x: unit(data.x),
    y: unit(data.y),
    label: u16(data.label),
    confidence: bytes(data.confidence),
    novelty: bytes(data.novelty),
    status: bytes(data.status),
    candidates: u16(data.candidates),
    probabilities: bytes(data.probabilities),
  };
  /* A random drawing order mixes the labels. The fixed seed gives the same order each time. */
  const order = Uint32Array.from({ length: data.n }, (_, i) => i);
  for (let i = data.n - 1, seed = 1; i > 0; i--) {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    const j = seed % (i + 1), kept = order[i];
    order[i] = order[j];
    order[j] = kept;
  }

  const colourings = [
    { name: "label", kind: "category", values: data.classes, codes: cells.label, colors: data.colors.map(rgb) },
    { name: "confidence", kind: "number", low: 0, high: 1, numbers: cells.confidence, top: 255 },
    { name: "novelty", kind: "number", low: 0, high: 1, numbers: cells.novelty, top: 255 },
    {
      name: "status",
      kind: "category",
      values: data.statuses.map((s) => s.replace("_", " ")),
      codes: cells.status,
      colors: data.status_colors.map(rgb),
    },
    ...data.columns.map((c) =>
      c.kind === "category"
        ? { ...c, codes: u16(c.codes), own: true }
        : { ...c, numbers: u16(c.numbers), top: 65534, own: true },
    ),
  ];
  const colorOf = (by, code) =>
    code === MISSING ? GREY : by.colors ? by.colors[code] : PALETTE[code % PALETTE.length];
  const valueOf = (by, i) => {
    if (by.kind === "category") return by.codes[i] === MISSING ? "" : by.values[by.codes[i]];
    if (by.numbers[i] === MISSING) return "";
    const value = by.low + (by.numbers[i] / by.top) * (by.high - by.low);
    return String(Number(value.toPrecision(4)));
  };

  const tip = $("tip");
  const scatter = new Scatter(
    $("map"),
    { x: cells.x, y: cells.y, n: data.n, order },
    { x: unit(data.reference.x), y: unit(data.reference.y), n: data.reference.n },
    { hover, select },
  );

  function candidatesOf(i) {
    const k = data.n_candidates, found = [];
    for (let j = 0; j < k; j++)
      found.push(`${data.classes[cells.candidates[i * k + j]]} ${(cells.probabilities[i * k + j] / 255).toFixed(2)}`);
    return found.join(", ");
  }

  function hover(i, x, y) {
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.replaceChildren(element("strong", data.names[i]));
    const lines = [
      `${data.classes[cells.label[i]]}: confidence ${(cells.confidence[i] / 255).toFixed(2)}, novelty ` +
        `${(cells.novelty[i] / 255).toFixed(2)}, ${data.statuses[cells.status[i]].replace("_", " ")}`,
      `candidates: ${candidatesOf(i)}`,
    ];
    const by = colourings[$("by").value];
    if (by.own) lines.push(`${by.name}: ${valueOf(by, i)}`);
    for (const line of lines) tip.append(element("div", line));
    const stage = $("map").parentElement;
    tip.style.left = `${Math.max(0, Math.min(x + 14, stage.clientWidth - tip.offsetWidth - 4))}px`;
    tip.style.top = `${Math.max(0, Math.min(y + 14, stage.clientHeight - tip.offsetHeight - 4))}px`;
  }

  function select(chosen) {
    const n = chosen ? chosen.reduce((sum, v) => sum + v, 0) : 0;
    $("save-selected").disabled = $("clear").disabled = !n;
    const counted = [];
    if (n) {
      const counts = new Map();
      for (let i = 0; i < data.n; i++)
        if (chosen[i]) counts.set(cells.label[i], (counts.get(cells.label[i]) || 0) + 1);
      for (const [code, k] of [...counts].sort((a, b) => b[1] - a[1]).slice(0, 5))
        counted.push(`${data.classes[code]} ${count(k)}`);
    }
    $("selected").textContent = n ? `${count(n)} cells selected: ${counted.join(", ")}` : "No cells selected.";
  }

  const hiddenCodes = new Map();
  function paint() {
    const by = colourings[$("by").value], hidden = hiddenCodes.get(by) || new Set();
    const dark = getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number);
    isDark = dark[0] + dark[1] + dark[2] < 380;
    scatter.paper = pixel(dark.slice(0, 3));
    scatter.backColor = pixel(isDark ? [58, 66, 80] : [214, 218, 224]);
    scatter.ink = isDark ? "#ffffff" : "#000000";
    for (let i = 0; i < data.n; i++) {
      if (by.kind === "category") {
        scatter.colors[i] = pixel(colorOf(by, by.codes[i]));
        scatter.visible[i] = hidden.has(by.codes[i]) ? 0 : 1;
      } else {
        scatter.colors[i] = by.numbers[i] === MISSING && by.top > 255 ? pixel(GREY) : pixel(ramp(by.numbers[i] / by.top));
        scatter.visible[i] = 1;
      }
    }
    scatter.redraw();
  }

  const SVG = "http://www.w3.org/2000/svg";
  function swatch(color) {
    const svg = document.createElementNS(SVG, "svg"), dot = document.createElementNS(SVG, "circle");
    for (const [k, v] of Object.entries({ width: 12, height: 12, "aria-hidden": "true" })) svg.setAttribute(k, v);
    for (const [k, v] of Object.entries({ cx: 6, cy: 6, r: 5.5, fill: css(color) })) dot.setAttribute(k, v);
    svg.append(dot);
    return svg;
  }

  function legend() {
    const by = colourings[$("by").value], box = $("legend");
    box.replaceChildren(element("h3", by.name));
    if (by.kind === "number") {
      const canvas = element("canvas", undefined, { class: "ramp", width: 256, height: 1, "aria-hidden": "true" });
      const context = canvas.getContext("2d"), ends = element("div", undefined, { class: "ends" });
      for (let k = 0; k < 256; k++) {
        context.fillStyle = css(ramp(k / 255));
        context.fillRect(k, 0, 1, 1);
      }
      ends.append(element("span", Number(by.low.toPrecision(4))), element("span", Number(by.high.toPrecision(4))));
      box.append(canvas, ends);
      return;
    }
    const hidden = hiddenCodes.get(by) || new Set();
    hiddenCodes.set(by, hidden);
    const counts = new Map();
    for (let i = 0; i < data.n; i++) counts.set(by.codes[i], (counts.get(by.codes[i]) || 0) + 1);
    const list = element("ul");
    for (const [code, n] of [...counts].sort((a, b) => b[1] - a[1])) {
      const button = element("button", undefined, { type: "button", "aria-pressed": String(!hidden.has(code)) });
      const name = code === MISSING ? "(none)" : by.values[code];
      button.append(swatch(colorOf(by, code)), element("span", name, { class: "name" }), element("span", count(n)));
      button.addEventListener("click", (event) => {
        if (event.altKey) {
          const alone = hidden.size === counts.size - 1 && !hidden.has(code);
          hidden.clear();
          if (!alone) for (const other of counts.keys()) if (other !== code) hidden.add(other);
        } else if (!hidden.delete(code)) hidden.add(code);
        legend();
        paint();
        const again = box.querySelectorAll("button")[[...list.children].indexOf(button.parentElement)];
        if (again) again.focus();
      });
      const item = element("li");
      item.append(button);
      list.append(item);
    }
    const all = element("button", "Show all", { type: "button" });
    all.addEventListener("click", () => {
      hidden.clear();
      legend();
      paint();
    });
    box.append(list, all);
  }

  colourings.forEach((by, k) => $("by").append(element("option", by.name, { value: k })));
  $("by").addEventListener("change", () => {
    legend();
    paint();
  });
  $("zoom-in").addEventListener("click", () => scatter.zoomBy(1.4));
  $("zoom-out").addEventListener("click", () => scatter.zoomBy(1 / 1.4));
  $("reset").addEventListener("click", () => scatter.reset());
  $("reference").addEventListener("change", (event) => {
    scatter.showBack = event.target.checked;
    scatter.redraw();
  });
  $("lasso").addEventListener("click", () => {
    scatter.selecting = !scatter.selecting;
    $("lasso").setAttribute("aria-pressed", String(scatter.selecting));
    $("map").classList.toggle("lassoing", scatter.selecting);
  });
  $("clear").addEventListener("click", () => {
    scatter.selected = null;
    scatter.redraw();
    select(null);
  });

  /* A quote protects text that a spreadsheet would run as a formula. */
  const csvCell = (value) => {
    let text = String(value);
    if (/^[=+\-@\t\r]/.test(text) && Number.isNaN(Number(text))) text = "'" + text;
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  function download(name, rows) {
    const text = rows.map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
    const link = element("a", undefined, { download: name });
    link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }
  function cellRows(chosen) {
    const rows = [["cell", "scvec_label", "scvec_confidence", "scvec_novelty", "scvec_status", "candidates"]];
    for (let i = 0; i < data.n; i++)
      if (!chosen || chosen[i])
        rows.push([
          data.names[i],
          data.classes[cells.label[i]],
          (cells.confidence[i] / 255).toFixed(3),
          (cells.novelty[i] / 255).toFixed(3),
          data.statuses[cells.status[i]],
          candidatesOf(i),
        ]);
    return rows;
  }
  $("save-cells").addEventListener("click", () => download("cells.csv", cellRows(null)));
  $("save-selected").addEventListener("click", () => download("selected_cells.csv", cellRows(scatter.selected)));

  /* Tables: sorting by their heads, searching, CSV. */
  const plainText = (cell) => cell.dataset.value ?? cell.textContent.trim();
  function sortable(table) {
    table.querySelectorAll("thead th[data-sort]").forEach((head) => {
      const button = element("button", head.textContent, { type: "button", class: "sort" });
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && head.dataset.sort === "text");
        table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const body = table.tBodies[0], rows = [...body.rows], at = head.cellIndex, sign = up ? 1 : -1;
        const compare =
          head.dataset.sort === "number"
            ? (a, b) => Number(plainText(a.cells[at])) - Number(plainText(b.cells[at]))
            : (a, b) => plainText(a.cells[at]).localeCompare(plainText(b.cells[at]), "en", { numeric: true });
        rows.sort((a, b) => sign * compare(a, b));
        body.append(...rows);
      });
    });
  }
  document.querySelectorAll("table.sortable").forEach(sortable);
  const labels = $("labels");
  $("find-label").addEventListener("input", (event) => {
    const wanted = event.target.value.trim().toLowerCase();
    let shown = 0;
    for (const row of labels.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      shown += row.hidden ? 0 : 1;
    }
    $("found-labels").textContent = `${shown} of ${labels.tBodies[0].rows.length} labels`;
  });
  $("save-labels").addEventListener("click", () =>
    download("labels.csv", [...labels.rows].filter((r) => !r.hidden).map((r) => [...r.cells].map(plainText))),
  );

  /* Confusion table against a column of the query. */
  const groups = colourings.map((by, k) => [by, k]).filter(([by]) => by.own && by.kind === "category");
  if (groups.length) {
    $("confusion").hidden = $("to-confusion").hidden = false;
    for (const [by, k] of groups) {
      const option = element("option", by.name, { value: k });
      option.selected = by.name === data.truth;
      $("against").append(option);
    }
    const show = () => confusion(colourings[$("against").value]);
    $("against").addEventListener("change", show);
    show();
  }
  function confusion(by) {
    const table = $("matrix"), counts = new Map(), given = new Map(), before = new Map();
    const key = (a, b) => a * 70000 + b, add = (map, k) => map.set(k, (map.get(k) || 0) + 1);
    for (let i = 0; i < data.n; i++) {
      add(counts, key(by.codes[i], cells.label[i]));
      add(given, cells.label[i]);
      add(before, by.codes[i]);
    }
    const columns = [...given.keys()].sort((a, b) => given.get(b) - given.get(a));
    const rank = new Map(columns.map((c, k) => [c, k]));
    const likeliest = (r) => columns.reduce((m, c) => ((counts.get(key(r, c)) || 0) > (counts.get(key(r, m)) || 0) ? c : m), columns[0]);
    const rows = [...before.keys()].sort((a, b) => rank.get(likeliest(a)) - rank.get(likeliest(b)) || before.get(b) - before.get(a));
    const head = element("tr");
    head.append(element("th", `${by.name} \\ scvec label`, { scope: "col" }));
    for (const c of columns) head.append(element("th", data.classes[c], { scope: "col" }));
    const body = rows.map((r) => {
      const line = element("tr");
      line.append(element("th", `${r === MISSING ? "(none)" : by.values[r]} (${count(before.get(r))})`, { scope: "row" }));
      for (const c of columns) {
        const n = counts.get(key(r, c)) || 0, cell = element("td", count(n));
        const share = n / before.get(r);
        if (!n) cell.className = "zero";
        else cell.style.backgroundColor = `color-mix(in srgb, var(--bar) ${Math.round(100 * share)}%, transparent)`;
        cell.title = `${(100 * share).toFixed(1)}% of the row`;
        line.append(cell);
      }
      return line;
    });
    table.tHead.replaceChildren(head);
    table.tBodies[0].replaceChildren(...body);
  }

  /* Theme: the one of the system until the reader changes it. */
  const repaint = () => {
    paint();
    legend();
  };
  $("theme").addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark ? "light" : "dark";
    repaint();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", repaint);
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("command").textContent);
      $("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren($("command"));
      $("copied").textContent = "Selected: press Ctrl+C.";
    }
  });

  repaint();
  select(null);
  document.documentElement.dataset.ready = "yes";
})();
