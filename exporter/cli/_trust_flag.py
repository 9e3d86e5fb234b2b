"""The flag of every command that opens, or hands on, artifacts that are programs."""

from __future__ import annotations

import click

trust_flag = click.option(
    "--trust", is_flag=True,
    help="Take a TorchScript or .pt2 artifact, which is a program, although it was not made here.",
)  # fmt: skip
