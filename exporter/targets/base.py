"""OUT: the contract between a format and the rest of the house.

A target turns one `Component` into files below a staging folder and opens them again as a
`Runner`. It knows no other target and nothing of parity. Third parties register theirs in the
entry-point group `exporter.targets`; the built-in ones use the same door.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from exporter.artifact import ComponentRecord, Manifest, SizeRecord, TensorRecord
from exporter.errors import UnsupportedError
from exporter.frames import FROM_PICTURE, VIDEO_PIPELINES
from exporter.progress import Progress
from exporter.targets.clients import PROMPT as PROMPT
from exporter.targets.clients import Client as Client
from exporter.targets.clients import diffusers_code as diffusers_code
from exporter.targets.clients import exporter_client as exporter_client
from exporter.targets.clients import has_ip_adapter as has_ip_adapter
from exporter.targets.clients import only_ours as only_ours
from exporter.targets.integers import Calibration as Calibration
from exporter.targets.integers import QuantisedWeight as QuantisedWeight
from exporter.targets.integers import RoundedActivation as RoundedActivation
from exporter.targets.options import Dtype as Dtype
from exporter.targets.options import Options as Options
from exporter.targets.options import SeveralSizes as SeveralSizes
from exporter.targets.options import Static as Static
from exporter.targets.options import component_shapes as component_shapes
from exporter.targets.options import component_size as component_size
from exporter.targets.options import size_text as size_text

if TYPE_CHECKING:
    import numpy as np

    from exporter.architectures.base import Component
    from exporter.checkpoints import Checkpoint

PrecisionHint = Literal["f32", "bf16", "f16", "default"]


@dataclass(frozen=True)
class ExportedComponent:
    """What `Target.export` wrote.

    Attributes:
        entry: The file a runtime opens.
        files: Every file written for the component (entry included).
        inputs / outputs: As the file declares them.
        details: JSON values worth remembering (opset, attention, precision hint …).
        dtype: Of the stored weights, where the option does not say it ("as stored").
        digests: sha256 of files that the target has hashed, or is hashing, as they lie on the disk.
        sizes: Where several sizes were baked: each with the file that holds it, the first one included.
    """

    entry: Path
    files: tuple[Path, ...]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    details: Mapping[str, Any] = field(default_factory=dict)
    dtype: str | None = None
    digests: Mapping[Path, Future[str]] = field(default_factory=dict)
    sizes: tuple[SizeRecord, ...] = ()


@dataclass(frozen=True)
class Estimate:
    """Before any work: bytes on disk and peak resident memory, both in bytes."""

    disk: int
    memory: int


@dataclass(frozen=True)
class RunOptions:
    """How an artifact is run.

    Attributes:
        device: The runtime's own name for a device (`CPU`, `GPU`, `cuda`); None is its default.
        precision_hint: `f32`, `bf16` or `f16` for runtimes that choose the arithmetic themselves;
            `default` leaves the choice to the runtime, as most clients do.
        threads: Intra-op threads; None is the runtime's default.
        trust: Open files that are programs even when they were not made here (`exporter.trust`).
        peaks: Note the largest magnitude of every computed value, where the format shows them
            (`Runner.peaks`).
        exact: Leave out where the file itself rounds activations to integers: what is left is the graph.
        compiled: What `Target.compile` made of the component for this device: opened in its place.
        watch: Modules whose output `Runner.run` also gives, by their path, where the file shows it.
        spread: Share the rows of a batch among all devices of the kind, where the format can
            (`Runner.shares`).
    """

    device: str | None = None
    precision_hint: PrecisionHint = "f32"
    threads: int | None = None
    trust: bool = False
    peaks: bool = False
    exact: bool = False
    compiled: Path | None = None
    spread: bool = False
    watch: tuple[str, ...] = ()


@dataclass(frozen=True)
class Peak:
    """The largest magnitude that one value of a graph reached.

    Attributes:
        value: Its name in the graph.
        operation: The kind of operation that computes it.
        module: The module of the component in whose code that happens, as diffusers names it; empty in
            the component's own code, None where the file does not say.
        peak: Before it is rounded to the value's dtype; NaN when the value held one.
        limit: The largest number of that dtype where it is a narrow one (65504 of float16), else None.
    """

    value: str
    operation: str
    module: str | None
    peak: float
    limit: float | None


class Runner(ABC):
    """An exported component, opened. A context manager; not thread-safe.

    Attributes:
        inputs / outputs: Names, dtypes and dims as the file on disk declares them (not as the
            manifest claims).
        precision: The arithmetic really used (`float32`, `bfloat16`, `float16`), as far as the
            runtime tells; None when it does not.
        weights: The dtype of most stored weights, as the file says; None when it does not, or when
            most are no floating-point numbers.
        rounds_activations: The runtime, run this way, also quantises what flows between the weights.
        compile_seconds: What the runtime took so far to compile for shapes it met in `run`; 0 where it
            compiles when it opens, or not at all.
        shares: Devices that the rows of a batch are shared by.
        only_rounded: Every weight is the checkpoint's, rounded to `weights` and in no other way changed.
    """

    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    precision: str | None = None
    weights: str | None = None
    rounds_activations: bool = False
    only_rounded: bool = False
    compile_seconds: float = 0.0
    shares: int = 1

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One forward pass.

        Args:
            inputs: By name, in the declared dtype; a runner never casts or reshapes silently.

        Raises:
            ValueError: A missing or unknown input, or a wrong dtype.
            RuntimeError: The runtime refused (for instance a shape that is baked in).
        """

    def module_names(self) -> list[str]:
        """Modules of the component, as diffusers names them, in order of execution, whose output
        `intermediates` can give. Empty where the format cannot."""
        return []

    def intermediates(
        self, inputs: Mapping[str, np.ndarray], modules: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """The output of each named module in one run. Only names from `module_names()`."""
        raise NotImplementedError(f"{type(self).__name__} gives no intermediate outputs")

    def peaks(self) -> list[Peak]:
        """Of every value computed since it was opened, in order of execution; empty unless
        `RunOptions.peaks` asked for it and the format can tell."""
        return []

    def check_modules(self, modules: Sequence[str]) -> None:
        """
        Raises:
            ValueError: A name that is not in `module_names()`.
        """
        known = set(self.module_names())
        unknown = [name for name in modules if name not in known]
        if unknown:
            raise ValueError(f"{unknown[0]!r} is no module whose output this file can give")

    def client_faults(self) -> list[str]:
        """What the format's own clients would refuse of this file, one sentence each. Each is a FAIL."""
        return []

    def quantised(self) -> Iterator[QuantisedWeight]:
        """The quantised weights, one at a time; none where the file has none."""
        return iter(())

    def rounded(self) -> list[RoundedActivation]:
        """Where the file asks for activations in integers; empty where it does not, or opened `exact`."""
        return []

    def close(self) -> None:  # noqa: B027 - most runners have nothing to free
        """Free the runtime's memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Target(ABC):
    """One output format.

    Attributes:
        name: As typed after `--to`.
        title: As shown to people.
        extra: The pip extra that installs its backend; empty when exporter alone brings it.
        packages: Import names the backend needs.
        options_type: Its options.
        executable: Its files are programs: `open` runs what their author wrote. Such a target calls
            `exporter.trust.require` before it reads anything else.
        apart: A component that is exported in a process of its own is the same bytes as one that is exported
            after others: then `exporter batch` may share the components of an artifact among machines.
        checked: Which of its clients look at pictures with a safety checker that was converted; None where
            all do.
        keeps_others: It holds also what no component speaks of.
        crashes: Signals with which its runtime is known to end a process, and what to do about each.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    options_type: ClassVar[type[Options]] = Options
    executable: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    checked: ClassVar[str | None] = (
        "The safety checker is converted: `exporter run` and `exporter.load` blacken what it finds, other "
        "clients do not ask it and show every picture"
    )
    keeps_others: ClassVar[bool] = False
    crashes: ClassVar[Mapping[int, str]] = {}

    @property
    def package(self) -> str:
        """What pip is asked to install: `exporter[onnx]`."""
        return f"exporter[{self.extra}]" if self.extra else "exporter"

    def missing(self) -> list[str]:
        """The packages that are not installed. Imports nothing."""
        from importlib.util import find_spec

        return [name for name in self.packages if find_spec(name) is None]

    def shipped(self, component: Component) -> Component:
        """The component with the outputs that this format has of it; most have all.

        What a pipeline does not read, a format's clients may not want. `verify` judges what is left.
        """
        return component

    def check(self, component: Component) -> None:  # noqa: B027 - most formats take every component
        """Say before any work that the format has no place for a component, from its config alone.

        Raises:
            UnsupportedError: It has none.
        """

    @abstractmethod
    def estimate(self, component: Component, options: Options) -> Estimate:
        """What exporting the component will take."""

    @abstractmethod
    def export(
        self, component: Component, options: Options, staging: Path, progress: Progress
    ) -> ExportedComponent:
        """Write one component below `staging`.

        Raises:
            UnsupportedError: A module or operator has no route; the message names it.
        """

    def share(
        self, first: ExportedComponent, other: ExportedComponent, suffix: str, staging: Path
    ) -> ExportedComponent:
        """Keep weights once that two components have in common, where the format can.

        Args:
            first: Exported before; its graph file stays as it is, its weights may grow.
            other: Moved beside it, or left as it is.
            suffix: Of its file's name there.

        Returns:
            `other`, as it lies now.
        """
        return other

    def calibration(self, options: Options) -> Calibration | None:
        """The run whose inputs `export_calibrated` wants to see; None where it wants none."""
        return None

    def export_calibrated(
        self,
        component: Component,
        options: Options,
        staging: Path,
        progress: Progress,
        calibration: Calibration,
    ) -> ExportedComponent:
        """As `export`, given captured inputs. Only where `calibration` asks for them."""
        raise UnsupportedError(f"A {self.title} artifact cannot be calibrated.")

    @abstractmethod
    def finish(
        self, checkpoint: Checkpoint, components: Sequence[Component], options: Options, staging: Path
    ) -> list[Path]:
        """Write the files that belong to no single component (`model_index.json`, tokenizers,
        scheduler, configs), as the format's clients want them. Returns the files."""

    def computes_in_float16(self, options: Options) -> bool:
        """Whether an artifact with these options computes in float16, here or on the device it is made for:
        then what its components compute has to fit."""
        return False

    def keep_finite(self, component: Component, options: Options, peak: float) -> Options:
        """Options for a component whose values float16 does not hold.

        Args:
            peak: The largest magnitude, a safety margin included.
        """
        return options

    def remarks(self, checkpoint: Checkpoint, options: Options) -> list[str]:
        """What of the checkpoint the clients of the format cannot use, one sentence each."""
        return []

    def clients(self, repo: str, manifest: Manifest) -> list[Client]:
        """How to run a published artifact, for its model card; the clients of the format come first."""
        kind, look = manifest.source.pipeline_class, has_ip_adapter(manifest)
        clip, image = kind in VIDEO_PIPELINES, kind in FROM_PICTURE
        ours = exporter_client(repo, self.package, trust=self.executable, clip=clip, look=look, image=image)
        return [ours]

    def unchecked(self, root: Path) -> dict[str, str]:
        """What belongs to an artifact and cannot be judged on this system: its path → why, and what to do.
        Each makes the verdict INCONCLUSIVE."""
        return {}

    def afterwards(self, manifest: Manifest) -> list[str]:
        """What is left to be done on another system, line by line; `convert` prints it."""
        return []

    @abstractmethod
    def open(self, root: Path, component: ComponentRecord, options: RunOptions | None = None) -> Runner:
        """Open one exported component from disk.

        Raises:
            ArtifactError: It is missing or damaged.
            BackendMissing: Nothing on this system can run it.
            UntrustedArtifact: It is a program that was not made here, and `options.trust` is off.
        """

    def runtime(self, options: RunOptions) -> dict[str, str]:
        """What a compiled component depends on besides its own bytes: `device` (by the runtime's full
        name for it), versions of runtime and driver, the processor. Empty: there is nothing to compile.

        Raises:
            BackendMissing: There is no such device here.
        """
        return {}

    def compile(self, root: Path, component: ComponentRecord, options: RunOptions, folder: Path) -> Path:
        """Do now what opening does each time, for the device of `options`. Only where `runtime` gives
        something.

        Args:
            folder: Where to write; exists and is empty.

        Returns:
            The file that `open` takes as `options.compiled`.

        Raises:
            BackendMissing: There is no such device here.
            ArtifactError: The component is missing or damaged.
        """
        raise UnsupportedError(f"A {self.title} artifact has nothing to compile.")
