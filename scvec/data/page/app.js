"use strict";
/* The page of `scvec serve`. Names of files, labels, genes and cells are inserted as text nodes, never as HTML. */
(() => {
  const $ = (id) => document.getElementById(id);
  const element = (tag, text, attributes = {}) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const count = (n) => n.toLocaleString("en-US");
  const problem = (error) => {
    $("problem").replaceChildren(
      ...[error.what, error.where, error.fix].filter(Boolean).map((line) => element("p", line)),
    );
    $("problem").hidden = false;
  };
  async function ask(address, options) {
    let answer;
    try {
      answer = await fetch(address, options);
    } catch {
      throw { what: "the server does not answer", fix: "is scvec serve still running?" };
    }
    const body = await answer.json().catch(() => ({}));
    if (!answer.ok) throw body.error || { what: `the server answered ${answer.status}` };
    return body;
  }

  let references = [], job = null;
  const chosen = () => references.find((r) => r.name === $("reference").value);
  function describe() {
    const r = chosen();
    $("reference-about").textContent = r
      ? `${r.name}: ${count(r.n_cells)} ${r.species} cells, ${Object.keys(r.labels).length} labels: ` +
        Object.keys(r.labels).slice(0, 12).join(", ") + (Object.keys(r.labels).length > 12 ? ", …" : "")
      : "The store has no reference yet. Make one with: scvec ingest cells";
    $("go").disabled = !r;
  }
  ask("/api/info")
    .then((info) => {
      references = info.references;
      for (const r of references) $("reference").append(element("option", r.name, { value: r.name }));
      $("about").append(` scvec ${info.version}, version ${info.generation} of the store.`);
      describe();
      document.documentElement.dataset.ready = "yes";
    })
    .catch(problem);
  $("reference").addEventListener("change", describe);

  const zone = $("zone");
  for (const name of ["dragenter", "dragover"])
    zone.addEventListener(name, (event) => {
      event.preventDefault();
      zone.classList.add("over");
    });
  for (const name of ["dragleave", "drop"]) zone.addEventListener(name, () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    event.preventDefault();
    if (event.dataTransfer.files.length) $("file").files = event.dataTransfer.files;
  });

  function busy(on) {
    $("working").hidden = $("stop").hidden = !on;
    $("go").disabled = on;
    if (on) {
      $("problem").hidden = $("result").hidden = true;
      $("progress").removeAttribute("value");
    }
  }
  $("upload").addEventListener("submit", async (event) => {
    event.preventDefault();
    busy(true);
    $("status").textContent = "Uploading …";
    try {
      job = await ask("/api/jobs", { method: "POST", body: new FormData($("upload")) });
      const mine = job.id;
      while (job && job.id === mine && ["waiting", "running"].includes(job.status)) {
        await new Promise((resolve) => setTimeout(resolve, 400));
        if (!job) return;
        job = await ask(`/api/jobs/${mine}`);
        const stage = job.total ? `${job.stage}: ${count(job.done)} of ${count(job.total)}` : job.stage;
        $("status").textContent = job.status === "waiting" ? "Waiting for another job …" : `${stage || "starting"} …`;
        if (job.total) {
          $("progress").max = job.total;
          $("progress").value = job.done;
        } else $("progress").removeAttribute("value");
      }
      busy(false);
      if (job.status === "done") show(job);
      else {
        $("status").textContent = "";
        problem(job.error || { what: `the job was ${job.status}` });
      }
    } catch (error) {
      busy(false);
      $("status").textContent = "";
      if (job) problem(error.what ? error : { what: String(error) });
      else problem(error.what ? error : { what: "the upload failed", fix: "is the file larger than the limit of the server?" });
    }
  });
  $("stop").addEventListener("click", async () => {
    const stopped = job;
    job = null;
    busy(false);
    $("status").textContent = "Stopped.";
    if (stopped) await ask(`/api/jobs/${stopped.id}`, { method: "DELETE" }).catch(() => {});
  });

  const FILES = {
    "report.html": "Open the report",
    "annotated.h5ad": "Annotated h5ad",
    "labels.csv": "Labels as CSV",
    "report.json": "Report as JSON",
    "annotate.sh": "Script that repeats the annotation",
  };
  function show(done) {
    const r = done.result;
    $("status").textContent = `Done: ${count(r.n_cells)} cells.`;
    $("result-h").textContent = `${done.name}: ${count(r.n_cells)} cells, ${count(r.status.confident)} confident, ` +
      `${count(r.status.ambiguous)} ambiguous, ${count(r.status.novel)} novel`;
    $("files").replaceChildren(
      ...Object.entries(FILES)
        .filter(([name]) => done.files.includes(name))
        .map(([name, text]) => {
          const link = element("a", text, { href: `/api/jobs/${done.id}/files/${name}` });
          if (name === "report.html") {
            link.target = "_blank";
            link.rel = "noopener";
          } else link.setAttribute("download", name);
          const item = element("li");
          item.append(link);
          return item;
        }),
    );
    $("counts").replaceChildren(
      ...Object.entries(r.labels).map(([label, n]) => {
        const row = element("tr");
        row.append(element("th", label, { scope: "row" }), element("td", count(n), { class: "num" }));
        return row;
      }),
    );
    $("notes").replaceChildren(...r.notes.map((note) => element("li", note)));
    $("notes").hidden = !r.notes.length;
    $("result").hidden = false;
  }

  function table(name, heads, rows) {
    const made = element("table"), head = element("tr"), thead = element("thead"), body = element("tbody");
    for (const [text, kind] of heads) head.append(element("th", text, { scope: "col", class: kind || "" }));
    for (const cells of rows) {
      const row = element("tr");
      cells.forEach((text, k) =>
        row.append(k ? element("td", text, { class: heads[k][1] || "" }) : element("th", text, { scope: "row" })),
      );
      body.append(row);
    }
    thead.append(head);
    made.append(thead, body);
    const box = element("div", undefined, { class: "scroll", tabindex: "0", role: "region", "aria-label": name });
    box.append(made);
    return box;
  }
  const number = (value, digits) => (value === null ? "" : value.toFixed(digits));
  $("search").addEventListener("submit", async (event) => {
    event.preventDefault();
    const what = $("what").value, query = new URLSearchParams({ q: $("q").value, k: "10" });
    if ($("where").value.trim()) query.set("where", $("where").value);
    if (what === "cells") query.set("reference", $("reference").value);
    $("search-status").textContent = "Searching …";
    try {
      const found = await ask(`/api/search/${what}?${query}`);
      const hits = found.hits.length;
      $("search-status").textContent = `${hits} ${what} found. ${found.notes.join(" ")}`;
      if (what === "genes")
        $("hits").replaceChildren(
          table(
            "Genes found",
            [["gene"], ["score", "num"], ["cosine", "num"], ["words", "num"], ["name"], ["description", "text"]],
            found.hits.map((h) => [h.symbol, number(h.score, 2), number(h.similarity, 2), number(h.keyword, 1), h.name, h.text]),
          ),
        );
      else
        $("hits").replaceChildren(
          element("h3", "Labels that express these genes"),
          element("p", `Genes: ${found.genes.slice(0, 15).map((g) => g.symbol).join(", ")}`),
          table(
            "Labels found",
            [["label"], ["score", "num"], ["cells", "num"], ["genes", "text"]],
            found.labels.slice(0, 10).map((h) => [h.label, number(h.score, 2), count(h.n_cells), h.genes.join(", ")]),
          ),
          element("h3", "Cells"),
          table(
            "Cells found",
            [["cell"], ["score", "num"], ["label"], ["other columns", "text"]],
            found.hits.map((h) => [h.cell, number(h.score, 3), h.label, Object.entries(h.obs).map(([k, v]) => `${k} ${v}`).join(", ")]),
          ),
        );
    } catch (error) {
      $("search-status").textContent = [error.what, error.fix].filter(Boolean).join("; ") || String(error);
      $("hits").replaceChildren();
    }
  });
})();
