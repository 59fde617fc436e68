"use strict";
// A browser says so when a chart fits itself into its place in two goes; nothing is wrong then.
addEventListener("error", (event) => { if (event.message.startsWith("ResizeObserver loop")) event.preventDefault(); });

(async () => {
  Bokeh.set_log_level("error");  // figures that are not shown yet have no ranges, which it would remark on
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const items = read("items"), values = read("values");
  const roots = {};
  for (const [name, item] of Object.entries(items)) {
    await Bokeh.embed.embed_item(item, `chart-${name}`);
    roots[name] = Bokeh.documents.at(-1).roots()[0];
  }
  const figuresOf = (root) => root.children ?? [root];
  const sourceOf = (root) => figuresOf(root)[0].renderers[0].data_source;  // which all its figures share
  for (const [name, root] of Object.entries(roots)) sourceOf(root).data = values[name];
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
  let weight = 0;
  const charts = Object.entries(roots).filter(([name]) => "xs" in values[name]).map(([name, root]) => (
    { name, lines: values[name], figures: figuresOf(root), source: sourceOf(root) }));
  const legend = [...document.querySelectorAll(".r-legend button")];
  // the mean of all points until now, each a constant factor lighter than the next, as TensorBoard has it
  const smooth = (losses) => {
    let sum = 0, mass = 0;
    return losses.map((value) => {
      sum = sum * weight + value;
      mass = mass * weight + 1;
      return sum / mass;
    });
  };
  const show = () => {
    for (const { name, lines, source } of charts) {
      const drawn = (_, place) => !hidden.has(lines.number[place]);
      const data = Object.fromEntries(Object.entries(lines).map(([key, column]) => [key, column.filter(drawn)]));
      if (name === "loss") data.ys = data.ys.map(smooth);  // evaluations are few, and no noise
      source.data = data;
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
  on("smoothing", "input", (event) => {
    weight = Number(event.target.value) / 100;
    document.getElementById("smoothing-value").textContent = String(weight);
    show();
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
