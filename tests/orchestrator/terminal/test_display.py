"""What a person reads: words, lines and tables, at every width."""

import io
import json

import pytest
from rich.console import Console

from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.terminal import display
from orchestrator.terminal.job_story import job_details
from support.views import actor, view


def printed(renderable, width=100):
    """What a terminal of that width shows, without colours."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (None, "-"),
        (-1, "-"),
        (0, "0.0s"),
        (3.14, "3.1s"),
        (9.97, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (185, "3m 05s"),
        (3599.7, "1h 00m"),
        (7800, "2h 10m"),
        (86400 * 4 + 3 * 3600, "4d 3h"),
    ],
)
def test_durations_have_two_units(seconds, expected):
    assert formatting.duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (2048, "2 KiB"),
        (3 * 2**20 // 2, "1.5 MiB"),
        (2**31, "2.0 GiB"),
        (2**42, "4.0 TiB"),
    ],
)
def test_sizes_are_binary(count, expected):
    assert formatting.size(count) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(None, "-"), (812.4, "812"), (9999, "9999"), (12345, "12.3k"), (999_960, "1.0M")]
)
def test_amounts_are_short(count, expected):
    assert formatting.amount(count) == expected


def test_a_running_job_in_one_line():
    line = formatting.progress_line(view())
    assert line == "alpaca-r8  RUNNING  step 12/300 (4%)  loss 1.2346  812 tokens/s  ETA 3m 10s"


def test_a_waiting_job_says_why():
    line = formatting.progress_line(view(state="QUEUED", step=0, loss=None, waiting_for="needs 3.1 GiB"))
    assert line == "alpaca-r8  QUEUED  needs 3.1 GiB"


def test_a_failed_job_says_why_and_where():
    line = formatting.progress_line(view(state="FAILED", reason="loss is nan at step 12"))
    assert "step 12/300" in line
    assert line.endswith("loss is nan at step 12")


def test_a_finished_job_names_its_folder_and_its_time():
    line = formatting.progress_line(view(state="SUCCEEDED", step=300, finished_at=1075.0))
    assert line.endswith("1m 05s  /out/alpaca-r8")


def test_samples_left_out_are_not_silent():
    assert formatting.remark(view(truncated=1, dropped=2)) == "1 sample cut, 2 samples dropped"


def test_columns_that_are_not_read_are_named():
    job = view(unread_columns="id, source")
    assert formatting.remark(job) == "columns not read: id, source"
    assert "columns not read  id, source" in printed(job_details({**job, "state": "SUCCEEDED"}))


def test_conversations_that_the_template_shortened_are_named():
    job = view(shortened=3)
    assert formatting.remark(job) == "3 conversations shortened by the chat template"
    assert "3 conversations, of which the chat template leaves out" in printed(job_details(job))


def test_layers_that_no_gradient_reaches_are_named():
    job = view(unreached="4 of 8 layers (dt_proj)")
    assert formatting.remark(job) == "no gradient reached 4 of 8 layers (dt_proj)"
    assert "4 of 8 layers (dt_proj): in the first step the loss did not depend" in printed(job_details(job))


def test_steps_before_the_data_are_loaded():
    waiting = view(state="QUEUED", step=0, total_steps=0)
    assert formatting.steps(waiting) == "0/?"
    assert formatting.share(waiting) == 0.0


def test_live_jobs_come_first_in_the_order_of_submission():
    jobs = [view(name=name, state=state) for name, state in zip("abcde", _STATES, strict=True)]
    assert [job["name"] for job in formatting.by_liveliness(jobs)] == ["c", "e", "b", "a", "d"]


_STATES = ("SUCCEEDED", "QUEUED", "RUNNING", "FAILED", "RUNNING")


def test_square_brackets_are_no_markup():
    text = printed(display.result_table([view(state="FAILED", reason="bad field [bold]lora[/bold]")]))
    assert "[bold]lora[/bold]" in text


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal(width):
    jobs = [view(), view(name="x" * 128, state="QUEUED", waiting_for="needs more memory than there is " * 5)]
    for renderable in (
        display.job_table(jobs, width),
        display.progress_table(jobs, [actor(reason="no room " * 30)], width, 24),
        display.result_table(jobs),
        job_details(view()),
    ):
        assert max(map(len, printed(renderable, width).splitlines())) <= width


def test_the_live_picture_shows_job_and_actor():
    text = printed(display.progress_table([view()], [actor()], 120, 24), 120)
    for fact in ("alpaca-r8", "RUNNING", "12/300", "1.2346", "812", "3m 10s", "1.0 GiB of 4.0 GiB", "1500 tokens/s"):
        assert fact in text


def test_the_live_picture_fits_a_short_terminal():
    jobs = [view(id=str(number), name=f"job-{number}", state="QUEUED") for number in range(50)]
    jobs.append(view(id="x", name="the-one-that-runs"))
    text = printed(display.progress_table(jobs, [actor()], 100, 20), 100)
    assert len(text.splitlines()) <= 20
    assert "the-one-that-runs" in text
    assert "and 36 more jobs" in text


def test_a_narrow_list_drops_columns_instead_of_cutting_them():
    wide, narrow = printed(display.job_table([view()], 160), 160), printed(display.job_table([view()], 80), 80)
    assert "base model  " in wide
    assert "base model: org/model" in narrow
    for fact in ("alpaca-r8", "RUNNING", "12/300", "1.2346", "3m 10s"):
        assert fact in wide
        assert fact in narrow


@pytest.mark.parametrize("width", [60, 80, 130, 200])
def test_why_a_job_waits_and_its_state_are_whole_at_every_width(width):
    reason = "jobs with less work left for their weight go first on HuggingFaceTB/SmolLM2-135M-Instruct"
    jobs = [view(name="x" * 60, state=state, waiting_for=reason, reason=reason) for state in ("QUEUED", "SUCCEEDED")]
    listed = printed(display.job_table(jobs, width), width)
    assert "".join(listed.split()).count("".join(reason.split())) == 2 or width >= display.WIDE_LIST
    live = printed(display.progress_table(jobs, [actor()], width, 24), width)
    for text in (listed, live):
        assert all(fact in text for fact in ("QUEUED ", "SUCCEEDED ", "12/300", "1.2346"))
    assert len(live.splitlines()) <= 24


def test_details_leave_out_what_is_not_there():
    text = printed(job_details(view(state="QUEUED", samples=0, waiting_for="no actor hosts org/model")))
    assert "waits for" in text
    assert "reason" not in text
    assert "samples" not in text
    assert "q_proj, v_proj" in text


def test_log_lines_of_events_and_rows():
    event = formatting.log_line({"seq": 1, "time": 0.0, "message": "started on model@cpu"})
    row = formatting.log_line({"step": 3, "epoch": 0.25, "loss": 1.5, "learning_rate": 1e-4, "tokens": 90, "time": 0.0})
    evaluation = formatting.log_line({"step": 3, "eval_loss": 1.25, "time": 0.0})
    assert event.endswith("  started on model@cpu")
    assert row.endswith("  step 3  epoch 0.25  loss 1.5000  lr 0.0001  tokens 90")
    assert evaluation.endswith("  step 3  eval loss 1.2500")


def test_what_is_not_a_number_is_null_in_json(capsys):
    progress.print_json_line({"job": {"loss": float("nan"), "rows": [1.5, float("inf")]}})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {
        "job": {"loss": None, "rows": [1.5, None]}
    }


def test_lines_come_at_each_change_of_state_and_not_at_each_step(capsys):
    reporter = progress.LineReporter(as_json=False)
    reporter.update([view(state="QUEUED", step=0, waiting_for="an actor")], list)
    for step in range(1, 50):
        reporter.update([view(step=step)], lambda: [actor()])
    reporter.update([view(state="SUCCEEDED", step=50)], list)
    states = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert states == ["QUEUED", "RUNNING", "SUCCEEDED"]


def test_a_moving_job_gets_a_line_every_ten_seconds(capsys, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    reporter = progress.LineReporter(as_json=False)
    for step in range(1, 41):
        reporter.update([view(step=step), view(id="j-2", name="still", step=7)], lambda: [actor()])
        now[0] += 1.0
    lines = capsys.readouterr().out.splitlines()
    steps = [line.split("step ")[1].split("/")[0] for line in lines if "alpaca-r8  RUNNING" in line]
    assert steps == ["1", "11", "21", "31"]
    assert sum("still" in line for line in lines) == 1
    assert sum("memory 1.0 GiB" in line for line in lines) == 3
