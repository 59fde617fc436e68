"""Ray's dashboard in a real browser: what a person finds there of LoRA jobs, and what is not in their way."""

import json
import re

import pytest

from support.browser import CHROMIUM, browser
from support.cluster import wait_until
from support.command import JobFiles
from support.tiny import tiny_model, token_rows

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("served"),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
DRIVER = "01000000"  # the first of a cluster: `loray serve`
ROWS = """[...document.querySelectorAll("tr")].map((row) => [...row.children].map((cell) => cell.innerText.trim()))"""

PAGE_SIZE = """(() => {
    const label = [...document.querySelectorAll("label")].find((one) => one.innerText.startsWith("Page Size"));
    const field = label.parentElement.querySelector("input");
    field.focus();
    field.select();
})()"""


@pytest.fixture(scope="module")
def page(served, tmp_path_factory):
    """The dashboard of `served`, behind its token, with four jobs that stand differently."""
    folder = tmp_path_factory.mktemp("dashboard")
    tiny_model(seed=1).save_pretrained(folder / "tiny-one")
    tiny_model(seed=2).save_pretrained(folder / "tiny-two")
    files = JobFiles(folder, str(folder / "tiny-one"), token_rows(24))
    (folder / "broken.jsonl").write_text("{oops\n")
    jobs = [files.spec("dash-good"), files.spec("dash-bad", data="broken.jsonl")]
    jobs += [files.spec("dash-long", max_steps=100_000)]
    jobs += [{**files.spec("dash-waits", max_steps=1_000_000), "base_model": str(folder / "tiny-two")}]
    (folder / "jobs.json").write_text(json.dumps({"jobs": jobs}))
    done = served.run("submit", folder / "jobs.json")
    assert done.returncode == 0, done.stderr
    assert served.run("wait", "dash-good", "dash-bad").returncode == 1
    states = {"dash-good": "SUCCEEDED", "dash-bad": "FAILED", "dash-long": "RUNNING", "dash-waits": "QUEUED"}
    wait_until(lambda: states.items() <= {job["name"]: job["state"] for job in served.json("list")}.items())
    known = json.loads((served.storage / "cluster.json").read_text())
    # a command that takes Ray and not the door
    assert served.run("list", "--address", known["address"]).returncode == 0
    token = (served.path / ".ray" / "auth_token").read_text().strip()
    with browser(folder) as page:
        page.open(f"{known['dashboard']}/#/jobs")
        page.wait_for("Token")
        page.run("""document.querySelector("input[placeholder*='token']").focus()""")
        page.type(token)
        page.click("SUBMIT")
        page.wait_for(DRIVER, "orchestrator serve")  # the page has loaded itself again
        page.url = f"{known['dashboard']}/#"
        yield page
    served.run("cancel", "dash-long", "dash-waits")


def rows(page, column):
    """The rows of the table that a page shows, by what stands in a column: the cells, each under its column's name."""
    head, *body = [cells for cells in page.run(ROWS) if len(cells) > 4]
    return {cells[head.index(column)]: dict(zip(head, cells, strict=True)) for cells in body}


def test_commands_are_no_jobs_of_ray(page):
    page.open(f"{page.url}/jobs")
    page.wait_for(DRIVER, "orchestrator serve")
    shown = rows(page, "Entrypoint")
    assert not [entrypoint for entrypoint in shown if " list" in entrypoint or " submit " in entrypoint], shown


def test_every_job_is_a_row_with_its_state_and_its_error(page):
    page.open(f"{page.url}/jobs/{DRIVER}")
    page.click("Task Table")
    page.wait_for("Page Size")
    page.run(PAGE_SIZE)
    page.type("500")  # others' jobs are on this cluster too
    page.wait_for(*(f"lora[dash-{name}]" for name in ("good", "bad", "long", "waits")))
    shown = rows(page, "Name")
    assert all(name.startswith("lora[") for name in shown), shown
    states = {name: row["State"] for name, row in shown.items() if name.startswith("lora[dash-")}
    assert states == {
        "lora[dash-good] tiny-one r=8": "FINISHED",
        "lora[dash-bad] tiny-one r=8": "FAILED",
        "lora[dash-long] tiny-one r=8": "RUNNING",
        "lora[dash-waits] tiny-two r=8": "PENDING_ARGS_AVAIL",
    }
    page.run("""[...document.querySelectorAll("tr")].find((row) => row.innerText.includes("lora[dash-bad]"))
        .querySelectorAll("button").forEach((button) => button.innerText.trim() === "Error" && button.click())""")
    page.wait_for("Error details", "broken.jsonl:1: not valid JSON")


def test_actors_bear_the_names_of_their_base_model_and_device(page):
    page.open(f"{page.url}/actors")
    page.wait_for("tiny-one@cpu:0#")
    (shown,) = [row for row in rows(page, "Name").values() if row["Class"] == "GpuActor" and row["State"] == "ALIVE"]
    assert re.fullmatch(r"tiny-one@cpu:0#[0-9a-f]{4}", shown["Name"])
    assert shown["Repr"] == "tiny-one@cpu"
