"""Answers of base and adapters, made together token by token, against `generate` of transformers and PEFT."""

import numpy as np
import pytest
import torch
from peft import PeftModel

from gpu_actor.adapters.peft_files import save_adapter
from gpu_actor.contract.errors import DataError
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.contract.questions import Sampling
from gpu_actor.generation import scoring
from gpu_actor.generation.generator import Generator
from gpu_actor.generation.reply import Reply
from gpu_actor.generation.sampling import choose
from gpu_actor.hosting.answering import Answering
from gpu_actor.model.base_model import BaseModel
from gpu_actor.operators.products import LoopedProducts
from gpu_actor.training.trainer import CoTrainer
from support.architectures import architecture_model
from support.engine import family_hooked, served_as_on_a_gpu
from support.tiny import FAMILIES, family_model

# windows, soft-caps, groups of heads, tables of positions, ALiBi (bloom), experts, layers that share keys; those
# of the second list cannot be packed
PACKED = ["llama", "mistral", "gemma2", "qwen2", "gpt2", "opt", "gpt_neox", "glm", "phi3", "mixtral", "gemma4_text"]
ROWS = ["bloom", "falcon", "lfm2", "gpt_oss"]
TOKENS = 12


def model_of(kind):
    return family_model(kind) if kind in FAMILIES else architecture_model(kind)


def prompt(length, seed=0):
    return np.random.default_rng(seed).integers(3, 128, length, dtype=np.int32)


def random_adapter(base, seed, **lora):
    names = sorted({linear.name.rsplit(".", 1)[-1] for linear in base.description.linears})
    wanted = [name for name in names if name in ("q_proj", "o_proj", "qkv_proj", "query_key_value", "c_attn", "c_fc")]
    weights = base.new_adapter(LoraConfig(r=4, lora_alpha=16, target_modules=wanted, **lora))
    weights.initialise(seed)
    weights.flat.data.add_(torch.randn(weights.flat.shape, generator=torch.Generator().manual_seed(seed)) * 0.2)
    return weights


def answered(base, *asked, joins=None):
    """The finished replies to (weights, prompt, settings); those of `joins` come three steps later."""
    generator = Generator(base)
    replies = [Reply(weights, ids, Sampling(max_tokens=TOKENS, **settings)) for weights, ids, settings in asked]
    for reply in replies[:joins]:
        generator.add(reply)
    for _ in range(3):
        generator.step()
    for reply in replies[joins:] if joins else ():
        generator.add(reply)
    generator.run()
    return replies


@pytest.mark.parametrize("kind", PACKED + ROWS)
def test_greedy_answers_are_those_of_peft_alone_and_in_company(tmp_path, kind):
    base = BaseModel.serve("tiny", model_of(kind))
    assert (base.packed, Generator(base).cached) == (kind in PACKED, kind in PACKED)
    adapters = [None, random_adapter(base, 1), random_adapter(base, 2)]
    prompts = [prompt(9), prompt(17, 1), prompt(5, 2)]
    # the first two begin, the others join: one of the same adapter, one of another
    asked = [(adapters[i], ids, {}) for i, ids in ((0, prompts[0]), (1, prompts[1]), (1, prompts[2]), (2, prompts[0]))]
    found = answered(base, *asked, joins=2)
    assert len({tuple(reply.tokens) for reply in found}) >= 3
    for number, ((weights, ids, _), reply) in enumerate(zip(asked, found, strict=True)):
        model = model_of(kind)
        if weights is not None:
            folder = tmp_path / str(number)
            folder.mkdir()
            save_adapter(folder, weights, "tiny")
            model = PeftModel.from_pretrained(model, folder).eval()
        model.generation_config.eos_token_id = None  # random models end at once, or never
        made = model.generate(
            input_ids=torch.from_numpy(ids.astype("int64"))[None],
            max_new_tokens=TOKENS,
            do_sample=False,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        expected = made.sequences[0, len(ids) :]
        assert reply.tokens == expected.tolist()
        log_p = torch.cat(made.logits).log_softmax(-1).gather(1, expected[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(reply.log_probabilities), log_p, rtol=0, atol=1e-4)
        (alone,) = answered(base, (weights, ids, {}))
        assert alone.tokens == reply.tokens


def test_adapters_that_share_their_products_as_on_a_gpu_answer_the_same():
    apart, shared = family_hooked("gemma2"), served_as_on_a_gpu(family_model("gemma2"), LoopedProducts())
    found = []
    for base in (apart, shared):
        adapters = [random_adapter(base, seed) for seed in (1, 2)]
        asked = [(adapters[i], prompt(7 + i, i), {}) for i in (0, 1, 0)]
        found.append([reply.tokens for reply in answered(base, *asked, joins=2)])
    assert found[0] == found[1]


def test_a_seed_chooses_the_same_tokens_in_any_company():
    base = family_hooked("qwen2")
    weights = random_adapter(base, 1)
    asked = [(weights, prompt(9), {"temperature": 1.0, "seed": seed}) for seed in (1, 2, 1)]
    first, second, third = answered(base, *asked, joins=2)
    assert first.tokens == third.tokens != second.tokens
    assert answered(base, asked[1])[0].tokens == second.tokens


def test_what_is_sampled_follows_the_distribution_that_transformers_samples_from():
    torch.manual_seed(0)
    logits = torch.randn(1, 20)
    settings = {"temperature": 0.7, "top_k": 8, "top_p": 0.8}
    chosen = choose(logits.expand(1500, 20), [(Sampling(seed=i, **settings), 0) for i in range(1500)])
    shares = torch.bincount(torch.tensor([token for token, _ in chosen]), minlength=20) / 1500
    order = logits[0].argsort(descending=True)
    kept = (logits[0] / 0.7).softmax(-1)[order][:8] / (logits[0] / 0.7).softmax(-1)[order][:8].sum()
    nucleus = int((kept.cumsum(0) < 0.8).sum()) + 1
    expected = torch.zeros(20)
    expected[order[:nucleus]] = kept[:nucleus] / kept[:nucleus].sum()
    assert 2 < nucleus < 8
    assert (shares > 0).equal(expected > 0)
    assert (shares - expected).abs().max() < 0.05


def test_an_answer_ends_where_it_is_told_and_shows_no_part_of_a_stop_text():
    reply = Reply(None, prompt(3), Sampling(stop=("END",)), {9}, lambda ids: "".join("abEND\ufffd"[i] for i in ids))
    shown = []
    for token in (0, 2, 0, 5, 2, 3):
        reply.add(token, 0.0, last=False)
        shown.append(reply.text)
    assert shown == ["a", "a", "aEa", "aEa", "aEa\ufffd", "aEa\ufffd"]
    assert reply.finish_reason is None
    reply.add(4, 0.0, last=False)
    assert (reply.text, reply.finish_reason) == ("aEa\ufffd", "stop")
    ended = Reply(None, prompt(3), Sampling(), {9})
    ended.add(9, 0.0, last=False)
    assert (ended.tokens, ended.finish_reason) == ([], "stop")


def test_a_table_of_positions_ends_an_answer_and_refuses_what_is_too_long():
    base = family_hooked("gpt2", n_positions=32)
    (reply,) = answered(base, (None, prompt(24), {}))
    assert (len(reply.tokens), reply.finish_reason) == (8, "length")
    for ids, why in ((prompt(32), "was made for 32"), (prompt(0), "no token")):
        with pytest.raises(DataError, match=why):
            Generator(base).add(Reply(None, ids, Sampling()))


@pytest.mark.parametrize("kind", ["llama", "lfm2"])
def test_prompts_and_answers_are_scored_as_by_transformers(kind, monkeypatch):
    monkeypatch.setattr(scoring, "_POSITIONS", 4)
    base = BaseModel.serve("tiny", model_of(kind))
    generator = Generator(base)
    replies = [
        Reply(None, ids, Sampling(max_tokens=3, seed=1), likeliest=count, score_prompt=True)
        for ids, count in ((prompt(11), 3), (prompt(6, 1), 0))
    ]
    for reply in replies:
        generator.add(reply)
    generator.run()
    for reply, count in zip(replies, (3, 0), strict=True):
        ids = torch.tensor([*reply.prompt.tolist(), *reply.tokens])
        with torch.no_grad():
            expected = model_of(kind)(input_ids=ids[None]).logits[0].log_softmax(-1)
        noted = [*reply.noted_prompt, *reply.noted]
        assert [token.text for token in noted] == [str(i) for i in ids.tolist()]
        assert noted[0].log_probability is None
        found = torch.tensor([token.log_probability for token in noted[1:]])
        torch.testing.assert_close(found, expected[:-1].gather(1, ids[1:, None])[:, 0], rtol=1e-4, atol=1e-4)
        for token, row in zip(noted[1:], expected, strict=False):
            assert [int(name) for name, _ in token.likeliest] == row.topk(count).indices.tolist()


def test_answers_wait_for_memory_that_training_needs():
    base = BaseModel.serve("tiny", model_of("llama"))
    token = 2 * 2 * 2 * 8 * 4  # keys and values of 2 layers with 2 heads of 8 numbers of 4 bytes
    room = 40 * token
    generator = Generator(base, room=lambda: room)
    replies = [Reply(None, prompt(9, seed), Sampling(max_tokens=TOKENS)) for seed in range(3)]  # 21 tokens each
    for reply in replies:
        generator.add(reply)
    assert generator.step() == replies[:1]  # 40 hold one of them and not two
    room = 45 * token
    assert generator.step() == replies[1:2]
    room = 0  # what is begun goes on, and the last one waits until it has the place to itself
    while not replies[1].finish_reason:
        assert replies[2] not in generator.step()
    generator.run()
    alone = answered(base, *((None, prompt(9, seed), {}) for seed in range(3)))
    assert [reply.tokens for reply in replies] == [reply.tokens for reply in alone]


def test_an_actor_leaves_training_its_memory(tiny_base):
    base = BaseModel.load(tiny_base)
    trainer = CoTrainer(base, memory_limit=10**9)
    answering = Answering(base, trainer, lambda: None)
    assert answering._room() == pytest.approx(10**9 - trainer.meter.memory.used(), abs=2**25)
    trainer.meter.highest_alone = 10**9 - 5_000
    assert answering._room() == 5_000
