"""One local process answers a request: base, finished jobs, jobs with checkpoints; what cannot answer says why."""

import io
import json

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from gpu_actor.ask import main
from gpu_actor.contract.questions import Answerer, AskRequest, Sampling
from gpu_actor.model.base_model import BaseModel
from gpu_actor.training.trainer import CoTrainer
from support.engine import make_spec, make_tenant, run_all
from support.talking import save_talking_base
from support.tiny import token_rows

HARD = {"learning_rate": 0.01, "per_device_train_batch_size": 2}


@pytest.fixture(scope="module")
def talking_base(tmp_path_factory):
    return save_talking_base(tmp_path_factory.mktemp("talking"))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory, talking_base):
    """Output folders of a finished job, and of one that stands at step 6 of 50 with its checkpoints."""
    folder, base = tmp_path_factory.mktemp("jobs"), BaseModel.load(talking_base)
    rows = token_rows(8, seed=1)
    done = make_tenant(base, make_spec(folder, "done", rows, {"r": 4}, {"max_steps": 6, **HARD}))
    run_all(base, [done])
    spec = make_spec(folder, "half", rows, {"r": 4}, {"max_steps": 50, "save_steps": 3, "save_total_limit": 2, **HARD})
    half = make_tenant(base, spec)
    trainer = CoTrainer(base, 256)
    trainer.attach(half)
    while half.steps_taken < 6:
        trainer.step()
    return folder


def ask(base, answerers, monkeypatch, capsys, **fields):
    request = AskRequest(
        request_id="r", base_model=base, questions=("Who are you?",), answerers=tuple(answerers), **fields
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(request.model_dump_json()))
    assert main([]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_all_answer_each_from_the_step_that_was_asked_for(jobs, talking_base, monkeypatch, capsys):
    half = str(jobs / "half" / "out")
    answerers = [
        Answerer(name="base"),
        Answerer(name="done", folder=str(jobs / "done" / "out")),
        Answerer(name="half", folder=half, total_steps=50),
        Answerer(name="early", folder=half, step=3),
        Answerer(name="lost", folder=half, step=4),
        Answerer(name="nobody", folder=str(jobs), step="best"),
    ]
    sampling = Sampling(max_tokens=8)
    found = ask(talking_base, answerers, monkeypatch, capsys, system="Be brief.", sampling=sampling)
    assert [answer["which"] for answer in found] == ["", "finished", "step 6 of 50", "step 3", "", ""]
    assert "there is 3, 6" in found[4]["error"]
    assert "no best step there" in found[5]["error"]
    assert [answer["finish_reason"] for answer in found[4:]] == ["error", "error"]
    tokenizer = AutoTokenizer.from_pretrained(talking_base)
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who are you?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    folders = [None, jobs / "done" / "out", jobs / "half" / "out" / "checkpoint-6", jobs / "half/out/checkpoint-3"]
    texts = []
    for folder in folders:
        model = AutoModelForCausalLM.from_pretrained(talking_base)
        model = model if folder is None else PeftModel.from_pretrained(model, folder)
        with torch.no_grad():
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
        texts.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    assert [answer["text"] for answer in found[:4]] == texts
    assert len(set(texts)) >= 3


def test_a_base_that_is_not_there_is_one_line(monkeypatch, capsys, tmp_path):
    request = AskRequest(
        request_id="r", base_model=str(tmp_path), questions=("Who?",), answerers=(Answerer(name="base"),)
    )
    monkeypatch.setattr("sys.stdin", io.StringIO(request.model_dump_json()))
    assert main([]) == 2
    assert str(tmp_path) in capsys.readouterr().err
