"""Faults that are planted alike in every format: bytes, declarations, another component's files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from exporter.artifact import Artifact
from tests.mutation.changes import through_float16
from tests.mutation.files import change_all
from tests.mutation.formats.base import Edit, Format, at, blobs, folder_of, part
from tests.mutation.workshop import Workshop, edit_record

Dims = dict[str, list[int | str]]
"""Input or output → its dims as the honest manifest has them."""


def one_bit(shop: Workshop, root: Path) -> None:
    """The lowest bit of one stored number; where numbers cannot be found, of the middle of the file."""
    file, offset = root / Artifact.open(root).manifest.components[0].entry, None
    if at(root).blobs is not None:
        blob = max(blobs(root), key=lambda b: len(b.shape))
        file, offset = blob.file, blob.offset
    with file.open("r+b") as handle:
        place = file.stat().st_size // 2 if offset is None else offset
        handle.seek(place)
        byte = handle.read(1)[0]
        handle.seek(place)
        handle.write(bytes([byte ^ 1]))


def cut_short(shop: Workshop, root: Path) -> None:
    file = root / Artifact.open(root).manifest.components[0].entry
    if at(root).blobs is not None:
        file = blobs(root)[0].file
    with file.open("r+b") as handle:
        handle.truncate(file.stat().st_size - 256)


def of_component(other: str) -> Edit:
    """The files of another component under this one's name."""

    def edit(shop: Workshop, root: Path) -> None:
        artifact = Artifact.open(root)
        honest = shop.honest(artifact.manifest.target)
        source = honest / folder_of(Artifact.open(honest).manifest.component(other))
        folder = part(root)
        shutil.rmtree(folder)
        shutil.copytree(source, folder)

    return edit


def says_half(shop: Workshop, root: Path) -> None:
    """The manifest claims float16 for a float32 file, which would earn it a float16 limit."""
    edit_record(root, dtype="float16")


def all_half(shop: Workshop, root: Path) -> None:
    change_all(blobs(root), through_float16)


def baked(free: Callable[[Path, Dims], None] | None = None) -> Edit:
    """Exported for one size, the manifest claims any.

    Args:
        free: Makes the file itself claim the same.
    """

    def edit(shop: Workshop, root: Path) -> None:
        honest = Artifact.open(root).manifest.components[0]
        component = shop.components[honest.name]
        native = component.native
        shop.export(root, component, {"static": (1, native.height, native.width)})
        artifact = Artifact.open(root)
        artifact.manifest.options["static"] = None
        artifact.save()
        edit_record(root, inputs=honest.inputs, outputs=honest.outputs)
        if free is not None:
            free(part(root), {tensor.name: tensor.dims for tensor in (*honest.inputs, *honest.outputs)})

    return edit


PLAIN: dict[str, Edit] = {
    "changed-byte": one_bit,
    "cut-short": cut_short,
    "says-float16": says_half,
    "wrong-component": of_component("vae_encoder"),
}
"""Possible without knowing anything of the format."""

STORED: dict[str, Edit] = PLAIN | {"all-float16": all_half}
"""Possible where the weights can be found."""


def plain(target: str) -> Format:
    """What is tried on a target that nobody has described here."""
    from exporter.targets import get_target

    title = get_target(target, require_backend=False).title
    forms = [{"dtype": "float32"}, {"dtype": "float16"}]
    return Format(target, title, target, {"dtype": "float32"}, PLAIN, honest=forms)
