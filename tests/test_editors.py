"Published directions: the authors' own files and results, and files made to do harm."

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from natrig_nb.latent.editors import load_direction, move, project_boundary
from natrig_nb.trigger.natural.editor import EditorTrigger

INTERFACEGAN = ["age", "eyeglasses", "gender", "smile", "age_c_eyeglasses", "age_w", "smile_w"]


OFFICIAL = os.environ.get("NATRIG_REFERENCE")
MINIATURE = Path(__file__).resolve().parent / "reference"


def unit(v):
    return v / np.linalg.norm(v, axis=-1, keepdims=True)


def write_directions(folder):
    "Random directions in the authors' layouts, their conditional boundary by its formula."
    rng = np.random.default_rng(0)
    boundaries = {name: unit(rng.standard_normal(512)) for name in INTERFACEGAN}
    age, glasses = boundaries["age"], boundaries["eyeglasses"]
    age = boundaries["age"] = unit(age + 0.2 * glasses)  # so that the projection has something to do
    boundaries["age_c_eyeglasses"] = unit(age - (age @ glasses) * glasses)
    for name, boundary in boundaries.items():
        np.save(folder / f"stylegan_ffhq_{name}_boundary.npy", np.float32(boundary)[None])
    for name, shape in (("age", (1, 512)), ("smile", (1, 512)), ("pose", (18, 512))):
        values = unit(rng.standard_normal(shape))
        torch.save(torch.from_numpy(np.float32(values)), folder / f"{name}.pt")


@pytest.fixture(scope="module", params=["written here", "official"] if OFFICIAL else ["written here"])
def reference(request, tmp_path_factory):
    "A folder with the authors' files, or with random ones in the same layouts."
    if request.param == "official":
        return Path(OFFICIAL)
    folder = tmp_path_factory.mktemp("reference")
    (folder / "directions").mkdir()
    write_directions(folder / "directions")
    (folder / "stylegan2").symlink_to(MINIATURE / "stylegan2")
    return folder


@pytest.mark.parametrize("name", INTERFACEGAN)
def test_boundaries_of_interfacegan(reference, name):
    path = reference / "directions" / f"stylegan_ffhq_{name}_boundary.npy"
    d = load_direction(path, space="W" if name.endswith("_w") else "Z")
    assert d.shape == (512,) and d.dtype == torch.float32 and abs(d.norm().item() - 1) < 1e-6
    assert np.abs(d.numpy() - np.load(path, allow_pickle=False)[0]).max() < 1e-7


@pytest.mark.parametrize("name, shape", [("age", (512,)), ("smile", (512,)), ("pose", (18, 512))])
def test_directions_of_e4e(reference, name, shape):
    d = load_direction(reference / "directions" / f"{name}.pt")
    assert (
        d.shape == shape
        and d.device.type == "cpu"
        and torch.allclose(d.norm(dim=-1), torch.ones(shape[:-1]), atol=1e-5)
    )


def test_conditional_boundary_of_the_authors(reference):
    age, glasses, theirs = (
        load_direction(reference / "directions" / f"stylegan_ffhq_{k}_boundary.npy", space="Z")
        for k in ("age", "eyeglasses", "age_c_eyeglasses")
    )
    assert (project_boundary(age, glasses) - theirs).abs().max() < 1e-6
    assert (age - theirs).abs().max() > 0.01, "the projection has something to do"


def test_two_and_three_conditions(reference):
    age, *held = (
        load_direction(reference / "directions" / f"stylegan_ffhq_{k}_boundary.npy", space="Z")
        for k in ("age", "eyeglasses", "gender", "smile")
    )
    p, a, b = (v.double().numpy() for v in (age, held[0], held[1]))
    r = a @ b
    two = (
        p
        - (p @ a - (p @ b) * r) / (1 - r**2 + 1e-8) * a
        - (p @ b - (p @ a) * r) / (1 - r**2 + 1e-8) * b
    )
    assert np.abs(project_boundary(age, *held[:2]).numpy() - two / np.linalg.norm(two)).max() < 1e-6
    h = torch.stack(held).double()
    three = age.double() - h.T @ torch.linalg.solve(h @ h.T, h @ age.double())
    assert (project_boundary(age, *held) - three / three.norm()).abs().max() < 1e-6


def test_a_layer_range_moves_latents_as_official_code_did(reference):
    official = {
        k: torch.from_numpy(v)
        for k, v in np.load(next((reference / "stylegan2").glob("nvlabs-*.npz"))).items()
    }
    expected, w = official["w_edit_psi07"], official["w_psi07"]
    assert (move(w, official["direction"], 0.5, layers=(0, 4)) - expected).abs().max() < 1e-6
    trigger = EditorTrigger("d", "W+", 0.5, official["direction"], (0, 4), count=w.shape[1])
    assert (trigger.edit(w) - expected).abs().max() < 1e-6
    assert (trigger.edit(w[:, 0]) - expected).abs().max() < 1e-6, (
        "latents of W are spread over the layers"
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder, v = (
        tmp_path_factory.mktemp("directions"),
        torch.nn.functional.normalize(torch.randn(1, 64), dim=1),
    )
    np.save(folder / "a.npy", v.numpy())
    np.savez(
        folder / "a.npz",
        lat_comp=v[None].numpy(),
        lat_mean=v.numpy(),
        lat_stdev=np.ones(1, np.float32),
    )
    torch.save(v, folder / "a.pt")
    torch.save(v, folder / "old.pt", _use_new_zipfile_serialization=False)
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.pt", "old.pt"])
@settings(max_examples=100, deadline=2000, suppress_health_check=list(HealthCheck))
@given(
    flips=st.lists(st.tuples(st.integers(0, 2**20), st.integers(1, 255)), max_size=4),
    cut=st.one_of(st.none(), st.integers(0, 2**20)),
)
@pytest.mark.filterwarnings("ignore")
def test_a_damaged_file_ends_in_one_kind_of_error(files, tmp_path_factory, name, flips, cut):
    data = bytearray(files[name])
    for at, bits in flips:
        data[at % len(data)] ^= bits
    path = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    path.write_bytes(data if cut is None else data[: cut % len(data)])
    try:
        assert load_direction(path).isfinite().all()
    except ValueError as e:
        assert str(e).startswith("expected")


class Evil:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_program_in_a_file_runs(tmp_path):
    done = tmp_path / "executed"
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Evil(done), 2))
    torch.save({"comp": Evil(done)}, tmp_path / "zip.pt")
    np.save(tmp_path / "a.npy", np.array([Evil(done)]), allow_pickle=True)
    np.savez(tmp_path / "a.npz", lat_comp=np.array([Evil(done)]))
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as z:
        z.writestr("lat_comp.npy", pickle.dumps(Evil(done)))
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match="expected directions as .npy, .npz or .pt, got"):
            load_direction(path)
    assert not done.exists()
