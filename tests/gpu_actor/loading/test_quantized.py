"""Quantised bases: QLoRA equals PEFT's on the same base, whoever shares the batch, and its bytes are known."""

import importlib.util
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from gpu_actor.batch.shared_batch import pack
from gpu_actor.contract.config import ActorOptions
from gpu_actor.contract.errors import BaseModelError
from gpu_actor.contract.footprint import base_bytes, weight_bytes
from gpu_actor.contract.lora_config import LoraConfig
from gpu_actor.loading import quantization as quantization_module
from gpu_actor.loading.layers import adaptable_linears
from gpu_actor.loading.load_model import load_model
from gpu_actor.loading.quantization import dequantised, quantization_of, quantization_settings
from gpu_actor.model.base_model import BaseModel
from gpu_actor.model.describe import describe_base
from gpu_actor.operators import multi_adapter_linear
from support.engine import flat, losses_of, make_spec, make_tenant, micro_batch, run_all
from support.jobs import JOBS
from support.oracle import adapter_tensors, largest_difference, same_bytes, train_alone
from support.tiny import tiny_model, token_rows

KINDS = ["nf4", "int8"]
TRAINING = {"max_steps": 8, "learning_rate": 0.005, "per_device_train_batch_size": 3}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models on disk, by family."""
    root = tmp_path_factory.mktemp("bases")
    made = {}
    for kind in ("llama", "qwen2"):
        tiny_model(kind).save_pretrained(root / kind)
        made[kind] = str(root / kind)
    from transformers import GPT2Config

    torch.manual_seed(0)
    config = GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=128, bos_token_id=1, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(root / "gpt2")
    made["gpt2"] = str(root / "gpt2")
    return made


def test_a_processor_with_avx512_bf16_keeps_the_weights_as_they_are(folders, monkeypatch):
    """There bitsandbytes packs a weight anew once its layer runs without gradients, unless it is told not to."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    model = load_model(folders["llama"], quantization="nf4")
    before = {name: dequantised(module) for name, module in adaptable_linears(model).items()}
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    assert all(torch.equal(dequantised(module), before[name]) for name, module in adaptable_linears(model).items())


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("family", ["qwen2"])  # its query, key and value have biases
@pytest.mark.slow
def test_a_full_run_equals_pefts_qlora(tmp_path, folders, quantization, family):
    names = ("wide", "plain")
    base = BaseModel.load(folders[family], quantization=quantization)
    specs = {n: make_spec(tmp_path, n, JOBS[n]["rows"], JOBS[n]["lora"], JOBS[n]["training"]) for n in names}
    tenants = {n: make_tenant(base, specs[n]) for n in names}
    starts = {n: adapter_tensors(tenants[n].weights) for n in names}
    run_all(base, list(tenants.values()), 150)
    for name in names:
        stock = load_model(folders[family], quantization=quantization)
        theirs, log = train_alone(stock, specs[name], JOBS[name]["rows"], starts[name])
        assert len(log) >= 13
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(adapter_tensors(tenants[name].weights), theirs) < 1e-4


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.slow
def test_other_adapter_kinds_equal_pefts_on_the_quantised_base(tmp_path, folders, quantization):
    """DoRA and VeRA beside each other, against PEFT alone. (It refuses PiSSA there: see the next test.)"""
    base = BaseModel.load(folders["qwen2"], quantization=quantization)
    adapters = {"dora": {"r": 4, "lora_alpha": 7, "use_dora": True}, "vera": {"peft_type": "VERA", "r": 16}}
    rows = token_rows(12)
    specs = {name: make_spec(tmp_path, name, rows, lora, TRAINING) for name, lora in adapters.items()}
    tenants = {name: make_tenant(base, spec) for name, spec in specs.items()}
    starts = {name: adapter_tensors(tenant.weights) for name, tenant in tenants.items()}
    run_all(base, list(tenants.values()))
    for name, spec in specs.items():
        stock = load_model(folders["qwen2"], quantization=quantization)
        theirs, _ = train_alone(stock if quantization == "nf4" else dense_twin(stock), spec, rows, starts[name])
        assert largest_difference(starts[name], theirs) > 1e-3, "the oracle did not train"
        assert largest_difference(adapter_tensors(tenants[name].weights), theirs) < 1e-4


def dense_twin(model):
    """A plain model with the weights that a quantised one stands for: PEFT 0.21 loses int8's scales under DoRA."""
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    state = dict(model.state_dict())
    for name in adaptable_linears(model):
        state[f"{name}.weight"] = dequantised(model.get_submodule(name))
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    return plain


@pytest.mark.parametrize("quantization", KINDS)
def test_pissa_starts_as_the_quantised_base_itself(folders, quantization):
    """PEFT refuses it there; ours starts from the dense weight's singular values, and from the base's own output."""
    base = BaseModel.load(folders["llama"], quantization=quantization)
    weights = base.new_adapter(LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa"))
    weights.initialise(1)
    plain = base.new_adapter(LoraConfig(r=4))
    plain.initialise(1)  # its B is zero
    with torch.no_grad():
        ours, bare = (
            losses_of(base, pack([micro_batch(some, [9, 14])], torch.device("cpu")))[0] for some in (weights, plain)
        )
    torch.testing.assert_close(ours, bare, rtol=1e-5, atol=1e-5)
    name = "model.layers.0.mlp.up_proj"
    a, b = weights.layers[next(index for index, known in weights.names.items() if known == name)]
    dense = dequantised(base.model.get_submodule(name).base)
    start = 1.5 * (b @ a).detach()  # alpha / r
    torch.testing.assert_close(torch.linalg.svdvals(start)[:4], torch.linalg.svdvals(dense)[:4], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("quantization", KINDS)
def test_products_are_those_of_bitsandbytes(quantization, dtype):
    model = tiny_model(attention_bias=True)
    settings = quantization_settings(quantization, "cpu", dtype)
    quantised = type(model).from_pretrained(
        None, config=model.config, state_dict=model.state_dict(), dtype=dtype, **settings
    )
    layer = quantised.model.layers[0].self_attn.q_proj.train()  # in training its inputs are not quantised on a CPU
    rows = torch.randn(11, 64, dtype=dtype, requires_grad=True)
    theirs = layer(rows)
    grad = torch.randn_like(theirs)
    theirs.backward(grad)
    spans = [(0, 11)]
    layer.requires_grad_(False)
    assert torch.equal(multi_adapter_linear.base_product(rows.detach(), layer, spans), theirs)
    assert torch.equal(multi_adapter_linear.base_product_backward(grad, layer, spans), rows.grad)


@pytest.mark.parametrize("quantization", KINDS)
def test_company_does_not_change_a_bit(tmp_path, folders, quantization):
    base = BaseModel.load(folders["llama"], quantization=quantization)

    def trained(names):
        made = [
            make_tenant(base, make_spec(tmp_path / "-".join(names), n, token_rows(9, seed=len(n)), None, TRAINING))
            for n in names
        ]
        run_all(base, made)
        return flat(made[0])

    assert same_bytes(trained(["me"]), trained(["me", "other", "third"]))


@pytest.mark.parametrize("quantization", KINDS)
def test_a_layer_is_made_dense_once_a_batch_and_one_at_a_time(tmp_path, folders, quantization, monkeypatch):
    base = BaseModel.load(folders["llama"], quantization=quantization)
    import weakref

    living, calls, most = weakref.WeakSet(), [], [0]

    def counted(module, dtype=None):
        dense = dequantised(module, dtype)
        living.add(dense)
        calls.append(module)
        most[0] = max(most[0], len(living))
        return dense

    monkeypatch.setattr(quantization_module, "dequantised", counted)
    training = {**TRAINING, "max_steps": 1}
    run_all(base, [make_tenant(base, make_spec(tmp_path, n, token_rows(3), None, training)) for n in ("a", "b", "c")])
    linears = len(base.description.linears)
    assert linears < len(calls) <= 2 * linears, "once in the forward, once in the backward, for three segments"
    assert most[0] == 1


@pytest.mark.parametrize("quantization", KINDS)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2"])
@pytest.mark.slow
def test_the_bytes_are_those_that_the_description_says(folders, quantization, family):
    description = describe_base(folders[family])
    base = BaseModel.load(folders[family], quantization=quantization)
    assert base.description == replace(description, activations=None)
    held = {id(parameter): parameter.nbytes for parameter in base.model.parameters()}
    extra = 0
    for layer in adaptable_linears(base.model).values():
        if quantization == "nf4":
            extra += sum(v.nbytes for v in layer.weight.quant_state.as_dict().values() if isinstance(v, torch.Tensor))
            extra += 4  # the offset, which as_dict() gives as a number
        else:
            extra += layer.state.SCB.nbytes  # the probe ran it: bitsandbytes has moved the scales there
    assert weight_bytes(description, 4, quantization) == sum(held.values()) + extra
    largest = max(shape.in_features * shape.out_features for shape in description.linears)
    assert base_bytes(description, 4, quantization) == weight_bytes(description, 4, quantization) + 4 * largest
    assert base_bytes(description, 4, quantization) < base_bytes(description, 4)


def test_head_and_embeddings_stay_as_they_are(folders):
    plain, quantised = load_model(folders["llama"]), load_model(folders["llama"], quantization="nf4")
    assert quantization_of(quantised.lm_head) is None
    assert torch.equal(quantised.lm_head.weight, plain.lm_head.weight)
    assert torch.equal(quantised.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    state = quantised.model.layers[0].mlp.up_proj.weight.quant_state
    assert (state.quant_type, state.nested, state.blocksize) == ("nf4", True, 64)


def test_without_bitsandbytes_the_error_names_the_extra(folders, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else found(name, *rest)
    )
    with pytest.raises(BaseModelError, match=r"needs bitsandbytes, which is not installed.*loray\[quant\]"):
        load_model(folders["llama"], quantization="int8")


def test_float64_is_refused(folders):
    with pytest.raises(ValidationError, match="does not go with dtype float64"):
        ActorOptions(name="a", base_model="b", dtype="float64", quantization="nf4")
    with pytest.raises(BaseModelError, match="does not go with float64"):
        load_model(folders["llama"], dtype="float64", quantization="nf4")
