"""The doctor: what it finds here, and what it says where things are missing or broken."""

from __future__ import annotations

import importlib.util
import tomllib
from importlib.metadata import EntryPoint, PackageNotFoundError, version
from pathlib import Path

import pytest

from exporter import doctor
from exporter.doctor import CORE, ENABLES, cpu_features, examine, find_packages, find_targets
from exporter.targets import registry

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def test_every_extra_says_what_it_enables() -> None:
    assert set(ENABLES) == {CORE, *PROJECT["optional-dependencies"]} - {"all", "dev"}


def test_packages_come_from_the_metadata_with_their_versions() -> None:
    packages = {package.name: package for package in find_packages()}
    assert packages["torch"].version == version("torch")
    assert packages["torch"].extras == (CORE,) and packages["torch"].fits
    assert set(packages["onnx"].extras) >= {"onnx", "openvino"}
    core = {name.split(">")[0].split("<")[0].lower() for name in PROJECT["dependencies"]}
    assert core == {name for name, package in packages.items() if CORE in package.extras}


def without(monkeypatch: pytest.MonkeyPatch, missing: str, instead: str | None = None) -> None:
    real = doctor.version

    def fake(name: str) -> str:
        if name == missing:
            if instead is None:
                raise PackageNotFoundError(name)
            return instead
        return real(name)

    monkeypatch.setattr(doctor, "version", fake)


def test_a_missing_core_package_is_not_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    assert examine().ok
    without(monkeypatch, "diffusers")
    found = examine()
    assert not found.ok
    assert "diffusers" in next(e for e in found.extras if e.name == CORE).missing


def test_a_missing_extra_is_no_error_and_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "onnxscript")
    found = examine()
    assert found.ok
    extra = next(e for e in found.extras if e.name == "onnx")
    assert "onnxscript" in extra.missing and extra.install == 'pip install "exporter[onnx]"'


def test_a_version_out_of_range_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "optimum", "1.17.1")
    package = next(p for p in find_packages() if p.name == "optimum")
    assert package.version == "1.17.1" and not package.fits and "2.1" in package.required


def test_a_target_whose_backend_is_missing_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "openvino" else real(name, *rest)
    )
    target = next(t for t in find_targets() if t.name == "openvino")
    assert "openvino" in target.missing
    assert target.install == 'pip install "exporter[openvino]"'


def test_a_third_partys_broken_target_does_not_stop_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = EntryPoint("broken", "no.such.module:Target", registry.GROUP)
    entries = registry._entries() | {"broken": broken}
    monkeypatch.setattr(registry, "_entries", lambda: entries)
    states = {t.name: t for t in find_targets()}
    assert states["broken"].problem and "no" in states["broken"].problem
    assert "openvino" in states


CPUINFO_X86 = """\
model name : Example Processor 9
flags : fpu avx2 fma avx512f amx_bf16 amx_tile
"""


def test_features_are_read_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: CPUINFO_X86.splitlines())
    assert cpu_features() == ("avx2", "fma", "avx512f", "amx_tile", "amx_bf16")
    assert doctor.cpu_model() == "Example Processor 9"
    assert any("bfloat16" in note for note in doctor.find_hardware().notes)
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: ["Features : asimd bf16 i8mm"])
    assert cpu_features() == ("neon", "bf16", "i8mm")
    monkeypatch.setattr(doctor, "_cpuinfo", lambda: ["flags : fpu sse2"])
    assert not any("bfloat16" in note for note in doctor.find_hardware().notes)


def test_openvino_that_does_not_answer_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino")

    def broken() -> None:
        raise RuntimeError("driver gone\nlong story")

    monkeypatch.setattr(openvino, "Core", broken)
    assert doctor.openvino_devices() == ({}, ["OpenVINO is installed but does not answer: driver gone"])


def test_hardware_here() -> None:
    hardware = examine().hardware
    assert hardware.cores >= 1 and hardware.cpu
    assert hardware.memory and hardware.free_memory and 0 < hardware.free_memory <= hardware.memory
    assert hardware.free_disk > 0
