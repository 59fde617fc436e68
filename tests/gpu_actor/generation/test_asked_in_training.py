"""Jobs that are asked while they train: the newest step answers, and no bit of any adapter changes by it."""

import threading

import pytest
import torch

from gpu_actor.actor import GpuActor
from gpu_actor.contract.orders import Ask, Attach
from gpu_actor.contract.questions import (
    Answerer,
    AskRequest,
    ChatMessage,
    Conversation,
    RawText,
    Sampling,
    TokenIds,
)
from gpu_actor.generation.desk import AnswerDesk
from gpu_actor.hosting.answering import Answering
from gpu_actor.loading.tokenizer import load_tokenizer
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer
from support.cluster import wait_until
from support.engine import flat, make_spec, make_tenant
from support.talking import save_talking_base
from support.tiny import token_rows

TRAINING = {"max_steps": 6, "learning_rate": 0.01, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 3}
KINDS = ({"r": 4, "lora_dropout": 0.1}, {"r": 4, "use_dora": True})


@pytest.fixture(scope="module")
def talking_base(tmp_path_factory):
    return save_talking_base(tmp_path_factory.mktemp("talking"))


def request_to(*specs, name="r", tokens=4, **fields):
    answerers = [Answerer(name=spec.name, job_id=spec.job_id, folder=spec.output_dir) for spec in specs]
    return AskRequest(
        request_id=name,
        base_model="tiny",
        questions=("Who are you?",),
        answerers=(Answerer(name="base"), *answerers),
        sampling=Sampling(max_tokens=tokens, **fields),
    )


def co_train(folder, base, *, asked):
    """Final values of two jobs; if `asked`, with a token of answers between all shared batches, and the answers."""
    settings = {**TRAINING, "save_steps": 1, "save_total_limit": 9}
    specs = [make_spec(folder, f"j{i}", token_rows(9, seed=i), lora, settings) for i, lora in enumerate(KINDS)]
    tenants = [make_tenant(base, spec) for spec in specs]
    trainer = CoTrainer(base, 64)  # several shared batches to an optimizer step
    tokenizer = load_tokenizer(base.ref)
    desk = AnswerDesk(base, lambda: tokenizer)
    names = []
    for tenant in tenants:
        trainer.attach(tenant)
    while not trainer.idle:
        trainer.step()
        if asked and desk.idle:
            names.append(f"r{len(names)}")
            desk.open(request_to(*specs, name=names[-1], temperature=1.0), trainer.snapshot)
        elif asked:
            desk.step()
    while not desk.idle:
        desk.step()
    return [flat(tenant) for tenant in tenants], [desk.answers(name) for name in names], specs


@pytest.mark.slow
def test_asking_changes_no_bit_and_an_answer_keeps_to_the_step_that_it_began_with(tmp_path, talking_base):
    base = BaseModel.load(talking_base)
    plain, _, _ = co_train(tmp_path / "plain", base, asked=False)
    asked, found, specs = co_train(tmp_path / "asked", base, asked=True)
    assert all(torch.equal(*pair) for pair in zip(plain, asked, strict=True))
    live = {
        (place, int(answer.which.split()[1])): answer.text
        for answers in found
        for place, answer in enumerate(answers[1:])
        if "of 6" in answer.which and not answer.which.startswith("step 0")
    }
    assert len(live) >= 4
    # each answers the same from the checkpoint of its step
    whole = request_to(*specs, temperature=1.0)
    saved = [whole.answerers[place + 1].model_copy(update={"step": step}) for place, step in live]
    desk = AnswerDesk(base, lambda: load_tokenizer(talking_base))
    desk.open(whole.model_copy(update={"answerers": tuple(saved)}), lambda _: None)
    while not desk.idle:
        desk.step()
    assert [answer.text for answer in desk.answers("r")] == list(live.values())
    assert len(set(live.values())) >= 3


def test_answers_take_no_more_than_their_share(talking_base, monkeypatch):
    """By a clock of the test's own: each token takes a second."""
    base, clock = BaseModel.load(talking_base), [0.0]
    trainer = CoTrainer(base, 64)
    answering = Answering(base, trainer, lambda: load_tokenizer(talking_base))
    answering.open(request_to(tokens=100, seed=1, temperature=5.0))
    desk_step = answering._desk.step

    def one_second():
        clock[0] += 1.0
        desk_step()

    monkeypatch.setattr("gpu_actor.hosting.answering.time.monotonic", lambda: clock[0])
    monkeypatch.setattr(answering._desk, "step", one_second)
    monkeypatch.setattr(CoTrainer, "idle", False)
    answering._credit = 0.0
    for _ in range(10):
        answering.after_batch(6.0)
    assert clock[0] == 20.0  # a quarter of 80 seconds


@pytest.mark.slow
def test_an_actor_answers_while_it_trains_and_when_it_rests(tmp_path, talking_base):
    actor = GpuActor({"name": "a", "base_model": talking_base, "device": "cpu", "cpu_threads": 1})
    try:
        spec = make_spec(tmp_path, "long", token_rows(9), {"r": 4}, {"max_steps": 100_000})
        actor.carry_out(Ask(request_to(name="early")))
        wait_until(lambda: is_whole(actor.answers("early")))  # nothing trains yet
        actor.carry_out(Attach(spec, 1))
        wait_until(lambda: any(tenant.step > 2 for tenant in actor.report().tenants))
        actor.carry_out(Ask(request_to(spec, name="now")))
        wait_until(lambda: is_whole(actor.answers("now")))
        base, job = actor.answers("now")
        assert base.text == actor.answers("early")[0].text
        assert job.error is None
        step = int(job.which.removeprefix("step ").removesuffix(" of 100000"))
        assert 2 < step <= actor.report().tenants[0].step
        assert actor.answers("never asked") is None
    finally:
        actor.stop()
    assert "loray-train" not in {thread.name for thread in threading.enumerate()}


def is_whole(answers):
    return answers is not None and all(answer.finish_reason for answer in answers)


def test_a_conversation_has_choices_and_what_is_withdrawn_leaves_nothing(talking_base):
    base = BaseModel.load(talking_base)
    tokenizer = load_tokenizer(base.ref)
    desk = AnswerDesk(base, lambda: tokenizer)
    turns = (("user", "Hello"), ("assistant", "Hi."), ("user", "Who are you?"))
    whole = Conversation(messages=tuple(ChatMessage(role=role, content=content) for role, content in turns))
    rendered = tokenizer.apply_chat_template(
        [{"role": role, "content": content} for role, content in turns], add_generation_prompt=True, tokenize=False
    )
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    request = AskRequest(
        request_id="r",
        base_model="tiny",
        questions=(whole, RawText(text=rendered), TokenIds(ids=tuple(ids))),
        answerers=(Answerer(name="base"),),
        sampling=Sampling(max_tokens=6, temperature=1.0, seed=5),
        choices=2,
        likeliest=2,
    )
    desk.open(request, lambda _: None)
    while not desk.idle:
        desk.step()
    found = desk.answers("r")
    assert [answer.prompt_tokens for answer in found] == [len(ids)] * 6
    assert [found[0].text, found[1].text] * 3 == [answer.text for answer in found]  # one prompt in three forms
    assert found[0].text != found[1].text
    assert all(len(token.likeliest) == 2 for answer in found for token in answer.tokens)
    desk.open(request.model_copy(update={"request_id": "s"}), lambda _: None)
    desk.step()
    assert (desk.open_requests, desk.idle) == (2, False)
    for name in ("r", "s", "unknown"):
        desk.withdraw(name)
    assert (desk.open_requests, desk.idle, desk.answers("r")) == (0, True, None)


@pytest.mark.parametrize(
    ("wrong", "kind"), [((5, 100_000), "DataError"), ((-1,), "DataError"), ((5,) * 600, "TooLongError")]
)
def test_a_question_at_fault_is_told_from_other_failures_and_takes_its_company_along(talking_base, wrong, kind):
    base = BaseModel.load(talking_base)
    tokenizer = load_tokenizer(base.ref)
    desk = AnswerDesk(base, lambda: tokenizer)
    who = (Answerer(name="base"), Answerer(name="gone", folder="/nowhere"))
    fields = {"request_id": "r", "base_model": "tiny", "questions": ("Who?", TokenIds(ids=wrong)), "answerers": who}
    desk.open(AskRequest(**fields), lambda _: None)
    assert [answer.error_type for answer in desk.answers("r")] == [kind, "AdapterError"] * 2
    assert desk.idle
