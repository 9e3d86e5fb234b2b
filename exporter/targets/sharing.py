"""Several prompts over several devices: how many each gets. Needs no backend."""

from __future__ import annotations

from exporter.errors import UsageError


def shared_evenly(prompts: int, devices: int) -> int:
    """Prompts for each device.

    Raises:
        UsageError: The devices do not divide the prompts.
    """
    if prompts < 1 or prompts % devices:
        fitting = [prompts - prompts % devices, prompts + -prompts % devices]
        numbers = " or ".join(str(number) for number in dict.fromkeys(fitting) if number > 0)
        raise UsageError(
            f"{prompts} prompts cannot be shared evenly by {devices} devices.",
            hint=f"Give {numbers} prompts, or choose the devices with --device.",
        )
    return prompts // devices
