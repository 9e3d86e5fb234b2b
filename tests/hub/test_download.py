"""Downloads from a Hub over HTTP, with everything that goes wrong on a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from exporter.checkpoints import resolve
from exporter.checkpoints.hub import download
from exporter.checkpoints.patience import Patience
from exporter.errors import CheckpointError, NetworkError
from tests import original_layout
from tests.families import make
from tests.hub.conftest import Client
from tests.hub.faults import Fault
from tests.hub.server import TOKEN, HubServer

HASTE = Patience(tries=4, first=0.01)
UNET = "unet/diffusion_pytorch_model.safetensors"
NAME = "someone/tiny"


@pytest.fixture
def repo(online: HubServer, tiny: Path) -> HubServer:
    """`someone/tiny` with what repositories hold besides: pickles, another precision, a single file."""
    made = online.store.upload(NAME, tiny)
    extra = {
        "unet/diffusion_pytorch_model.bin": b"pickle" * 5000,
        "unet/diffusion_pytorch_model.fp16.safetensors": b"half" * 5000,
        "tiny-v1.ckpt": b"all" * 9000,
        "README.md": b"---\nlicense: mit\n---\n# tiny\n",
    }
    blobs = {path: online.store.put(data, path) for path, data in extra.items()}
    online.store.add_commit(made, "main", "more", blobs)
    return online


def sha(hub: HubServer) -> str:
    return hub.store.repos[NAME].branches["main"][-1].sha


def test_only_what_is_needed_is_fetched_and_it_is_what_is_there(repo: HubServer, tiny: Path) -> None:
    snapshot = download(NAME, patience=HASTE)
    assert snapshot.revision == sha(repo)
    found = {p.relative_to(snapshot.root).as_posix() for p in snapshot.root.rglob("*") if p.is_file()}
    assert UNET in found and "README.md" in found
    assert not any(name.endswith((".bin", ".ckpt")) or "fp16" in name for name in found)
    for path in tiny.rglob("*.safetensors"):
        assert (snapshot.root / path.relative_to(tiny)).read_bytes() == path.read_bytes()
    assert snapshot.left_out == 6 * 5000 + 4 * 5000 + 3 * 9000
    index = (tiny / "model_index.json").stat().st_size  # looked into before the rest is chosen
    assert snapshot.fetched == snapshot.bytes - index


def test_the_second_time_nothing_comes_over_the_network(repo: HubServer) -> None:
    download(NAME, patience=HASTE)
    before = repo.count("GET", "/cdn/")
    assert download(NAME, patience=HASTE).fetched == 0
    assert repo.count("GET", "/cdn/") == before


def test_a_resolved_checkpoint_knows_its_commit_and_loads(repo: HubServer) -> None:
    checkpoint = resolve(NAME)
    assert checkpoint.revision == sha(repo)
    assert checkpoint.stored("unet")["conv_in.weight"].load().shape == (32, 4, 3, 3)


@pytest.mark.parametrize(
    ("method", "part", "kind", "times"),
    [
        ("GET", "/cdn/", "drop", 3),
        ("GET", "/cdn/", "truncate", 2),
        ("GET", "/cdn/", "corrupt", 1),
        ("GET", "/cdn/", "503", 2),
        ("GET", "/cdn/", "hang-up", 2),
        ("HEAD", "/resolve/", "500", 3),
        ("GET", "/api/models", "500", 2),
    ],
)
def test_faults_that_pass(repo: HubServer, tiny: Path, method: str, part: str, kind: str, times: int) -> None:
    repo.faults.add(Fault(method, part, kind, times))  # type: ignore[arg-type]
    root = download(NAME, patience=HASTE).root
    assert len(repo.faults.shown) == times, "the fault was shown"
    assert (root / UNET).read_bytes() == (tiny / UNET).read_bytes()


def test_retry_after_is_heeded(repo: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    repo.faults.add(Fault("GET", "/api/models", "429", 1, retry_after="7"))
    download(NAME, patience=HASTE)
    assert 7.0 in slept


def test_a_server_that_stays_down(repo: HubServer) -> None:
    repo.faults.add(Fault("GET", "/api/models", "500", 99))
    with pytest.raises(NetworkError, match="The Hub answered 500"):
        download(NAME, patience=HASTE)


def test_bytes_that_stay_wrong_are_refused_and_not_kept(repo: HubServer) -> None:
    repo.faults.add(Fault("GET", "/cdn/", "corrupt", 99))
    with pytest.raises(NetworkError, match="its hash differs"):
        download(NAME, patience=HASTE)
    repo.faults.clear()
    assert download(NAME, patience=HASTE).fetched > 0, "the wrong bytes were not taken for the right ones"


def test_an_interrupted_download_goes_on_where_it_stopped(
    repo: HubServer, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what is kept is kept in whole chunks
    size = (tiny / UNET).stat().st_size
    repo.faults.add(Fault("GET", "/cdn/", "drop", 99))
    with pytest.raises(NetworkError):
        download(NAME, patience=Patience(tries=1))
    repo.faults.clear()
    ranged: list[str] = []
    handler = repo._http.RequestHandlerClass
    original = handler._content  # type: ignore[attr-defined]

    def content(self, blob, headers):  # type: ignore[no-untyped-def]
        if blob.size == size and self.command == "GET":
            ranged.append(self.headers.get("Range") or "")
        original(self, blob, headers)

    handler._content = content  # type: ignore[attr-defined]
    root = download(NAME, patience=HASTE).root
    assert (root / UNET).read_bytes() == (tiny / UNET).read_bytes()
    assert any(value.startswith("bytes=") and value != "bytes=0-" for value in ranged), ranged


def test_gated_private_and_unknown(repo: HubServer, tiny: Path) -> None:
    repo.store.repos[NAME].gated = True
    with pytest.raises(NetworkError, match="gated") as caught:
        download(NAME, patience=HASTE)
    assert "hf auth login" in str(caught.value.hint)
    repo.store.repos[NAME].gated, repo.store.repos[NAME].private = False, True
    with pytest.raises(CheckpointError, match="or it is private") as hidden:
        download(NAME, patience=HASTE)
    assert "hf auth login" in str(hidden.value.hint)
    with pytest.raises(CheckpointError, match="neither a folder here nor a repository"):
        download("someone/nothing", patience=HASTE)


def test_unknown_revision(repo: HubServer) -> None:
    with pytest.raises(CheckpointError, match="no revision 'v9'"):
        download(NAME, revision="v9", patience=HASTE)


def test_a_repository_that_is_no_pipeline(online: HubServer) -> None:
    online.store.create("someone/empty")
    with pytest.raises(CheckpointError, match=r"no model_index\.json"):
        download("someone/empty", patience=HASTE)


def test_offline_uses_the_cache_and_names_what_it_lacks(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    root = download(NAME, patience=HASTE).root
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(repo.requests)
    assert download(NAME).root == root and download(NAME).offline
    (root / UNET).unlink()
    for path in (root / "vae").iterdir():
        path.unlink()
    with pytest.raises(NetworkError, match="it lacks: the weights of unet, vae") as caught:
        download(NAME)
    assert f"exporter download {NAME}" in str(caught.value.hint)
    assert len(repo.requests) == asked, "offline means that nobody was asked"


def test_a_hub_that_cannot_be_reached_leaves_the_cache_usable(
    repo: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = download(NAME, patience=HASTE).root
    repo.faults.add(Fault("GET", "/api/models", "503", 99))
    assert download(NAME, patience=Patience(tries=1)).root == root


def test_the_command_line(repo: HubServer, client: Client, tmp_path: Path) -> None:
    ran = client("download", NAME, "--json")
    assert ran.returncode == 0, ran.stderr
    document = json.loads(ran.stdout)
    assert document["revision"] == sha(repo)
    assert Path(document["root"]).is_relative_to(tmp_path / "hf-home")
    repo.store.repos[NAME].gated = True
    refused = client("download", NAME, home="other-home")
    assert refused.returncode == 7 and "hf auth login" in refused.stderr
    allowed = client("download", NAME, home="other-home", token=True)
    assert allowed.returncode == 0
    assert TOKEN not in allowed.stdout + allowed.stderr + refused.stderr


def test_no_org_name(client: Client) -> None:
    ran = client("download", "./here")
    assert ran.returncode == 2 and "is no org/name" in ran.stderr


def test_of_a_base_only_what_a_file_lacks(online: HubServer, tmp_path: Path) -> None:
    """The transformer is in the file: its weights on the Hub, most of the model, are left there."""
    folder = make("flux", tmp_path / "flux")
    online.store.upload("someone/flux", folder)
    state = original_layout.flux(*original_layout.read(folder, "transformer"))
    path = original_layout.save(state, tmp_path / "flux1-dev.safetensors")
    single = resolve(path, base="someone/flux")
    single.validate()
    assert single.lacking == {} and len(single.files) > 10
    root = single.weight_files("vae")[0].parents[1]
    assert (root / "transformer" / "config.json").is_file()
    assert not list((root / "transformer").glob("*.safetensors"))
    wanted = resolve(folder).stored("text_encoder_2")
    assert set(single.stored("text_encoder_2")) == set(wanted)
