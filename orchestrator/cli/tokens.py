"""The verb `token`: who comes in by the HTTP door."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.table import Table

from orchestrator import formatting
from orchestrator.cli import progress
from orchestrator.cli.options import Address, AsJson
from orchestrator.client import Client
from orchestrator.terminal import display

Name = Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; their jobs bear the name.", show_default=False)]

tokens = typer.Typer(help="Let people in by the HTTP door, each with a token of their own.", no_args_is_help=True)


@tokens.command()
def add(name: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Make a token for somebody, and print it this once: only its hash is kept."""
    token = Client(address).add_token(name)
    if as_json:
        progress.print_json({"owner": name, "token": token})
    else:
        print(token)


@tokens.command("list")
def list_tokens(address: Address = None, as_json: AsJson = False) -> None:
    """Show who has a token; the operator's is not among them."""
    found = Client(address).tokens()
    if as_json:
        progress.print_json(found)
        return
    if not found:
        print("nobody has a token yet; `loray token add NAME` makes one")
        return
    table = Table("owner", "since", box=None, pad_edge=False)
    for entry in found:
        table.add_row(entry["owner"], f"{formatting.duration(time.time() - entry['created_at'])} ago")
    display.make_console().print(table)


@tokens.command()
def revoke(name: Name, address: Address = None, as_json: AsJson = False) -> None:
    """Take somebody's token back at once; their jobs go on."""
    Client(address).revoke_token(name)
    if as_json:
        progress.print_json({"owner": name, "revoked": True})
    else:
        print(f"{name} comes in no more")
