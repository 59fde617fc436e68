"use strict";
// A browser says so when a chart fits itself into its place in two goes; nothing is wrong then.
addEventListener("error", (event) => { if (event.message.startsWith("ResizeObserver loop")) event.preventDefault(); });

(async () => {
  Bokeh.set_log_level("error");  // figures that are not shown yet have no ranges, which it would remark on
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const items = read("items"), series = read("series");
  const roots = {};
  for (const [name, item] of Object.entries(items)) {
    await Bokeh.embed.embed_item(item);
    roots[name] = Bokeh.documents.at(-1).roots()[0];
  }
  const figuresOf = (root) => root.children ?? [root];
  const all = Object.values(roots).flatMap(figuresOf);

  // the colours of the page, light or dark
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const paint = () => {
    const style = getComputedStyle(document.documentElement);
    const text = style.getPropertyValue("--text").trim(), line = style.getPropertyValue("--line").trim();
    for (const figure of all) {
      for (const axis of [...figure.below, ...figure.left]) {
        axis.setv({ axis_label_text_color: text, major_label_text_color: text, axis_line_color: line,
          major_tick_line_color: line, minor_tick_line_color: line, axis_label_text_font_style: "normal" });
      }
      for (const grid of figure.center) grid.setv({ grid_line_color: line });
    }
  };
  dark.addEventListener("change", paint);
  paint();

  // curves: which jobs, how smooth, on which axes
  const hidden = new Set();
  const charts = Object.entries(series).map(([name, jobs]) => ({ jobs, figures: figuresOf(roots[name]) }));
  const legend = [...document.querySelectorAll(".r-legend button")];
  const show = () => {
    for (const { jobs, figures } of charts) {
      for (const figure of figures) jobs.forEach((job, place) => { figure.renderers[place].visible = !hidden.has(job); });
    }
    for (const button of legend) button.setAttribute("aria-pressed", String(!hidden.has(Number(button.dataset.job))));
  };
  for (const button of legend) {
    button.addEventListener("click", () => {
      const job = Number(button.dataset.job);
      hidden.has(job) ? hidden.delete(job) : hidden.add(job);
      show();
    });
  }
  const on = (id, event, what) => document.getElementById(id)?.addEventListener(event, what);
  on("show-all", "click", () => { hidden.clear(); show(); });
  on("show-none", "click", () => { for (const button of legend) hidden.add(Number(button.dataset.job)); show(); });
  // the mean of all points until now, each a constant factor lighter than the next, as TensorBoard has it
  const smooth = (values, weight) => {
    let sum = 0, mass = 0;
    return Array.from(values, (value) => {
      sum = sum * weight + value;
      mass = mass * weight + 1;
      return sum / mass;
    });
  };
  if (roots.loss) on("smoothing", "input", (event) => {
    const weight = Number(event.target.value) / 100;
    document.getElementById("smoothing-value").textContent = String(weight);
    for (const { data_source: source } of figuresOf(roots.loss)[0].renderers) {  // evaluations are few, and no noise
      source.data = { ...source.data, y: smooth(source.data.raw, weight) };
    }
  });
  const scale = () => {
    const wanted = 2 * document.getElementById("log-step").checked + document.getElementById("log-loss").checked;
    for (const { figures } of charts) figures.forEach((figure, place) => { figure.visible = place === wanted; });
  };
  on("log-loss", "change", scale);
  on("log-step", "change", scale);
  document.body.dataset.ready = String(all.length);
})();

// the table sorts by any column; a second click turns the order round
for (const head of document.querySelectorAll("thead th")) {
  head.firstElementChild.addEventListener("click", () => {
    const column = head.cellIndex, body = head.closest("table").tBodies[0];
    const falling = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value;
    const compare = (a, b) => {
      if ((a === "") !== (b === "")) return a === "" ? 1 : -1;  // what is not known comes last
      const order = a !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b, undefined, { numeric: true });
      return falling ? -order : order;
    };
    body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  });
}
