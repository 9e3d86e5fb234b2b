"""Every recipe that is shipped runs; one cell that fails does not keep the others from finishing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from exporter import recipes
from exporter.artifact import Artifact
from exporter.errors import BackendMissing
from exporter.recipes.reading import parse
from exporter.targets import target_names
from tests import ip_adapters
from tests.cli.runner import invoke
from tests.families import make

pytest.importorskip("onnx")
pytest.importorskip("openvino")

SHELF = recipes.shelf()


def test_the_shelf() -> None:
    assert len(SHELF) >= 20
    for recipe in SHELF:
        assert recipe.description and not recipe.description.startswith("broken")
        assert recipe.path.read_text(encoding="utf-8").startswith("# "), "says when to use it"


GPU = {"pytorch/gpu-low-memory", "pytorch/gpu-cuda-graph"}
HUB = {
    "onnx/ip-adapter",
    "onnx/image-to-video",
    "pytorch/transformer-cache",
    "pytorch/gpus-xdit",
    "pytorch/gpus-para-attention",
}
"""Of models that are not embedded; other tests look at what they ask for."""


@pytest.mark.parametrize("name", [r.name for r in SHELF if r.name not in GPU | HUB])
def test_every_recipe_can_be_run_on_the_embedded_model(name: str) -> None:
    if name == "pytorch/int8":
        pytest.importorskip("torchao")
    rows = recipes.check(recipes.read(recipes.find(name)))
    assert rows and [row.error for row in rows if row.error] == []
    assert {row.target for row in rows} <= {*target_names(), "pytorch"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(r.name, marks=[pytest.mark.full] if r.name == "pt2/compiled" else [])
        for r in SHELF
        if r.name not in HUB | {"both/publish"} and not r.name.startswith("pytorch/")
    ],
)
def test_every_recipe_runs_on_a_tiny_model(
    name: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Converted as the recipe says, one component of it; verdicts are the target's tests' matter."""
    monkeypatch.chdir(tmp_path)
    recipe = recipes.read(
        recipes.find(name), [f"model={tiny}", "components=[vae_encoder]", "verify.enabled=false"]
    )
    result = recipes.run(recipe)
    assert [row.error for row in result.rows] == [None] * len(result.rows)
    for row in result.rows:
        assert row.output is not None
        manifest = Artifact.open(row.output).manifest
        assert manifest.target == row.target and manifest.recipe is not None
        assert manifest.verification_skipped


def test_the_recipe_with_an_ip_adapter(tiny: Path, tmp_path: Path) -> None:
    folder = ip_adapters.write(tiny / "unet", tmp_path / "adapter")
    given = [f"model={tiny}", f"adapter={folder}", f"output={tmp_path / 'out'}", "components=[vae_encoder]"]
    recipe = recipes.read(recipes.find("onnx/ip-adapter"), [*given, "verify.enabled=false"])
    assert [row.error for row in recipes.check(recipe)] == [None]
    (row,) = recipes.run(recipe).rows
    assert row.error is None and row.output is not None
    manifest = Artifact.open(row.output).manifest
    assert [o.kind for o in manifest.source.overlays] == ["ip_adapter"]
    again = recipes.from_manifest(manifest.model_copy(update={"recipe": None}))
    assert again.ip_adapters == [str(folder)]


def test_the_recipe_for_clips_that_begin_with_a_picture(tmp_path: Path) -> None:
    given = [f"model={make('ltx', tmp_path / 'ltx')}", f"output={tmp_path / 'out'}"]
    given += ["components=[transformer]", "verify.enabled=false"]
    recipe = recipes.read(recipes.find("onnx/image-to-video"), given)
    assert [row.error for row in recipes.check(recipe)] == [None]
    (row,) = recipes.run(recipe).rows
    assert row.error is None and row.output is not None
    manifest = Artifact.open(row.output).manifest
    assert manifest.source.pipeline_class == "LTXImageToVideoPipeline"
    assert recipes.from_manifest(manifest).task == "image-to-video"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", sorted(GPU))
def test_a_recipe_for_a_gpu_says_so_where_there_is_none(name: str) -> None:
    (row,) = recipes.check(recipes.read(recipes.find(name)))
    assert isinstance(row.error, BackendMissing) and row.exit_code == 4


def test_recipes_for_pytorch_are_measured_against_the_plain_pipeline(tiny: Path) -> None:
    ran = invoke(
        "bench", tiny, "--recipe", "pytorch/deep-cache", "--recipe", "pytorch/t-gate",
        "--set", f"model={tiny}", "--runs", 1, "--warm-up", 0, "--steps", 6, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.stderr
    plain, cached, gated = json.loads(ran.stdout)["rows"]
    assert [row["name"] for row in (cached, gated)] == ["pytorch-deep-cache", "pytorch-t-gate"]
    assert cached["psnr"] is not None and cached["psnr"] < 90, "the technique changed nothing"
    assert plain["psnr"] is None and plain["device_memory"] == 0
    assert (plain["techniques"], cached["techniques"]) == ([], ["deep-cache"])


def test_running_a_recipe_for_pytorch_writes_nothing(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = recipes.read(recipes.find("pytorch/fused-qkv"), [f"model={tiny}"])
    (row,) = recipes.run(recipe).rows
    assert row.error is None and "as fast" in row.summary
    assert list(tmp_path.iterdir()) == []


def test_a_technique_that_the_target_cannot_carry_is_refused_by_check(tiny: Path) -> None:
    recipe = recipes.read(recipes.find("onnx/float32"), [f"model={tiny}", "techniques=[compile]"])
    (row,) = recipes.check(recipe)
    assert row.exit_code == 2 and "cannot be carried by the target onnx" in str(row.error)
    recipe = recipes.read(recipes.find("onnx/float32"), [f"model={tiny}", "techniques=[no-such]"])
    assert recipes.check(recipe)[0].exit_code == 2


def test_a_failing_cell_does_not_stop_the_others(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "matrix.yaml"
    path.write_text(
        f"name: m\nmodel: {tiny}\ntarget: onnx\ncomponents: [vae_encoder]\nverify: {{enabled: false}}\n"
        "matrix:\n  static: [1x64x63, 1x64x64]\n"
    )
    ran = invoke("recipe", "run", path, "--json")
    assert ran.code == 2
    rows = json.loads(ran.stdout)["rows"]
    assert [row["exit_code"] for row in rows] == [2, 0]
    assert "multiples of 8" in rows[0]["error"]["message"]
    assert Artifact.open(tmp_path / "artifacts" / "m-1x64x64").changed_files() == []


def test_an_artifact_gives_the_recipe_that_made_it(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    common = ["--component", "vae_encoder", "--no-verify"]
    first = invoke("convert", tiny, "--to", "onnx", "-o", "first", "--static", "1x64x64", *common)
    assert first.code == 0
    made = invoke("recipe", "from-manifest", "first")
    assert made.code == 0
    path = tmp_path / "again.yaml"
    path.write_text(made.stdout)
    again = invoke("recipe", "run", path, "--set", "output=second")
    assert again.code == 0
    assert Artifact.open("first").manifest.digest() == Artifact.open("second").manifest.digest()
    both = [recipes.from_manifest(Artifact.open(name).manifest) for name in ("first", "second")]
    assert {key for key, _, _ in recipes.differences(*both)} <= {"output"}


def test_the_command_line() -> None:
    listed = invoke("recipe", "list", "--json")
    assert {r["name"] for r in json.loads(listed.stdout)["recipes"]} == {r.name for r in SHELF}
    shown = invoke("recipe", "show", "both/everything", "--json")
    assert len(json.loads(shown.stdout)["cells"]) == 4
    different = invoke("recipe", "diff", "onnx/float32", "onnx/float16", "--json")
    assert json.loads(different.stdout)["differences"] == [
        {"key": "options.dtype", "a": None, "b": "float16"}
    ]
    assert json.loads(invoke("recipe", "schema").stdout)["type"] == "object"
    invoke("recipe", "show").failed(2, "takes 1 name, not 0")
    invoke("recipe", "run", "nothing-of-that-name").failed(2, "no recipe")
    invoke("recipe", "run", "onnx/flot16").failed(2, "Did you mean onnx/float16?")
    invoke("recipe", "run", "flot16").failed(
        2, "Did you mean onnx/float16 or openvino/float16 or pt2/float16?"
    )
    invoke("recipe", "list", "--set", "model=x").failed(2, "--set does nothing")
    invoke("recipe", "check", "onnx/float16", "--overwrite").failed(2, "--overwrite does nothing")
    changed = invoke("recipe", "show", "onnx/float16", "--set", "options.dtype=float32")
    assert "dtype: float32" in changed.stdout and "dtype: float16" not in changed.stdout
    missing = invoke("recipe", "check", "onnx/float32", "--set", "target=tensorrt", "--json")
    assert missing.code == 2 and "There is no target 'tensorrt'" in missing.stdout


def test_overlays_and_a_single_file_from_a_recipe(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bytes as by flags, and the recipe that the manifest gives makes them again."""
    import torch

    from tests import original_layout
    from tests.checkpoints import conftest as loras

    monkeypatch.chdir(tmp_path)
    model = original_layout.save(original_layout.stable_diffusion_1(tiny), tmp_path / "tiny.safetensors")
    lora = loras.write(tmp_path / "style.safetensors", loras.kohya(loras.pairs()))
    tokens = loras.write(tmp_path / "cat.safetensors", {"<cat>": torch.ones(1, 32) * 0.3})
    (tmp_path / "r.yaml").write_text(
        f"name: r\nmodel: {model}\nconfig: {tiny}\nloras: ['{lora}:${{scale}}']\n"
        f"textual_inversions: [{tokens}]\ntarget: safetensors\ncomponents: [text_encoder]\noutput: one\n"
        "verify: {enabled: false}\nvariables: {scale: 0.5}\n"
    )
    ran = invoke("recipe", "run", "r.yaml")
    assert ran.code == 0, ran
    flags = [
        "--lora",
        f"{lora}:0.5",
        "--textual-inversion",
        tokens,
        "--config",
        tiny,
        "--component",
        "text_encoder",
    ]
    ran = invoke("convert", model, "--to", "safetensors", "-o", "two", "--no-verify", *flags)
    assert ran.code == 0, ran
    one, two = (Artifact.open(name).manifest for name in ("one", "two"))
    assert one.digest() == two.digest() and [o.kind for o in one.source.overlays] == [
        "textual_inversion",
        "lora",
    ]
    Path("again.yaml").write_text(recipes.to_yaml(recipes.from_manifest(two)))
    ran = invoke("recipe", "run", "again.yaml", "--set", "output=three")
    assert ran.code == 0, ran
    assert Artifact.open("three").manifest.digest() == one.digest()


def test_a_pickle_in_a_recipe_is_refused_unless_it_asks(tiny: Path, tmp_path: Path) -> None:
    import torch

    model = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}}, model)
    text = f"name: r\nmodel: {model}\ntarget: safetensors\n"
    (tmp_path / "r.yaml").write_text(text)
    ran = invoke("recipe", "check", tmp_path / "r.yaml", "--json")
    assert ran.code == 3 and "pickle" in ran.stdout
    (tmp_path / "r.yaml").write_text(text + "allow_pickle: true\n")
    ran = invoke("recipe", "check", tmp_path / "r.yaml", "--json")
    assert ran.code == 3 and "so it is refused" not in ran.stdout


def test_the_recipe_of_an_artifact_from_any_folder(tiny: Path, tmp_path: Path) -> None:
    """Names that are no word, a scale with all its digits, and the strictness it was judged with."""
    from tests.checkpoints import conftest as loras

    model = tmp_path / "_my model (v2)"
    model.symlink_to(tiny)
    lora = loras.write(tmp_path / "style.safetensors", loras.kohya(loras.pairs()))
    common = ["--to", "safetensors", "--component", "vae_decoder", "--lora", f"{lora}:0.123456789"]
    ran = invoke("convert", model, *common, "-o", tmp_path / "one", "--k", "2.5")
    assert ran.code == 0, ran
    made = invoke("recipe", "from-manifest", tmp_path / "one")
    assert made.code == 0, made
    recipe = parse(made.stdout, "again.yaml")
    assert recipe.name == "my-model-v2-safetensors" and recipe.verify.k == 2.5
    assert recipe.loras == [f"{lora}:0.123456789"]
    assert [row.error for row in recipes.check(recipe)] == [None]


def test_a_recipe_of_another_version_in_a_manifest(tiny: Path, tmp_path: Path) -> None:
    common = ["--to", "safetensors", "--component", "vae_decoder", "--no-verify"]
    assert invoke("convert", tiny, *common, "-o", tmp_path / "one").code == 0
    place = tmp_path / "one" / "exporter.json"
    manifest = json.loads(place.read_text()) | {"recipe": {"name": "a", "model": "x", "of_2030": 1}}
    place.write_text(json.dumps(manifest))
    invoke("recipe", "from-manifest", tmp_path / "one").failed(3, "none that this version knows: of_2030")


def test_the_recipe_of_a_cell_of_a_matrix(tiny: Path, tmp_path: Path) -> None:
    """Its output named a key of the matrix, which its own recipe has not."""
    path = tmp_path / "m.yaml"
    path.write_text(
        f"name: m\nmodel: {tiny}\ntarget: safetensors\ncomponents: [vae_decoder]\n"
        "verify: {enabled: false}\n"
        f"output: {tmp_path}/{{dtype}}\nmatrix:\n  dtype: [float16]\n"
    )
    assert invoke("recipe", "run", path).code == 0
    made = invoke("recipe", "from-manifest", tmp_path / "float16")
    recipe = parse(made.stdout, "again.yaml")
    assert recipe.output == str(tmp_path / "float16") and recipe.options == {"dtype": "float16"}
    checked = recipes.check(parse(made.stdout, "again.yaml", [f"output={tmp_path / 'second'}"]))
    assert [row.error for row in checked] == [None]
