"""Code with which somebody else runs a published artifact, for its model card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.frames import VIDEO_PIPELINES

if TYPE_CHECKING:
    from exporter.artifact import Manifest

PROMPT = "a large red star at the left on a blue background"
"""Of the code in model cards."""


@dataclass(frozen=True)
class Client:
    """How somebody runs a published artifact: a title, what to install, and code to copy.

    Attributes:
        title: The client's name.
        install: The line that installs it, or empty.
        language: Of the code, as Markdown names it (`python`, `sh`).
        code: Runs as it is, in an empty folder.
        system: Runs only there (`macOS`); empty: everywhere.
    """

    title: str
    install: str
    language: str
    code: str
    system: str = ""


def diffusers_code(package: str, prefix: str, pipeline_class: str, repo: str, arguments: str = "") -> str:
    """Code that opens an artifact in a diffusers pipeline, or optimum's counterpart of one, and paints."""
    given = ""
    starts = any(word in pipeline_class for word in ("Img2Img", "Inpaint", "ImageToVideo"))
    if "ControlNet" in pipeline_class or "Adapter" in pipeline_class:
        given = f', {"control_image" if starts else "image"}=Image.open("edges.png")'
    if starts:
        given += ', image=Image.new("RGB", (512, 512), "navy")'
    if "Inpaint" in pipeline_class:
        given += ', mask_image=Image.new("L", (512, 512), 255)'
    name = f"{prefix}{pipeline_class}"
    if pipeline_class in VIDEO_PIPELINES:
        return (
            f"from {package} import {name}\nfrom diffusers.utils import export_to_gif\n"
            + ("from PIL import Image\n" if given else "")
            + f'\npipeline = {name}.from_pretrained("{repo}"{arguments})\n'
            f'export_to_gif(pipeline(prompt="{PROMPT}"{given}).frames[0], "clip.gif")'
        )
    return (
        f"from {package} import {name}\n"
        + ("from PIL import Image\n" if given else "")
        + f'\npipeline = {name}.from_pretrained("{repo}"{arguments})\n'
        + f'pipeline("{PROMPT}"{given}).images[0].save("picture.png")'
    )


def only_ours(manifest: Manifest) -> bool:
    """Whether other clients cannot run an artifact: its denoiser is two graphs, of which they know one, and
    take what that gives besides for its result (optimum 2.x); it has an IP-Adapter, which none of them passes
    a picture to; or no module is written for its pipeline, and inputs are named as they were observed."""
    from exporter.architectures import FAMILIES
    from exporter.architectures.baked import SEVERAL_GRAPHS

    if has_ip_adapter(manifest) or manifest.source.pipeline_class not in FAMILIES:
        return True
    return any(each.name in SEVERAL_GRAPHS for each in manifest.techniques)


def has_ip_adapter(manifest: Manifest) -> bool:
    """Whether an IP-Adapter was laid over what was converted."""
    return any(overlay.kind == "ip_adapter" for overlay in manifest.source.overlays)


def exporter_client(
    repo: str, package: str, *, trust: bool = False, clip: bool = False, look: bool = False,
    image: bool = False,
) -> Client:  # fmt: skip
    """`exporter run`, which opens every format; of a program, only if it is trusted."""
    code = f'exporter run {repo} "{PROMPT}" -o {"clip.gif" if clip else "picture.png"}'
    code += " --ip-adapter-image look.png" if look else ""
    code += " --image start.png" if image else ""
    if trust:
        code = f"# This artifact is a program; trust it only if you trust its author.\n{code} --trust"
    install = f'pip install "{package}"' if "[" in package else f"pip install {package}"
    return Client("exporter", install, "sh", code)
