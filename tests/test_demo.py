"""`make demo` goes as it is told, with a tiny model in the place of the real one; its recording is a picture."""

import re
import shutil
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from rich.segment import Segment

from demo.recording import animate
from support.cluster import PATIENCE
from support.command import Home
from support.repository import ROOT
from support.talking import save_talking_base

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"
ADAPTERS = {"pirate-r8", "pirate-r16", "json", "butler", "fairy-tale", "telegram"}
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.cluster
@pytest.mark.slow
def test_the_demo_tells_what_happens(tmp_path):
    for folder in ("demo", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    jobs = tmp_path / "configs" / "jobs" / "demo.yaml"
    jobs.write_text(re.sub(r"cutoff_len: \d+", "cutoff_len: 400", jobs.read_text()))  # a token is a byte here
    wrong = tmp_path / "demo" / "wrong-rate.yaml"
    wrong.write_text(wrong.read_text().replace("../configs/data/pirate.jsonl", "broken.jsonl"))  # a rate is not enough
    rows = (tmp_path / "configs" / "data" / "pirate.jsonl").read_text().splitlines()
    (wrong.parent / "broken.jsonl").write_text("\n".join([*rows[:30], "{oops"]))
    with Home(PYTHONPATH=str(ROOT)) as home:
        save_talking_base(home.storage / "models" / BASE)
        command = [sys.executable, "-m", "demo", "--record", "demo.svg"]
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=home.env,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    told = done.stdout
    assert done.returncode == 0, told + done.stderr
    places = [told.find(words) for words in ("in the queue: ", "comes late, ", "is urgent, ", "6 adapters trained")]
    assert places[0] > -1, told
    assert places == sorted(places), told
    assert re.search(r"wrong-rate fails, alone: .*broken.jsonl:31:", told)
    assert len(re.findall(r"pirate-r16, (step \d+ of 14|finished): ", told)) == 3, told
    answers = told[told.rindex("What is the sun?") :]
    assert all(f"\n{name} " in answers for name in {"base model"} | ADAPTERS)
    assert "loray run" in answers
    made = {path.parent.relative_to(tmp_path / "out" / "demo") for path in tmp_path.rglob("adapter_model.safetensors")}
    assert {str(folder).replace("/", "-") for folder in made} == ADAPTERS
    picture = "".join(ElementTree.parse(tmp_path / "demo.svg").getroot().itertext())
    assert "pirate-r16" in picture


def test_a_recording_draws_each_line_once_and_stops_at_its_end():
    frames = [
        (2.0, [[Segment("stays")], [Segment("first")]]),
        (12.0, [[Segment("stays")], [Segment("second <&>")]]),
        (22.0, [[Segment("stays")], [Segment(" ")]]),
    ]
    root = ElementTree.fromstring(animate(frames))
    words = [text.text for text in root.iter(f"{SVG}text")]
    assert words == ["stays", "first", "second\xa0<&>"]
    style = root.find(f"{SVG}style").text
    # ten times as fast as it was, and eight seconds for the end: 1 s, 1 s, 8 s
    assert "@keyframes l1-0 {0.00% {visibility: visible} 10.00% {visibility: hidden}}" in style
    assert "@keyframes l1-1 {0% {visibility: hidden} 10.00% {visibility: visible} 20.00% {visibility: hidden}}" in style
    assert re.search(r"\.l0-0 \{visibility: visible;", style)  # without motion: the last picture
    assert re.search(r"\.l1-1 \{visibility: hidden;", style)
