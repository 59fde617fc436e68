"""What users send is expanded in processes with limits: a bomb ends as a sentence, its neighbours notice nothing."""

import contextlib
import gzip
import json
import signal
import threading
import time
from functools import partial

import psutil
import pytest

from gpu_actor.contract.config import DatasetConfig, TrainingConfig
from gpu_actor.contract.errors import BaseModelError, DataError, KilledError
from gpu_actor.contract.questions import Answerer, AskRequest, Conversation, TokenIds
from gpu_actor.data.dataset import load_dataset
from gpu_actor.data.samples import digest
from gpu_actor.encoding import encoder as encoding
from gpu_actor.encoding.encoder import Encoder
from gpu_actor.generation.prompts import prompt_of
from support.cluster import wait_until
from support.sample_files import GOOD, TOKENIZER, VOCAB, load, tokens, write

pytestmark = pytest.mark.slow
MEMORY = 256 << 20
DOUBLING = "{% set ns = namespace(s='x') %}{% for i in range(40) %}{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s }}"
SORTING = "{% for i in range(100000) %}{% set x = range(99999) | list | sort %}{% endfor %}"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    TOKENIZER.save_pretrained(folder)
    return folder


def encoder_of(base, monkeypatch, seconds=3):
    monkeypatch.setattr(encoding, "_LEAST_MEMORY", MEMORY)
    monkeypatch.setattr(encoding, "SECONDS", seconds)
    return Encoder(str(base), False, VOCAB, MEMORY * 4)


@pytest.fixture
def encoder(base, monkeypatch):
    made = encoder_of(base, monkeypatch)
    yield made
    made.close()


def read(encoder, path, **fields):
    return encoder.load_dataset(DatasetConfig(path=str(path), **fields), TrainingConfig())


def equal(one, other):
    names = ("truncated", "dropped", "longest", "unread", "shortened", "mix")
    return digest(one.train, one.val) == digest(other.train, other.val) and all(
        getattr(one, name) == getattr(other, name) for name in names
    )


PAIR = {"prompt": "p", "chosen": "c", "rejected": "r"}
UNPAIRED = {"prompt": "p", "completion": "c", "label": True}


@pytest.mark.parametrize(
    ("objective", "records"),
    [
        ("sft", [GOOD, {**GOOD, "output": "longer " * 2000}, {**GOOD, "output": " "}]),
        ("sft", [{"input_ids": [n % 100] * (n % 700 + 2)} for n in range(1500)]),  # several parcels
        ("dpo", [{**PAIR, "chosen": "c" * n} for n in range(1, 5)]),
        ("kto", [{**UNPAIRED, "label": bool(n % 3), "completion": "c" * n} for n in range(1, 9)]),
    ],
)
def test_what_comes_out_is_the_same_to_the_bit(encoder, tmp_path, objective, records):
    config = DatasetConfig(path=str(write(tmp_path, *records)), val_size=0.3)
    training = TrainingConfig(objective=objective)
    here = load_dataset(config, training, lambda: TOKENIZER, VOCAB)
    assert equal(encoder.load_dataset(config, training), here)
    mix = DatasetConfig(path=config.path, mix=[config], weight=2)
    assert equal(encoder.load_dataset(mix, training), load_dataset(mix, training, lambda: TOKENIZER, VOCAB))


def test_an_error_is_the_same_too(encoder, tmp_path):
    path = write(tmp_path, GOOD, "{", {**GOOD, "output": 3})
    with pytest.raises(DataError) as here:
        load(path)
    with pytest.raises(DataError) as there:
        read(encoder, path)
    assert str(there.value) == str(here.value)


# --- bombs ---


def parquet_bomb(folder):
    """One row whose column unpacks to 2 GiB, in a file of some kilobytes."""
    import pyarrow
    from pyarrow import parquet

    path = folder / "data.parquet"
    rows = pyarrow.array(["x" * (1 << 26)]).dictionary_encode()
    table = pyarrow.table({"text": pyarrow.DictionaryArray.from_arrays([0] * 64, rows.dictionary)})
    parquet.write_table(table, path, compression="zstd")
    assert path.stat().st_size < 1e6
    return path


def json_bomb(folder):
    """A record of 60 MB of empty lists, each of which takes twenty times as much in memory."""
    return write(folder, b'{"text": [' + b"[]," * 20_000_000 + b"[]]}")


@pytest.mark.parametrize(
    ("make", "fields", "said"),
    [
        (partial(write), {"chat_template": DOUBLING}, r"takes more than 0\.25 GiB of memory"),
        (partial(write), {"chat_template": SORTING}, r"takes more than 3 s of processor time|made more than 1,000,000"),
        (parquet_bomb, {}, r"takes more than 0\.25 GiB of memory|cannot be read on: .*malloc"),
        (json_bomb, {}, r"takes more than 0\.25 GiB of memory"),
    ],
    ids=["template that doubles", "template that works for ever", "parquet", "json"],
)
def test_a_bomb_ends_as_a_sentence_and_the_neighbour_does_not_notice(encoder, tmp_path, make, fields, said):
    good = write(tmp_path, *[GOOD] * 20, name="good.jsonl")
    here, found = load(good), []
    path = make(tmp_path, GOOD) if isinstance(make, partial) else make(tmp_path)
    neighbour = threading.Thread(target=lambda: found.extend(read(encoder, good) for _ in range(2)))
    neighbour.start()
    with pytest.raises(DataError, match=said) as caught:
        read(encoder, path, **fields)
    neighbour.join()
    assert str(path) in str(caught.value)
    assert [equal(one, here) for one in (*found, read(encoder, good))] == [True] * 3
    assert encoder.sandbox.highest < MEMORY + (300 << 20)  # what was imported, and shared


def test_data_that_are_packed_are_no_data(encoder, tmp_path):
    (tmp_path / "data.jsonl").write_bytes(gzip.compress(b"x" * (1 << 20)))
    with pytest.raises(DataError, match="not UTF-8"):
        read(encoder, tmp_path / "data.jsonl")


def test_a_tokenizer_of_nonsense_size(tmp_path, base, monkeypatch):
    for name in ("tokenizer_config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((base / name).read_bytes())
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["model"]["vocab"].update({f"token number {n}": n + 300 for n in range(2_000_000)})
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    encoder = encoder_of(tmp_path, monkeypatch, seconds=30)
    data, question = (
        write(tmp_path, GOOD),
        AskRequest(request_id="a", base_model=str(tmp_path), questions=("hi",), answerers=(Answerer(name="base"),)),
    )
    for attempt in (partial(read, encoder, data), partial(encoder.encode, question)):
        with pytest.raises(DataError, match=r"takes more than 0\.25 GiB of memory"):
            attempt()
    assert (
        load(write(tmp_path, *tokens(3, 4))).train[0][0].tolist()
        == read(encoder, write(tmp_path, *tokens(3, 4))).train[0][0].tolist()
    )  # what needs no tokenizer goes on
    encoder.close()


def test_more_samples_than_the_actor_has_room_for(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder, "_most_samples", 10_000_000)
    with pytest.raises(DataError, match="its token ids and labels take more than"):
        read(encoder, write(tmp_path, *[{"input_ids": [1] * 1000}] * 2000))


# --- questions ---


def asked(base, *questions, templates=(None,), **fields):
    answerers = tuple(Answerer(name=str(n), chat_template=template) for n, template in enumerate(templates))
    return AskRequest(request_id="a", base_model=str(base), questions=questions, answerers=answerers, **fields)


def test_questions_are_what_they_are_here(encoder, base):
    talk = Conversation.model_validate({"messages": ({"role": "user", "content": "x"},)})
    questions = ("Hello", talk, TokenIds(ids=(1, 2)))
    template = "{% for m in messages %}{{ m.content }}!{% endfor %}"
    encoded = encoder.encode(asked(base, *questions, templates=(None, template), system="s"))
    for number, question in enumerate(questions):
        for one in (None, template):
            here = prompt_of(TOKENIZER, question, "s", one, VOCAB)
            assert encoded(number, one).tolist() == here.tolist()


def test_a_question_in_a_hostile_template_ends_as_a_sentence(encoder, base):
    with pytest.raises(DataError, match=r"the question takes more than 0\.25 GiB of memory"):
        encoder.encode(asked(base, "hi", templates=(DOUBLING,)))
    assert len(encoder.encode(asked(base, "hi"))(0, None))
    with pytest.raises(DataError, match=f"has a token {VOCAB}, the base model knows 0 to {VOCAB - 1}"):
        encoder.encode(asked(base, TokenIds(ids=(VOCAB,))))(0, None)


def test_a_tokenizer_that_cannot_be_read(tmp_path, monkeypatch):
    encoder = encoder_of(tmp_path, monkeypatch)
    with pytest.raises(BaseModelError, match="no usable model there"):
        encoder.encode(asked(tmp_path, "hi"))


# --- what is left behind ---


def sandboxes():
    """The living processes that make the others, of this test process."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if "gpu_actor.sandbox.server" in child.cmdline():
                yield child


def test_whatever_ends_a_process_the_next_request_has_one_and_none_is_left(encoder, tmp_path):
    path = write(tmp_path, GOOD)
    before = digest(read(encoder, path).train)
    (server,) = sandboxes()
    server.kill()
    server.wait()
    assert digest(read(encoder, path).train) == before
    (server,) = sandboxes()
    encoder.close()
    assert not server.is_running()
    assert list(sandboxes()) == []


def test_who_is_killed_has_not_taken_too_much(encoder, base, tmp_path):
    """As the kernel does it where others have taken the memory of the machine: it takes this process first."""
    good = write(tmp_path, GOOD, name="good.jsonl")
    before = digest(read(encoder, good).train), encoder.encode(asked(base, "hi"))(0, None).tolist()
    (server,) = sandboxes()
    path, said = write(tmp_path, GOOD), []

    def attempt():
        with pytest.raises(KilledError) as caught:
            read(encoder, path, chat_template=SORTING)
        said.append(str(caught.value))

    reading = threading.Thread(target=attempt)
    reading.start()
    wait_until(lambda: len(server.children(recursive=True)) == 2)  # one waits for the other
    server.children(recursive=True)[-1].kill()
    reading.join()
    words = "the process that reads and encodes it was killed; most likely its machine has no memory left"
    assert said == [f"{path}: {words}"]

    server.send_signal(signal.SIGSTOP)  # what makes the processes may be taken as well
    asking = threading.Thread(target=lambda: said.append(encoder.encode(asked(base, "hi"))(0, None).tolist()))
    asking.start()
    time.sleep(0.2)
    server.kill()
    asking.join()
    assert (digest(read(encoder, good).train), said[-1]) == before
