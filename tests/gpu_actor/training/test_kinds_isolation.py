"""DoRA, VeRA and PiSSA too are functions of their own job: alone, in company, interrupted, beside a poisoned one."""

import pytest

from gpu_actor.contract.report import TenantState
from gpu_actor.training.trainer import CoTrainer
from support.engine import flat, make_spec, make_tenant, run_all, tiny_hooked
from support.oracle import same_bytes
from support.tiny import token_rows

KINDS = {
    "dora": {"r": 4, "lora_alpha": 9, "use_dora": True, "lora_dropout": 0.1},
    "vera": {"peft_type": "VERA", "r": 20, "vera_dropout": 0.1},
    "pissa": {"r": 4, "lora_alpha": 9, "init_lora_weights": "pissa", "lora_dropout": 0.1},
    "pissa-rounds": {"r": 4, "init_lora_weights": "pissa_niter_2", "rank_pattern": {"q_proj": 3}},
}
TRAINING = {
    "learning_rate": 4e-3,
    "max_steps": 6,
    "per_device_train_batch_size": 3,
    "gradient_accumulation_steps": 2,
    "weight_decay": 0.01,
    "save_steps": 2,
}


def tenant(base, folder, kind, attempt=1, seed=5):
    rows = token_rows(13, seed=seed, high=30 + 10 * seed)
    return make_tenant(base, make_spec(folder, kind, rows, KINDS[kind], TRAINING), attempt)


@pytest.fixture(scope="module")
def base():
    return tiny_hooked()


@pytest.fixture(scope="module")
def alone(base, tmp_path_factory):
    """The bytes of each kind trained by itself."""
    found = {}
    for kind in KINDS:
        one = tenant(base, tmp_path_factory.mktemp("alone"), kind)
        run_all(base, [one])
        found[kind] = flat(one)
    return found


@pytest.mark.parametrize("budget", [64, 2000])
@pytest.mark.slow
def test_bytes_are_the_same_alone_and_in_mixed_company(tmp_path, base, alone, budget):
    mine = [tenant(base, tmp_path, kind) for kind in KINDS]
    others = [tenant(base, tmp_path / f"other-{seed}", kind, seed=seed) for seed, kind in enumerate(KINDS)]
    trainer = CoTrainer(base, budget)
    for place, one in enumerate([others[0], mine[0], *mine[1:3], *others[1:], mine[3]]):
        one.spec = one.spec.model_copy(update={"job_id": f"job-{place}"})
        trainer.attach(one)
    while not trainer.idle:
        trainer.step()
    for kind, one in zip(KINDS, mine, strict=True):
        assert same_bytes(flat(one), alone[kind]), kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_killed_and_restarted_equals_uninterrupted(tmp_path, kind, alone):
    """The second process loads the base anew; what the kind keeps beside its weights comes back as well."""
    before, base = tiny_hooked(), tiny_hooked()
    first = tenant(before, tmp_path, kind)
    trainer = CoTrainer(before, 20)
    trainer.attach(first)
    while first.progress.step < 3 or len(first.pending) != 1:
        trainer.step()
    frozen = {index: [t.clone() for t in pair] for index, pair in first.weights.frozen.items()}
    del first, trainer
    second = tenant(base, tmp_path, kind, attempt=2)
    assert second.progress.step == 2
    for index, pair in second.weights.frozen.items():
        assert all(same_bytes(one.contiguous(), other) for one, other in zip(pair, frozen[index], strict=True))
    run_all(base, [second])
    assert same_bytes(flat(second), alone[kind])


def test_a_poisoned_neighbour_of_each_kind_ends_alone(tmp_path, base, alone):
    mine = tenant(base, tmp_path, "dora")
    poisoned = [tenant(base, tmp_path / "bad", kind) for kind in ("vera", "pissa")]
    trainer = CoTrainer(base, 2000)
    for one in (*poisoned, mine):
        trainer.attach(one)
    trainer.step()
    for one in poisoned:
        one.weights.flat.data[3] = float("nan")
    while not trainer.idle:
        trainer.step()
    states = {report.job_id: report.state for report in trainer.reports()}
    assert states == {"dora": TenantState.SUCCEEDED, "vera": TenantState.FAILED, "pissa": TenantState.FAILED}
    assert same_bytes(flat(mine), alone["dora"])
