"""`exporter doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from exporter.cli._group import Command
from exporter.cli._output import Output
from exporter.cli._show import bytes_text, table

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.doctor import Diagnosis, Hardware


@click.command(
    "doctor",
    cls=Command,
    examples=(
        ("What is here, what is missing, and how to get it", "exporter doctor"),
        ("For a bug report or a script", "exporter doctor --json"),
    ),
)
@click.pass_obj
def command(output: Output, /) -> int:
    """Show what is installed in which version, what each missing package would enable, and the hardware.

    Exits with 4 when a package that every command needs is missing; missing extras are no error.
    """
    from exporter.doctor import examine

    found = examine()
    output.result(
        found, human=lambda console: _show(console, found), quiet="ok" if found.ok else "incomplete"
    )
    return 0 if found.ok else 4


def _show(console: Console, found: Diagnosis) -> None:
    console.print(f"exporter {found.exporter}, Python {found.python}", soft_wrap=True)
    rows = [
        (
            package.name,
            package.version or "missing",
            "" if package.fits or package.version is None else f"needs {package.required}",
            ", ".join(package.extras),
        )
        for package in found.packages
    ]
    console.print(table(("package", "version", "", "asked for by"), rows))
    states = [
        (
            target.name,
            target.title,
            target.problem or (f"needs {', '.join(target.missing)}" if target.missing else "ready"),
            target.install or "",
        )
        for target in found.targets
    ]
    console.print(table(("target", "format", "state", "to add it"), states))
    _show_hardware(console, found.hardware)
    lacking = [extra for extra in found.extras if extra.missing]
    if lacking:
        console.print("\nNot installed:")
    for extra in lacking:
        console.print(f"  {extra.name}: {extra.enables} (missing {', '.join(extra.missing)})", soft_wrap=True)
        console.print(f"    {extra.install}", soft_wrap=True)


def _show_hardware(console: Console, hardware: Hardware) -> None:
    devices = ", ".join(f"{name} ({full})" for name, full in hardware.openvino_devices.items())
    rows = [
        ("system", hardware.system),
        ("cpu", f"{hardware.cpu} ({hardware.architecture}, {hardware.cores} cores to use)"),
        ("cpu features", " ".join(hardware.features) or "unknown"),
        ("memory", f"{bytes_text(hardware.memory)}, {bytes_text(hardware.free_memory)} free"),
        ("disk", f"{bytes_text(hardware.free_disk)} free here"),
        ("OpenVINO devices", devices or "none"),
        ("CUDA", ", ".join(hardware.cuda) or "none"),
        ("Apple GPU", "yes" if hardware.mps else "no"),
        ("C++ compiler", hardware.compiler or "none"),
    ]
    console.print(table(("hardware", ""), rows))
    for note in hardware.notes:
        console.print(f"Note: {note}", soft_wrap=True)
