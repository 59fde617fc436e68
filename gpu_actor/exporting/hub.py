"""An adapter put on the Hugging Face hub, with its model card."""

from __future__ import annotations

from pathlib import Path

from gpu_actor.contract.errors import LorayError
from gpu_actor.contract.messages import one_line
from gpu_actor.paths import file_names

_FILES = (file_names.ADAPTER_WEIGHTS, file_names.ADAPTER_CONFIG)


def check_token() -> None:
    """Check that there is a token for the hub, before anything is made for it.

    Raises:
        LorayError: There is none.
    """
    from huggingface_hub import get_token

    if not get_token():
        raise LorayError(
            "--push needs a token of the hub that may write: set HF_TOKEN, or log in once with `hf auth login`"
        )


def push_adapter(folder: Path, repository: str, card: str) -> str:
    """Upload an adapter in one commit; a repository that is not there yet is made, private.

    Args:
        folder: Holds the adapter's files.
        repository: `name` or `organisation/name`.
        card: The text of the README.md.

    Returns:
        The address of the commit.

    Raises:
        LorayError: The hub refuses, or cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    additions = [CommitOperationAdd(name, folder / name) for name in _FILES]
    additions.append(CommitOperationAdd("README.md", card.encode()))
    try:
        address = api.create_repo(repository, private=True, exist_ok=True)
        commit = api.create_commit(address.repo_id, additions, commit_message="Upload an adapter trained with Loray")
    except Exception as error:  # whatever the client and the network raise
        raise LorayError(f"--push {repository}: the hub did not take it: {one_line(error)}") from None
    return str(commit.commit_url)
