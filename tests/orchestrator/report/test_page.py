"""The page of `loray report`: whole without a network, what jobs say stays text, and it works in a real browser."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from orchestrator.report.comparison import differing_settings, results
from orchestrator.report.contents import MOST_JOBS, Contents, essential, newest
from support.report_contents import HOSTILE, contents, job, metric_rows

pytestmark = pytest.mark.slow
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)

# What a person would see of the page in a browser: notes errors, tries the controls, looks at the pixels.
EARS = """<script>const heard = [];
for (const kind of ["error", "warn"]) console[kind] = (...what) => heard.push(kind + " " + what.join(" "));
addEventListener("error", (event) => { if (!event.message.startsWith("ResizeObserver")) heard.push(event.message); });
addEventListener("unhandledrejection", (event) => heard.push(String(event.reason)));
</script>"""
HANDS = """<script>(async () => {
const wait = (ms) => new Promise((then) => setTimeout(then, ms));
while (!document.body.dataset.ready) await wait(50);
const q = (what) => document.querySelector(what);
const canvases = (root) => [...root.querySelectorAll("*")].flatMap((e) =>
  [...(e.tagName === "CANVAS" ? [e] : []), ...(e.shadowRoot ? canvases(e.shadowRoot) : [])]);
const coloured = () => canvases(q("#chart-loss")).reduce((sum, canvas) => {
  if (!canvas.width || !canvas.height) return sum;
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < data.length; i += 4) {
    const [r, g, b] = data.slice(i, i + 3);
    if (data[i + 3] > 200 && Math.max(r, g, b) - Math.min(r, g, b) > 60) sum += 1;
  }
  return sum;
}, 0);
const seen = { roots: Bokeh.documents.length, hurt: typeof window.hurt };
const until = async (name, fits) => {  // what is drawn, once it is what it should be
  for (let tries = 0; tries < 60 && !fits(seen[name] = coloured()); tries++) await wait(100);
};
await until("all", (count) => count > 2000);
q("#log-loss").click(); q("#log-step").click();
await until("log", (count) => count > 500 && count !== seen.all);
q("#smoothing").value = 90; q("#smoothing").dispatchEvent(new Event("input"));
await until("smooth", (count) => count > 500 && count !== seen.log);
q("#show-none").click();
await until("none", (count) => count < 50);
q("[data-job='0']").click();
await until("one", (count) => count > 100);
const head = [...document.querySelectorAll("thead button")].find((b) => b.textContent === "eval loss");
head.focus(); head.click();
seen.first = q("tbody tr th").dataset.value;
head.click();
seen.last = q("tbody tr:last-child td:nth-child(5)").dataset.value;
seen.wide = document.documentElement.scrollWidth - innerWidth;
seen.heard = heard;
document.body.replaceChildren();
document.body.dataset.seen = JSON.stringify(seen);
})();</script>"""


@pytest.fixture(scope="module")
def page():
    from orchestrator.report.page import render

    return render(contents())


class Elements(HTMLParser):
    """Every element of a page, and its text outside of scripts and styles."""

    def __init__(self, page):
        super().__init__()
        self.found, self.words, self._in = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self._in = tag

    def handle_endtag(self, tag):
        self._in = ""

    def handle_data(self, data):
        if self._in not in ("script", "style"):
            self.words.append(data)


def test_the_page_is_whole_and_what_jobs_say_is_text(page):
    elements = Elements(page)
    tags = [tag for tag, _ in elements.found]
    assert (tags.count("script"), tags.count("img"), tags.count("iframe")) == (4, 0, 0)
    assert [attrs["href"] for _, attrs in elements.found if "href" in attrs] == ["data:,"]
    assert not [attrs for _, attrs in elements.found if "src" in attrs or any(name.startswith("on") for name in attrs)]
    text = "".join(elements.words)
    assert f"the loss became nan {HOSTILE}" in text
    assert f"3.1 GiB {HOSTILE}" in text
    items = json.loads(re.search(r'id="items">(.*?)</script>', page, re.S)[1])
    assert set(items) == {"loss", "eval_loss", "setting-0", "setting-1"}
    assert len(page) < 3 * 2**20


def test_a_job_has_the_same_colour_among_the_curves_and_where_it_trained(page):
    curves = {label: paint for paint, label in re.findall(r'<i style="background:(#\w+)"></i>(grid[^<]+)<', page)}
    bars = {label: paint for paint, label in re.findall(r'<rect class="job"[^>]*fill="(#\w+)"><title>([^:]+):', page)}
    assert len(set(bars.values())) == 6
    assert bars == curves


def test_settings_stand_on_their_axis_as_they_were_given(page):
    items = re.search(r'id="items">(.*?)</script>', page, re.S)[1]
    assert [json.loads(ticks) for ticks in re.findall(r'"ticks":(\[[^]]*\])', items.replace(" ", ""))] == [
        [8, 16],
        [0.0001, 0.0003, 0.001],
    ]


def test_a_page_with_other_values_needs_no_other_figures(page, monkeypatch):
    from orchestrator.report import charts
    from orchestrator.report.page import render

    monkeypatch.delattr(charts, "_figure")  # which takes hundredths of a second each
    made = contents()
    rows = {ref: [{**row, "loss": 7.25} if "loss" in row else row for row in found] for ref, found in made.rows.items()}
    assert "7.25" not in page
    values = json.loads(re.search(r'id="values">(.*?)</script>', render(replace(made, rows=rows)), re.S)[1])
    assert {y for line in values["loss"]["ys"] for y in line} == {7.25}


def test_paths_are_as_short_as_tells_them_apart_so_that_results_stand_beside():
    from orchestrator.report.page import render

    views = [job(name, "QUEUED", r=8) for name in ("a", "b", "c")]
    for view, path in zip(
        views, ("/long/way/to/one/data.jsonl", "/long/way/to/two/data.jsonl", "org/set"), strict=True
    ):
        view["spec"]["dataset"]["path"] = path
    cells = re.findall(r"<td[^>]*>([^<]+)</td>", render(Contents("some", views, {})))
    assert cells[4::5] == ["one/data.jsonl", "two/data.jsonl", "org/set"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser(page, tmp_path, width):
    file = tmp_path / "page.html"
    file.write_text(page.replace("<head>", f"<head>{EARS}", 1).replace("</body>", f"{HANDS}</body>"))
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},1000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=30000", "--dump-dom", file.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=200).stdout
    ((_, body),) = [found for found in Elements(dom).found if found[0] == "body"]
    seen = json.loads(body["data-seen"])
    assert seen["heard"] == []
    assert (seen["roots"], seen["hurt"]) == (4, "undefined")
    assert len({seen["all"], seen["log"], seen["smooth"]}) == 3
    assert seen["none"] < 50 < 100 < seen["one"] < seen["smooth"]
    assert seen["first"] == "grid-r16-lr0.001"
    assert seen["last"] == ""
    assert seen["wide"] <= 0


def test_a_long_job_keeps_its_peaks_and_its_end():
    rows = list(metric_rows(20_000, 1.0, 0.0))
    rows[5000]["loss"] = 99.0
    kept = essential(rows)
    assert len(kept) < 2100
    losses = [row for row in kept if "loss" in row]
    assert losses == sorted(losses, key=lambda row: row["step"])
    assert max(row["loss"] for row in losses) == 99.0
    assert losses[-10:] == [row for row in rows if "loss" in row][-10:]


def test_jobs_are_compared_where_that_means_something():
    made = contents()
    assert differing_settings(made.jobs) == ["lora.r", "training.learning_rate"]
    found = results(made)
    assert [job_id for job_id, result in found.items() if result.best] == ["id of grid-r16-lr0.001"]
    other = job("other data", "SUCCEEDED", r=8)
    other["spec"]["dataset"]["path"] = "/data/b.jsonl"
    rows = {**made.rows, other["id"]: [{"step": 1, "loss": 0.1, "time": 1.0}]}
    alone = results(type(made)("", [*made.jobs, other], rows))
    assert [job_id for job_id, result in alone.items() if result.best] == ["id of grid-r16-lr0.001"]


def test_of_very_many_jobs_those_that_are_not_over_and_the_newest_are_shown():
    views = [{"id": n, "state": "QUEUED" if n == 3 else "SUCCEEDED"} for n in range(MOST_JOBS + 50)]
    assert [view["id"] for view in newest(views)] == [3, *range(51, MOST_JOBS + 50)]
