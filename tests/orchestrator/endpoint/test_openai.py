"""OpenAI's own client at the door, before a real desk with a tiny model: only Ray and training are left out."""

import contextlib
import json
import math
import socket
import urllib.error
import urllib.request

import openai
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from orchestrator.endpoint import server
from orchestrator.endpoint.door_file import read_door_file
from orchestrator.endpoint.tokens import digest_of
from support.cluster import wait_until
from support.door import DeskOrchestrator, open_door
from support.talking import save_talking_base

pytestmark = pytest.mark.slow

HELLO = [{"role": "user", "content": "Hello"}]
TALK = [{"role": "system", "content": "Be brief."}, *HELLO, {"role": "assistant", "content": "Hi."}, *HELLO]


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    orchestrator = DeskOrchestrator(save_talking_base(tmp_path_factory.mktemp("base")))
    orchestrator.add_job("annas", "anna")
    orchestrator.add_job("bobs", "bob")
    yield orchestrator
    orchestrator.stopped = True


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def door(desk, storage):
    with open_door(desk, storage, max_open_answers=3) as door:
        door.tokens.given = {"anna": digest_of("annas-token")}
        yield door


@pytest.fixture
def ask(desk, door, storage):
    """OpenAI's client; whatever a test asks for, nothing of it is left at the desk."""
    with openai.OpenAI(base_url=f"{door.url}/v1", api_key=read_door_file(storage).token, max_retries=0) as client:
        yield client
    wait_until(lambda: desk.desk.open_requests == 0 and desk.desk.idle)


def raw(door, path, body=None, token=None, method=None):
    """Status and JSON of a request that no client would send."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(door.url + path, body, headers, method=method)
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_conversation_is_gone_on_with_as_by_transformers(ask, desk):
    base = desk.base.ref
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base)
    prompt = tokenizer.apply_chat_template(TALK, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    made = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    found = ask.chat.completions.create(model=base, messages=TALK, max_tokens=8, temperature=0)
    assert found.choices[0].message.content == tokenizer.decode(made, skip_special_tokens=True)
    assert found.usage.prompt_tokens == prompt["input_ids"].shape[1]
    assert found.usage.completion_tokens == len(made)
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK]
    again = ask.chat.completions.create(model=base, messages=parts, max_completion_tokens=8, temperature=0)
    assert again.choices[0].message == found.choices[0].message


def test_a_stream_is_the_whole_answer_in_pieces(ask, desk):
    asked = {"model": desk.base.ref, "messages": HELLO, "max_tokens": 40, "n": 2, "seed": 3, "logprobs": True}
    asked |= {"top_logprobs": 2, "stop": "zz"}
    whole = ask.chat.completions.create(**asked)
    *chunks, last = ask.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    assert len(chunks) > 4
    assert last.usage == whole.usage
    for index, choice in enumerate(whole.choices):
        mine = [chunk.choices[0] for chunk in chunks if chunk.choices[0].index == index]
        assert "".join(piece.delta.content or "" for piece in mine) == choice.message.content
        assert [piece.finish_reason for piece in mine if piece.finish_reason] == [choice.finish_reason]
        scored = [token for piece in mine if piece.logprobs for token in piece.logprobs.content]
        assert scored == choice.logprobs.content
        assert all(len(token.top_logprobs) == 2 for token in scored)
    assert whole.choices[0].message.content != whole.choices[1].message.content
    other = ask.chat.completions.create(**{**asked, "seed": 4})
    assert other.choices[0].message == whole.choices[1].message  # each choice has the next seed


def test_prompts_are_scored_as_evaluations_want_it(ask, desk):
    """What lm-evaluation-harness sends for a log-likelihood."""
    model = AutoModelForCausalLM.from_pretrained(desk.base.ref)
    prompts = [[9, 10, 11, 12], [40, 41]]
    asked = {"model": desk.base.ref, "prompt": prompts, "temperature": 0, "logprobs": 1, "echo": True}
    found = ask.completions.create(**asked, max_tokens=1)
    assert found.usage.prompt_tokens == 6
    for ids, choice in zip(prompts, found.choices, strict=True):
        with torch.no_grad():
            expected = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        scored = choice.logprobs
        assert len(scored.tokens) == len(scored.text_offset) == len(ids) + 1
        assert scored.token_logprobs[0] is scored.top_logprobs[0] is None
        for place, token in enumerate(ids[1:]):
            assert math.isclose(scored.token_logprobs[place + 1], expected[place, token], abs_tol=1e-4)
            assert math.isclose(max(scored.top_logprobs[place + 1].values()), expected[place].max(), abs_tol=1e-4)
    alone = ask.completions.create(**asked, max_tokens=0)
    assert [choice.logprobs.tokens for choice in alone.choices] == [c.logprobs.tokens[:-1] for c in found.choices]
    assert alone.usage.completion_tokens == 0


def test_a_text_is_gone_on_with_after_itself(ask, desk):
    asked = {"model": desk.base.ref, "prompt": ["The capital", "Hello"], "max_tokens": 5, "temperature": 0}
    plain, echoed = (ask.completions.create(**asked, echo=echo) for echo in (False, True))
    assert [choice.text for choice in echoed.choices] == [
        prompt + choice.text for prompt, choice in zip(asked["prompt"], plain.choices, strict=True)
    ]
    streamed = list(ask.completions.create(**asked, echo=True, stream=True))
    for index, choice in enumerate(echoed.choices):
        assert "".join(c.choices[0].text for c in streamed if c.choices[0].index == index) == choice.text


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "'nobody'"),
        ({"model": "annas@7"}, openai.NotFoundError, "no checkpoint of step 7"),
        ({"messages": [{"role": "user", "content": "a b " * 300}]}, openai.BadRequestError, "was made for 512"),
        ({"messages": [{"role": "tool", "content": "x"}]}, openai.BadRequestError, r"messages\[0\].role"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"tools": []}, openai.BadRequestError, "tools: is not a field here"),
        ({"frequency_penalty": 0.5}, openai.BadRequestError, "frequency_penalty: 0.5"),
        ({"top_logprobs": 2}, openai.BadRequestError, "set logprobs"),
        ({"n": 1000}, openai.BadRequestError, "n: 1000"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_cannot_be_answered_is_refused_in_openais_form(ask, desk, changes, kind, words, stream):
    asked = {"model": desk.base.ref, "messages": HELLO, "stream": stream, **changes}
    body = {name: value for name, value in asked.items() if name not in ("model", "messages", "stream")}
    with pytest.raises(kind, match=words) as caught:
        ask.chat.completions.create(model=asked["model"], messages=asked["messages"], stream=stream, extra_body=body)
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_nobody_comes_in_without_a_token_and_nobody_asks_anothers_job(ask, desk, door):
    for token in (None, "", "annas-toke", "annas-token\xe4"):
        assert raw(door, "/v1/models", token=token)[0] == 401
    assert raw(door, "/api/jobs")[1]["error"]["type"] == "RequestError"
    anna = ask.with_options(api_key="annas-token")
    assert [model.id for model in anna.models.list()] == [desk.base.ref, "annas"]
    assert [model.id for model in ask.models.list()] == [desk.base.ref, "annas", "bobs"]
    assert anna.models.retrieve(desk.base.ref).id == desk.base.ref
    with pytest.raises(openai.NotFoundError, match="no job of yours"):
        anna.chat.completions.create(model="bobs", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="neither a finished adapter"):
        anna.chat.completions.create(model="annas", messages=HELLO)
    door.tokens.given = {}
    with pytest.raises(openai.AuthenticationError):
        anna.models.list()
    door.tokens.given = {"anna": digest_of("annas-token")}


def test_what_nobody_waits_for_is_dropped_and_what_is_too_much_is_refused(ask, desk):
    asked = {"model": desk.base.ref, "messages": HELLO, "max_tokens": 400, "stream": True, "temperature": 2}
    streams = [ask.chat.completions.create(**asked) for _ in range(3)]
    for stream in streams:
        next(iter(stream))
    with pytest.raises(openai.RateLimitError, match="3 requests are being answered"):
        ask.chat.completions.create(**asked)
    for stream in streams:
        stream.close()
    wait_until(lambda: desk.desk.open_requests == 0)  # long before they would have been whole
    assert ask.chat.completions.create(model=desk.base.ref, messages=HELLO, max_tokens=1).choices


def test_a_base_that_no_actor_hosts_is_not_there_now(ask, desk):
    desk.hosts = False
    try:
        with pytest.raises(openai.APIStatusError, match="no actor hosts") as caught:
            ask.chat.completions.create(model="annas", messages=HELLO)
        assert caught.value.status_code == 503
    finally:
        desk.hosts = True


def test_whatever_is_sent_is_answered_in_json(ask, door, storage):
    token = read_door_file(storage).token
    assert raw(door, "/nowhere", token=token)[0] == 404
    assert raw(door, "/v1/models", b"{}", token=token)[0] == 405
    for body in (b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a":' * 20_000):
        status, answer = raw(door, "/v1/completions", body, token)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    assert raw(door, "/v1/completions", b" " * (server.BODY_BYTES + 1), token)[0] == 413


def test_who_says_nothing_is_sent_away(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.2)
    monkeypatch.setattr(server, "_MOST_CONNECTIONS", 2)
    with open_door(desk, tmp_path) as door:
        address = door.url.removeprefix("http://").split(":")
        silent = [socket.create_connection(address) for _ in range(4)]
        silent[0].sendall(b"GET / HTTP/1.1\r\nA: ")
        for connection in silent:
            connection.settimeout(10)
            with contextlib.suppress(ConnectionResetError):
                assert connection.recv(1) == b""  # no byte more, and no waiting for one
            connection.close()
        assert raw(door, "/api/jobs")[0] == 401
