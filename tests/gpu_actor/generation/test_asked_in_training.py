"""Jobs that are asked while they train: the newest step answers, and no bit of any adapter changes by it."""

import threading

import pytest
import torch

from gpu_actor.actor import GpuActor
from gpu_actor.contract.orders import Ask, Attach
from gpu_actor.contract.questions import Answerer, AskRequest, Sampling
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
    """Final values of two jobs; if `asked`, with questions between all shared batches, and the answers."""
    settings = {**TRAINING, "save_steps": 1, "save_total_limit": 9}
    specs = [make_spec(folder, f"j{i}", token_rows(9, seed=i), lora, settings) for i, lora in enumerate(KINDS)]
    tenants = [make_tenant(base, spec) for spec in specs]
    trainer = CoTrainer(base, 64)  # several shared batches to an optimizer step
    tokenizer = load_tokenizer(base.ref)
    answering = Answering(base, trainer, lambda: tokenizer)
    found = []
    for tenant in tenants:
        trainer.attach(tenant)
    for batch in range(1000):
        if trainer.idle:
            break
        trainer.step()
        if asked and not trainer.idle:
            answering.open(request_to(*specs, name=f"r{batch}", temperature=1.0))
            while not answering.idle:
                answering.after_batch(0.05)
            found.append(answering.answers(f"r{batch}"))
    return [flat(tenant) for tenant in tenants], found, specs


@pytest.mark.slow
def test_asking_changes_no_bit_and_the_newest_step_answers(tmp_path, talking_base):
    base = BaseModel.load(talking_base)
    plain, _, _ = co_train(tmp_path / "plain", base, asked=False)
    asked, found, specs = co_train(tmp_path / "asked", base, asked=True)
    assert all(torch.equal(*pair) for pair in zip(plain, asked, strict=True))
    assert len(found) > len(KINDS) * TRAINING["max_steps"]  # asked in the middle of optimizer steps too
    seen = {answer.which for answers in found for answer in answers}
    assert seen >= {"", "step 0 of 6", "step 3 of 6", "step 5 of 6"}
    # whoever answered at step 3 answers the same from its checkpoint
    live = [next(one for answers in found if (one := answers[place]).which == "step 3 of 6") for place in (1, 2)]
    answering = Answering(base, CoTrainer(base, 64), lambda: load_tokenizer(base.ref))
    whole = request_to(*specs, temperature=1.0)
    saved = [who.model_copy(update={"step": 3}) for who in whole.answerers[1:]]
    answering.open(whole.model_copy(update={"answerers": tuple(saved)}))
    while not answering.idle:
        answering.after_batch(1.0)
    again = answering.answers("r")
    assert [answer.text for answer in again] == [answer.text for answer in live]
    assert len({answer.text for answer in [found[0][0], *again]}) == 3


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
