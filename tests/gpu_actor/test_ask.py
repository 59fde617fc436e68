"""Answers of base and adapters, made in one shared batch, against PEFT's own greedy generation."""

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from gpu_actor.adapters.peft_files import read_adapter
from gpu_actor.ask import answers, main
from gpu_actor.model.base_model import BaseModel
from support.engine import make_spec, make_tenant, micro_batch, run_all
from support.tiny import token_rows


def test_answers_equal_generation_by_peft(tmp_path, tiny_base):
    base = BaseModel.load(tiny_base)
    tenants = [
        make_tenant(
            base, make_spec(tmp_path, f"j{i}", token_rows(8, seed=i), {"r": 4}, {"max_steps": 6, "learning_rate": 0.01})
        )
        for i in range(2)
    ]
    run_all(base, tenants)
    prompt = micro_batch(None, [9]).sequences[0]
    adapters = [None, *(read_adapter(tenant.output_dir, base.new_adapter) for tenant in tenants)]
    found = answers(base, adapters, prompt, stop=set(), limit=8)
    assert len({tuple(answer) for answer in found}) == 3, "the adapters must answer differently"
    ids = torch.tensor(prompt.astype("int64"))[None]
    for folder, answer in zip([None, *(tenant.output_dir for tenant in tenants)], found, strict=True):
        model = AutoModelForCausalLM.from_pretrained(tiny_base)
        model = model if folder is None else PeftModel.from_pretrained(model, folder)
        expected = model.generate(input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0)
        assert answer == expected[0, 9:].tolist()


def test_a_folder_without_an_adapter_is_one_line(tmp_path, tiny_base, capsys):
    assert main(["--base-model", tiny_base, "--question", "Who?", str(tmp_path)]) == 2
    assert "no finished adapter there" in capsys.readouterr().err
