"""`loray show` and `loray top`: curves, bars and stories, at every width, without colour, and in ASCII."""

import io
import itertools

import pytest
from rich.console import Console

from orchestrator.formatting import base_names
from orchestrator.reporting.loss_curves import LossCurves
from orchestrator.terminal import display
from orchestrator.terminal.curve import Curve, Sparkline
from orchestrator.terminal.job_story import job_story
from orchestrator.terminal.top import TopPicture
from support.views import actor, view

FALLING = [(step, 4.0 / step + 1.0) for step in range(1, 301)]
EVENTS = [
    {"seq": number, "time": 1000.0 + 60 * number, "job_id": "j-1", "name": "alpaca-r8", "message": f"event {number}"}
    for number in range(50)
]


def printed(renderable, width=80, encoding="utf-8", height=None):
    """What a terminal without colours shows."""
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding=encoding)
    Console(file=out, width=width, color_system=None, height=height).print(renderable)
    out.flush()
    return raw.getvalue().decode(encoding)


def drawn(text):
    """Line and column of each character of a curve that is no axis."""
    return [
        (row, column)
        for row, line in enumerate(text.splitlines())
        for column, character in enumerate(line)
        if "\u2800" < character <= "\u28ff"
    ]


def test_a_curve_begins_high_at_the_left_and_ends_low_at_the_right():
    text = printed(Curve(FALLING, [(150, 3.0), (300, 2.0)]))
    cells = drawn(text)
    left, right = min(column for _, column in cells), max(column for _, column in cells)
    assert min(row for row, column in cells if column == left) == 0
    assert {row for row, column in cells if column == right} == {9}
    columns = {column for _, column in cells}
    assert columns == set(range(left, right + 1))  # the line has no gap
    lines = text.splitlines()
    assert lines[0].startswith("       5│")
    assert lines[9].startswith("   1.013│")
    assert lines[11].split() == ["1", "step", "300"]
    assert lines[5].index("o") < lines[7].index("o")


def test_a_curve_leaves_out_what_is_not_finite_and_draws_one_value_flat():
    assert printed(Curve([(1, float("nan")), (2, float("inf"))])).strip() == ""
    assert len({row for row, _ in drawn(printed(Curve([(1, 2.0), (2, float("nan")), (3, 2.0)])))}) == 1


def test_a_sparkline_falls_with_its_values():
    line = printed(Sparkline([value for _, value in FALLING], 24))
    assert len(line) == 24
    assert line[0] > line[1] > line[-1] == "▁"


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_pictures_fit_their_terminal(width):
    jobs = [view(loss_curve=[3.0, 2.0, 1.0]), view(id="2", name="x" * 90, state="QUEUED", waiting_for="no room " * 30)]
    top = TopPicture("Loray at " + "a" * 60, [actor(reason="why " * 40)], jobs, EVENTS)
    for picture in (top, job_story(view(), EVENTS, FALLING, []), display.job_table(jobs, width)):
        text = printed(picture, width)
        assert max(map(len, text.splitlines())) <= width
    assert "no room " * 2 in " ".join(printed(top, width).split())


@pytest.mark.parametrize("height", [12, 24, 50])
def test_top_fits_its_screen_and_counts_what_does_not(height):
    jobs = [view(id=str(number), name=f"job-{number}", state="QUEUED", waiting_for="no room") for number in range(40)]
    running = view(name="the-one-that-runs", loss_curve=[2.0, 1.0])
    text = printed(TopPicture("title", [actor()] * 9, [*jobs, running], EVENTS, height), 80)
    assert len(text.splitlines()) <= height
    assert "the-one-that-runs" in text
    assert "more actors" in text
    assert "more waiting jobs" in text
    assert "event 49" in text


def test_top_says_why_jobs_wait_however_many_run():
    running = [view(id=f"r{number}", name=f"runs-{number}", loss_curve=[2.0, 1.0]) for number in range(20)]
    waits = view(name="waits", state="QUEUED", base_model="org/other", waiting_for="no actor hosts org/other")
    text = printed(TopPicture("title", [actor()], [waits, *running], EVENTS, 24), 80)
    assert "more running jobs" in text
    assert "no actor hosts org/other" in text
    assert text.count("org/other") == 1  # and not once more before the reason
    assert len(text.splitlines()) <= 24


def test_pictures_are_ascii_where_the_terminal_has_no_more():
    parts = (
        Curve(FALLING, [(9, 2.0)]),
        Sparkline([3.0, 1.0], 9),
        TopPicture("t", [actor()], [view(loss_curve=[2.0, 1.0])], EVENTS),
    )
    for part in parts:
        assert printed(part, encoding="ascii").isascii()


def test_a_story_is_told_in_order_and_a_long_one_is_cut_in_the_middle():
    text = printed(job_story(view(), EVENTS, FALLING, [(100, 2.0), (200, 1.5)]))
    told = [line.split()[-1] for line in text.splitlines() if " event " in line]
    assert told == [str(number) for number in (*range(5), *range(25, 50))]
    assert "(20 more: `loray logs`)" in text
    assert "+1m 00s" in text
    assert "lowest 1.5000 at step 200" in text


def test_of_anothers_job_there_is_what_is_for_everybody():
    hidden = dict.fromkeys(("spec", "output_dir", "loss", "eval_loss", "reason", "waiting_for", "loss_curve"))
    text = printed(job_story(view(**hidden), [], [], []))
    assert "alpaca-r8" in text
    assert "alpaca-r8" in printed(TopPicture("t", [], [view(**hidden)], []))


@pytest.mark.parametrize(
    ("refs", "names"),
    [
        (["org/model", "/m/a/base", "/m/b/base"], ["org/model", "a/base", "b/base"]),
        (["/m/llama", "/m/qwen/"], ["llama", "qwen"]),
        (["/base", "/m/base"], ["base", "m/base"]),
        (["/c/hub/models--org--model/snapshots/0a1b", "/x/0a1b"], ["org/model", "0a1b"]),
    ],
)
def test_base_models_are_called_as_people_know_them(refs, names):
    for order in itertools.permutations(refs):
        assert list(map(base_names(order).get, refs)) == names


def test_no_two_base_models_share_a_name_in_a_list():
    jobs = [view(base_model="/m/a/base"), view(base_model="/m/b/base"), view(base_model="/m/c")]
    for width in (80, 200):
        text = printed(display.job_table(jobs, width), width)
        assert "a/base" in text
        assert "b/base" in text
    assert "base model: c" in printed(display.job_table([view(base_model="/m/c")] * 2, 80))


def test_the_losses_of_a_running_job_are_few_and_span_its_whole_run():
    curves = LossCurves()
    for step in range(1, 5001):
        curves.note({"j": {"step": step, "loss": 5000.0 - step}, "new": {"step": 0, "loss": None}})
    losses = curves.of("j")
    assert 20 <= len(losses) <= 48
    assert losses[0] == 4999.0
    assert losses[-1] < 250.0
    assert losses == sorted(losses, reverse=True)
    assert curves.of("new") == []
    curves.note({"j": {"step": 100, "loss": 1.0}})  # it goes on from a checkpoint
    assert curves.of("j")[-1] == 1.0
    assert len(curves.of("j")) < 5
    curves.note({})
    assert curves.of("j") == []
