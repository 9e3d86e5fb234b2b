"""Compiled OpenVINO models: exported by the device's plugin, imported again by the same one."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.artifact import ComponentRecord
from exporter.errors import ArtifactError, BackendMissing, UnsupportedError
from exporter.targets.base import RunOptions
from exporter.targets.openvino.model import plain

if TYPE_CHECKING:
    import openvino

BLOB = "openvino_model.blob"
DRIVER = "DRIVER_VERSION"
"""In the names of the properties by which plugins tell the version of their driver."""
VIRTUAL = ("AUTO", "MULTI", "HETERO", "BATCH")
"""Devices that are made of others."""


def device_of(options: RunOptions) -> str:
    """As OpenVINO names it: `CPU`, `GPU.1`, `AUTO:GPU,CPU`."""
    return (options.device or "CPU").upper()


def require_device(core: openvino.Core, device: str) -> None:
    """
    Raises:
        BackendMissing: It is not here; the message lists those that are.
    """
    have = core.available_devices
    known = {*have, *(name.split(".")[0] for name in have), *VIRTUAL}
    if device.split(":")[0] not in known:
        raise BackendMissing(
            f"OpenVINO finds no device {device!r} here; it finds: {', '.join(have)}.",
            hint="The device is named as OpenVINO names it; `exporter doctor` lists what there is.",
        )


def runtime(options: RunOptions) -> dict[str, str]:
    """Device, its processor and driver, and the version of OpenVINO: what a blob is bound to."""
    import openvino

    core, device = openvino.Core(), device_of(options)
    require_device(core, device)
    found = {"device": device, "openvino": openvino.get_version()}
    if device.split(":")[0] in VIRTUAL:
        return found
    supported = core.get_property(device, "SUPPORTED_PROPERTIES")
    drivers = [name for name in supported if DRIVER in name]
    for name in ("FULL_DEVICE_NAME", "DEVICE_ARCHITECTURE", "OPTIMIZATION_CAPABILITIES", *drivers):
        if name in supported:
            value = core.get_property(device, name)
            found[name.lower()] = ", ".join(sorted(value)) if isinstance(value, list) else str(value)
    return found


def compile_blob(path: Path, component: ComponentRecord, options: RunOptions, folder: Path) -> Path:
    """Compile one `.xml` and write what the device's plugin exports.

    Raises:
        UnsupportedError: The plugin exports nothing.
    """
    from exporter.targets.openvino.runner import OpenVinoRunner

    with OpenVinoRunner(path, component, options) as runner:
        assert isinstance(runner, OpenVinoRunner)
        stream = io.BytesIO()
        try:
            runner.compiled().export_model(stream)
        except RuntimeError as error:
            raise UnsupportedError(
                f"OpenVINO exports no compiled model for {device_of(options)}: {plain(error)}"
            ) from error
    blob = folder / BLOB
    blob.write_bytes(stream.getbuffer())
    return blob


def import_blob(
    core: openvino.Core, blob: Path, device: str, settings: dict[str, Any]
) -> openvino.CompiledModel:
    """Open what `compile_blob` wrote; its bytes are mapped, not read.

    Raises:
        ArtifactError: The plugin does not take it.
    """
    import numpy as np
    import openvino

    try:
        data = openvino.Tensor(np.memmap(blob, dtype=np.uint8, mode="r"))
        return core.import_model(data, device, settings)
    except (RuntimeError, OSError, ValueError) as error:
        raise ArtifactError(
            f"OpenVINO cannot open the compiled {blob.parents[1].name}: {plain(error)}"
        ) from error
