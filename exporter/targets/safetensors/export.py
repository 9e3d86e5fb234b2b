"""Writes a component's folder as safetensors: shards, index and config, as diffusers has them.

The unit is the checkpoint's folder. A VAE is two components for parity and one folder for its users:
the first of the two to be exported writes it, the second finds it written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exporter.architectures.base import Component
from exporter.architectures.ip_adapter import KEY as IP_ADAPTER
from exporter.artifact import TensorRecord
from exporter.checkpoints import Checkpoint, StoredTensor
from exporter.checkpoints.derived import OtherFile
from exporter.checkpoints.safetensors_file import ITEM_BYTES
from exporter.errors import UnsupportedError, UsageError
from exporter.progress import Progress
from exporter.storage import FLOAT8, SAFETENSORS_NAMES, TORCH_NAMES, goes_to_float8, is_float
from exporter.targets.base import Estimate, ExportedComponent
from exporter.targets.layout import copy_small, model_index, portable, weightless_folders, write_json
from exporter.targets.safetensors.options import SafetensorsOptions
from exporter.targets.safetensors.shards import Entry, lay_out
from exporter.targets.safetensors.stream import Writer

PEAK_MEMORY = 700_000_000
"""More than a whole export takes, whatever the size of the model: PyTorch, and chunks of tensors."""


def estimate(component: Component, options: SafetensorsOptions) -> Estimate:
    """Disk: the component's own part of its folder, in the dtypes that will be written.

    Raises:
        UsageError: Weights would be written in float8 that nobody computes with.
        UnsupportedError: The UNet has an IP-Adapter.
    """
    if IP_ADAPTER in component.config:
        raise UnsupportedError(
            "diffusers opens an IP-Adapter beside a checkpoint (load_ip_adapter), never inside one: a folder "
            "of safetensors that held it would lose it on loading.",
            hint="Leave out --ip-adapter and load it in diffusers; or convert --to onnx, openvino or pt2.",
        )
    options = suited(options, component.checkpoint, component.folder)
    check_float8(component, options)
    disk = sum(
        t.numel * ITEM_BYTES[_dtype(n.removeprefix("inner."), t, options)]
        for n, t in component.weights.items()
    )
    return Estimate(disk=disk, memory=PEAK_MEMORY)


def export(
    component: Component, options: SafetensorsOptions, staging: Path, progress: Progress
) -> ExportedComponent:
    """Write the folder of a component below `staging`.

    Raises:
        CheckpointError: A value does not fit the dtype (the message names the tensor), or a source
            file is damaged.
    """
    checkpoint, folder = component.checkpoint, component.folder
    options = suited(options, checkpoint, folder)
    with Writer() as writer:
        files, details = write_folder(checkpoint, folder, options, staging, progress, writer)
    return ExportedComponent(
        entry=files[0],
        files=tuple(files),
        inputs=tuple(TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.inputs),
        outputs=tuple(TensorRecord(name=s.name, dtype=s.dtype, dims=list(s.dims)) for s in component.outputs),
        details=details,
        dtype=stored_dtype([_dtype(n, t, options) for n, t in checkpoint.stored(folder).items()], options),
        digests=writer.digests,
    )


def write_folder(
    checkpoint: Checkpoint,
    folder: str,
    options: SafetensorsOptions,
    staging: Path,
    progress: Progress,
    writer: Writer,
) -> tuple[list[Path], dict[str, Any]]:
    """The weights and the config of one folder.

    Args:
        options: Already those `suited` to the folder.

    Returns:
        The files, the one a client opens first (a single file, or the index) in front; and details:
        variant, shards, tied tensors left out, and for float8 what casting cost.
    """
    stored, tied = without_tied(checkpoint, folder)
    layout = lay_out(
        (Entry(name, _dtype(name, tensor, options), tensor) for name, tensor in stored.items()),
        stem=_stem(checkpoint, folder),
        variant=options.output_variant,
        max_shard_size=options.max_shard_size,
    )
    base = staging / folder
    progress.start(f"{folder}: writing {len(layout.files)} file(s)", len(layout.files))
    written = []
    for done, (name, entries) in enumerate(layout.files.items()):
        if not (base / name).is_file():
            writer.write(base / name, entries)
        written.append(base / name)
        progress.update(done + 1, name)
    if layout.index_name is not None and layout.index is not None:
        written.insert(0, write_json(base / layout.index_name, layout.index))
    written.append(write_json(base / "config.json", _config(checkpoint, folder, options)))
    progress.done()
    details: dict[str, Any] = {
        "folder": folder, "variant": options.output_variant, "shards": len(layout.files), "tied": tied,
    }  # fmt: skip
    if options.dtype == FLOAT8:
        kept = [n for n, t in stored.items() if is_float(t.dtype) and not goes_to_float8(n, t.shape)]
        details["float8"] = {"cast": len(stored) - len(kept), "kept": len(kept)}
    if writer.loss.noise > 0:
        details["weights_sqnr_db"] = round(writer.loss.sqnr() or 0.0, 2)
    return written, details


def finish(
    checkpoint: Checkpoint, components: Sequence[Component], options: SafetensorsOptions, staging: Path,
    every: Sequence[Component], progress: Progress,
) -> list[Path]:  # fmt: skip
    """Everything that is no exported component: index, small files, and, when all components were
    exported, folders with weights that no component speaks of (a safety checker).

    Configs of components that were left out are kept: they say what size the model works at.
    """
    held = {component.folder for component in components}
    files = []
    if {component.folder for component in every} <= held:
        for folder in _other_weights(checkpoint, held):
            with Writer() as writer:
                own = suited(options, checkpoint, folder)
                files += write_folder(checkpoint, folder, own, staging, progress, writer)[0]
            files += _small_files(checkpoint, folder, staging)
            held.add(folder)
    files.append(write_json(staging / "model_index.json", model_index(checkpoint, components, also=held)))
    for component in every:
        path = staging / component.folder / "config.json"
        if component.folder not in held and path not in files:
            files.append(write_json(path, portable(component.config)))
    for folder in [*weightless_folders(checkpoint), *sorted({c.folder for c in components})]:
        files += _small_files(checkpoint, folder, staging)
    return files


def without_tied(checkpoint: Checkpoint, folder: str) -> tuple[Mapping[str, StoredTensor], dict[str, str]]:
    """The tensors to write, and those left out: name → name of the same tensor that is written.

    A safetensors file holds no aliases. Two names of one tensor (known in pickles only) are written
    once where the library's class ties them again when it loads, else twice.
    """
    stored = checkpoint.stored(folder)
    first: dict[Any, list[str]] = {}
    for name, tensor in stored.items():
        if isinstance(tensor.file, OtherFile) and tensor.nbytes:  # held: its values have one place
            values = tensor.load()
            place = (values.data_ptr(), tensor.nbytes, tuple(values.stride()))
            first.setdefault(place, []).append(name)
    shared = [names for names in first.values() if len(names) > 1]
    if not shared:
        return stored, {}
    tied: dict[str, str] = {}
    retied = tied_names(*checkpoint.component_classes[folder])
    for names in shared:
        keep = [n for n in names if not any(_matches(key, n) for key in retied)] or names[:1]
        tied |= {name: keep[0] for name in names if name not in keep}
    return {name: tensor for name, tensor in stored.items() if name not in tied}, tied


def tied_names(library: str, class_name: str) -> list[str]:
    """Names (or patterns) of weights that a class ties to others when it loads."""
    from importlib import import_module

    if library not in {"diffusers", "transformers"}:
        return []
    keys = getattr(getattr(import_module(library), class_name, None), "_tied_weights_keys", None)
    return list(keys or [])


def _matches(key: str, name: str) -> bool:
    import re

    return key == name or re.search(key, name) is not None


def suited(options: SafetensorsOptions, checkpoint: Checkpoint, folder: str) -> SafetensorsOptions:
    """The options for one folder: only diffusers casts float8 back before it computes (layerwise casting).

    transformers loads such weights as they are and stops at its first matrix product, so a text encoder
    keeps its dtypes.
    """
    if options.dtype == FLOAT8 and checkpoint.component_classes[folder][0] != "diffusers":
        return options.model_copy(update={"dtype": "stored"})
    return options


def check_float8(component: Component, options: SafetensorsOptions) -> None:
    """Single files have all of a model in float8, also what has to be cast back before it is used.

    Raises:
        UsageError: Naming the first such weight that would be written as it is.
    """
    casts = component.checkpoint.component_classes[component.folder][0] == "diffusers"
    for full, tensor in component.weights.items():
        name = full.removeprefix("inner.")
        kept = casts and goes_to_float8(name, tensor.shape)
        if not kept and _dtype(name, tensor, options).startswith("F8"):
            raise UsageError(
                f"{component.name} of {component.checkpoint.source} has {name!r} in float8, which "
                f"{'diffusers' if casts else 'transformers'} does not compute with.",
                hint="Add --dtype bfloat16 or --dtype float16: both hold every float8 number exactly.",
            )


def stored_dtype(dtypes: Sequence[str], options: SafetensorsOptions) -> str:
    """The dtype for the manifest: what was asked for; as stored, the widest that is in the files, so that
    nobody grants an artifact the rounding of a dtype that not all its weights have."""
    if options.dtype != "stored":
        return options.dtype
    floats = [d for d in dtypes if is_float(d)]
    return TORCH_NAMES[max(floats, key=lambda d: ITEM_BYTES[d])] if floats else "float32"


def _dtype(name: str, tensor: StoredTensor, options: SafetensorsOptions) -> str:
    """Safetensors' name of the dtype a tensor is written in."""
    if options.dtype == "stored" or not is_float(tensor.dtype):
        return tensor.dtype
    if options.dtype == FLOAT8 and not goes_to_float8(name, tensor.shape):
        return tensor.dtype
    return SAFETENSORS_NAMES[options.dtype]


def _config(checkpoint: Checkpoint, folder: str, options: SafetensorsOptions) -> dict[str, Any]:
    """transformers notes the dtype of the files in the config; it has to be true after a cast."""
    config = portable(checkpoint.config(folder))
    if options.dtype not in ("stored", FLOAT8):
        config |= {key: options.dtype for key in ("torch_dtype", "dtype") if key in config}
    return config


def _stem(checkpoint: Checkpoint, folder: str) -> str:
    name = checkpoint.weight_files(folder)[0].name
    return "diffusion_pytorch_model" if name.startswith("diffusion_pytorch_model") else (
        "model" if checkpoint.component_classes[folder][0] != "diffusers" else "diffusion_pytorch_model"
    )  # fmt: skip


def _other_weights(checkpoint: Checkpoint, held: set[str]) -> list[str]:
    return [
        name
        for name in checkpoint.component_classes
        if name not in held and (checkpoint.root / name / "config.json").is_file()
    ]


def _small_files(checkpoint: Checkpoint, folder: str, staging: Path) -> list[Path]:
    files = []
    for path in sorted((checkpoint.root / folder).iterdir()):
        made_here = path.name == "config.json" or ".index." in path.name
        if path.suffix in {".json", ".txt", ".model", ".jinja"} and path.is_file() and not (
            made_here and (checkpoint.root / folder / "config.json").is_file()
        ):  # fmt: skip
            files.append(copy_small(path, staging / folder / path.name))
    return files
