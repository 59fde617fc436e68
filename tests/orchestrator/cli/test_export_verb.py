"""The verb `export`, up to the process that it starts: what is refused before anything is loaded."""

import pytest

from support.command import Home


@pytest.fixture(scope="module")
def home():
    with Home() as home:
        yield home


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "give one of --merged, --gguf, --gguf-lora, --ollama, --push"),
        (("--merged", "a", "--gguf", "b"), 2, "give one of --merged"),
        (("--merged", "a", "--step", "last"), 2, "--step: 'last' is not known; give latest or best"),
        (("--merged", "a", "--quantization", "q4"), 2, "--quantization: 'q4' is not known; give nf4 or int8"),
        (("--merged", "a"), 3, "is no output folder"),
        (("other", "--merged", "a"), 2, "--merged takes one job, and these are 2"),
        (("--vllm-command", "--merged", "a"), 2, "give one of --merged"),
        (("--vllm-command", "--step", "3"), 2, "no adapter in"),
    ],
)
def test_what_cannot_be_exported_is_one_line(home, tmp_path, arguments, code, message):
    if code == 2:
        (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/nothing"}')
    done = home.call("export", tmp_path, *arguments)
    assert done.returncode == code
    assert message in done.stderr
