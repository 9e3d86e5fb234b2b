"""`exporter push`."""

from __future__ import annotations

from pathlib import Path

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text
from exporter.cli._trust_flag import trust_flag


@click.command(
    "push",
    cls=Command,
    examples=(
        (
            "Publish a verified artifact in a new repository",
            "exporter push shapes-onnx me/shapes-onnx --create",
        ),
        ("Propose it to a repository of somebody else", "exporter push shapes-ov org/shapes-ov --pr"),
    ),
)
@click.argument("artifact", type=click.Path(path_type=Path))
@click.argument("repo", metavar="ORG/NAME")
@click.option("--create", is_flag=True, help="Make the repository if it is not there.")
@click.option("--private", is_flag=True, help="Make it a private one.")
@click.option("--revision", metavar="BRANCH", help="Commit to this branch, made if it is not there.")
@click.option("--pr", "pull_request", is_flag=True, help="Open a pull request instead of committing.")
@click.option("--allow-unverified", is_flag=True, help="Publish what is not a PASS; the model card says so.")
@trust_flag
@click.pass_obj
def command(
    output: Output,
    /,
    artifact: Path,
    repo: str,
    create: bool,
    private: bool,
    revision: str | None,
    pull_request: bool,
    allow_unverified: bool,
    trust: bool,
) -> int:
    """Publish ARTIFACT on the Hub, in one commit, with a model card.

    Every file is hashed first; an artifact whose verification was not a PASS on these very bytes is
    refused, and so is a program that was not made here. An interrupted push is resumed by the same
    command. Log in with `hf auth login`.
    """
    from exporter.publish import push

    with output.progress() as progress:
        pushed = push(
            artifact,
            repo,
            create=create,
            private=private,
            revision=revision,
            pull_request=pull_request,
            allow_unverified=allow_unverified,
            trust=trust,
            progress=progress,
        )
    where = pushed.pull_request or pushed.url
    text = f"{where}  {pushed.files} files, {bytes_text(pushed.bytes)}, {pushed.verdict or 'unverified'}"
    output.result(pushed.as_dict(), human=lambda console: console.print(text, soft_wrap=True), quiet=where)
    return 0
