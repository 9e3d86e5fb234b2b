"""JAX's devices, by name. Needs JAX and nothing of PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.errors import BackendMissing

if TYPE_CHECKING:
    from collections.abc import Sequence

NAMES = {"gpu": "cuda"}
"""JAX's name of a kind of device → the name of the platform that a program is lowered for."""


def platform_of(device: Any) -> str:
    """`cpu`, `cuda`, `rocm` or `tpu`, as `jax.export` calls it."""
    if device.platform == "gpu":
        return "rocm" if "rocm" in str(getattr(device.client, "platform_version", "")).lower() else "cuda"
    return str(NAMES.get(device.platform, device.platform))


def device_names() -> list[str]:
    """Every device JAX finds here, by platform and number: `cpu:0`, `cuda:1`."""
    import jax

    found = [*jax.devices()]
    if not any(device.platform == "cpu" for device in found):
        found += jax.devices("cpu")
    return [f"{platform_of(device)}:{device.id}" for device in found]


def find_devices(name: str | None) -> list[Any]:
    """Devices by name: `cpu`, `cuda`, `tpu` for all of a kind, with a number for one; None is JAX's default.

    Raises:
        BackendMissing: There is no such device; the message lists those there are.
    """
    import jax

    if name is None:
        return list(jax.devices())
    kind, _, number = name.lower().partition(":")
    kind = "cuda" if kind == "gpu" else kind
    try:
        found = [device for device in jax.devices(kind) if not number or str(device.id) == number]
    except RuntimeError:
        found = []
    if not found:
        raise BackendMissing(
            f"JAX finds no device {name!r} here; it finds: {', '.join(device_names())}.",
            hint='For NVIDIA: pip install "jax[cuda13]"; for a TPU: pip install "jax[tpu]".',
        )
    return found


def check_platform(platforms: Sequence[str], device: Any, where: str) -> None:
    """
    Raises:
        BackendMissing: The program was not lowered for the device's platform.
    """
    platform = platform_of(device)
    if platform not in platforms:
        raise BackendMissing(
            f"{where} was lowered for {', '.join(platforms)}, and this is a {platform} "
            f"(JAX finds: {', '.join(device_names())}).",
            hint=f"Choose another with --device, or convert again with --option platforms={platform}.",
        )
