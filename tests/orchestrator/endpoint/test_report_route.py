"""The page at the door: whoever comes gets their own jobs, a browser may ask a person for the token, and it is kept."""

import base64
import urllib.error
import urllib.request

import pytest

from orchestrator.cli.report import _contents
from orchestrator.endpoint import report_route
from orchestrator.endpoint.door_file import read_door_file
from orchestrator.endpoint.tokens import digest_of
from orchestrator.jobs.owner import OPERATOR
from support.door import open_door
from support.report_contents import contents

pytestmark = pytest.mark.slow


class Jobs:
    """What is behind the door: jobs that ran once."""

    def __init__(self):
        self.made = contents()
        self.asked = 0

    async def list_jobs(self, most_over=None, owner=OPERATOR):
        self.asked += 1
        views = [{**job, "owner": "anna" if job["name"] == "waits" else "bob"} for job in self.made.jobs]
        return [view for view in views if owner in (OPERATOR, view["owner"])]

    async def get_job(self, ref, owner=None):
        (view,) = [view for view in await self.list_jobs() if view["id"] == ref]
        return view

    async def metrics(self, ref, skip=0, most=None):
        return self.made.rows.get(ref, [])

    async def timeline(self, ids):
        stays = [stay for stay in self.made.timeline["stays"] if stay["job_id"] in ids]
        return {**self.made.timeline, "stays": stays}


def get(door, path, authorization=None):
    """Status, headers and text."""
    request = urllib.request.Request(door.url + path, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=120) as response:
            return response.status, response.headers, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def basic(token):
    return "Basic " + base64.b64encode(f"anybody:{token}".encode()).decode()


def test_the_page_is_for_those_who_have_a_token(tmp_path):
    jobs = Jobs()
    with open_door(jobs, tmp_path) as door:
        door.tokens.given = {"anna": digest_of("annas-token")}
        operator = read_door_file(tmp_path).token
        for wrong in (None, basic("guessed"), "Basic %%%", "Bearer guessed"):
            status, headers, _ = get(door, "/report", wrong)
            assert (status, headers["WWW-Authenticate"].partition(" ")[0]) == (401, "Basic")
        assert jobs.asked == 0
        status, headers, page = get(door, "/report", basic(operator))
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert "grid-r16-lr0.001" in page
        assert get(door, "/report", f"Bearer {operator}")[2] == page
        assert jobs.asked == 1  # it is given out again
        _, _, annas = get(door, "/report", basic("annas-token"))
        assert "waits" in annas
        assert "grid-r16" not in annas
        status, headers, _ = get(door, "/api/jobs", basic(operator))  # which a browser would send without being asked
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize(("share", "made"), [(1e-6, 1), (1e6, 2)])
def test_a_page_is_kept_for_longer_the_longer_it_takes_to_make(tmp_path, monkeypatch, share, made):
    monkeypatch.setattr(report_route, "_KEPT_SECONDS", 0.0)
    monkeypatch.setattr(report_route, "_MOST_SHARE", share)
    jobs = Jobs()
    with open_door(jobs, tmp_path) as door:
        operator = basic(read_door_file(tmp_path).token)
        for _ in range(2):
            assert get(door, "/report", operator)[0] == 200
    assert jobs.asked == made


def test_the_command_reports_on_the_callers_own_jobs(tmp_path, monkeypatch):
    with open_door(Jobs(), tmp_path) as door:
        door.tokens.given = {"anna": digest_of("annas-token")}
        monkeypatch.setenv("LORAY_TOKEN", "annas-token")
        assert [job["name"] for job in _contents((), door.url).jobs] == ["waits"]
