"Checkpoints of others: official outputs, the layouts that occur, hostile files, and random ones."

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from miniature import arrays, expected, write_hostile  # noqa: E402
from official import Persistent, official_names, save_nvlabs, save_rosinality  # noqa: E402
from checkpoint_fuzz import fuzz  # noqa: E402

from natrig_nb.generator.checkpoints import CheckpointError  # noqa: E402
from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2  # noqa: E402
from natrig_nb.generator.load import load_generator
from natrig_nb.generator.stylegan2 import save_generator  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
OFFICIAL = Path(os.environ.get("NATRIG_REFERENCE", "no-reference"))  # made by official code
OWN = ROOT / "tests/reference"  # made by tests/miniature.py
NETWORKS = [
    path
    for folder in (OWN, OFFICIAL)
    for path in sorted((folder / "stylegan2").glob("*-*.p*"))
    if path.suffix in (".pkl", ".pt")
]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
slow = pytest.mark.skipif(
    not os.environ.get("NATRIG_SLOW"), reason="takes minutes: set NATRIG_SLOW=1"
)


def apart(ours, theirs):
    return float((ours.cpu() - torch.as_tensor(theirs)).abs().max())


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda path: path.stem)
def reference(request):
    "A reference network, and what the official code or our own arithmetic in NumPy made of it."
    path = request.param
    return load_stylegan2(path), dict(np.load(path.with_name(path.stem + "-expected.npz")))


def test_the_networks_are_there():
    stems = {path.stem for path in NETWORKS}
    assert {"nvlabs-16", "rosinality-16"} <= stems
    assert OFFICIAL.is_dir() == ("nvlabs-64" in stems)


def test_arithmetic_in_numpy_as_official(reference):
    "What the small files expect is computed as the official code does."
    G, official = reference
    one = {name: value if name == "direction" else value[:1] for name, value in official.items()}
    ours = expected(arrays(G.cpu()), np.float64(one["z"]), np.float64(one["direction"]))
    shared = [name for name in ours if name in one and ours[name].ndim == one[name].ndim]
    assert len(shared) >= 7
    for name in shared:
        assert np.abs(ours[name] - one[name]).max() < 1e-5, name


def test_w_as_official(reference):
    G, expected = reference
    z, broad = (
        torch.from_numpy(expected["z"]),
        lambda w: w if w.ndim == 3 else w[:, None].repeat(G.mapping.num_ws, 1),
    )
    for key, settings in (
        ("w_psi1", dict()),
        ("w_psi07", dict(psi=0.7)),
        ("w_psi07_cutoff4", dict(psi=0.7, cutoff=4)),
    ):
        if key in expected:
            assert apart(G.mapping(z, **settings), broad(expected[key])) < 2e-5, key
    edited = G.mapping(z, psi=0.7)
    edited[:, :4] += 0.5 * torch.from_numpy(expected["direction"])
    assert apart(edited, expected["w_edit_psi07"]) < 2e-5
    if "latent_avg" in expected:
        assert apart(G.w_avg, expected["latent_avg"]) == 0


def test_images_as_official(reference):
    G, expected = reference
    z = torch.from_numpy(expected["z"])
    ws, edited = G.mapping(z, psi=0.7), G.mapping(z, psi=0.7)
    edited[:, :4] += 0.5 * torch.from_numpy(expected["direction"])
    images = dict(
        img_psi1=G.synthesis(G.mapping(z)),
        img_psi07=G.synthesis(ws),
        img_psi07_nonoise=G.synthesis(ws, noise="none"),
        img_edit_psi07=G.synthesis(edited),
        img_psi07_cutoff4=G.synthesis(G.mapping(z, psi=0.7, cutoff=4)),
    )
    for key in set(images) & set(expected):
        assert apart(images[key], expected[key]) < 5e-5, key
    assert len(set(images) & set(expected)) >= 4
    assert images["img_psi07"].abs().max() > 1  # raw, not clamped
    assert apart(G.synthesis(ws, noise="random"), expected["img_psi07"]) > 1e-3


def test_contract_of_a_loaded_generator(reference):
    G, expected = reference
    w = G.sample(3, seed=0, psi=0.7)
    r = G.resolution
    assert w.shape == (3, G.settings["w_dim"]) and G(w).shape == (3, 3, r, r)
    assert (
        apart(G.sample(8, seed=0, psi=0.7)[:3], w) < 1e-5
        and not any(p.requires_grad for p in G.parameters())
        and not G.training
    )


def network(seed=0, average=True, **settings):
    "A random generator whose noise and mean latent matter."
    torch.manual_seed(seed)
    G = StyleGAN2(
        **{**dict(resolution=16, z_dim=12, w_dim=12, layers=3, base=128, most=16), **settings}
    ).requires_grad_(False)
    for name, p in G.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            p.copy_(torch.randn_like(p) / 3)
    G.mapping.w_avg.normal_()
    return G


def agree(G, H, **noise):
    "Do two generators make the same pictures?"
    z = torch.randn(3, G.z_dim, generator=torch.Generator().manual_seed(1))
    return (
        apart(H.mapping(z, 0.6, 3), G.mapping(z, 0.6, 3)) < 2e-5
        and apart(H.synthesis(H.mapping(z, 0.6), **noise), G.synthesis(G.mapping(z, 0.6), **noise))
        < 5e-5
    )


@pytest.mark.parametrize(
    "layout",
    [
        dict(),
        dict(protocol=3),
        dict(protocol=2, numpy1=True),
        dict(protocol=5),
        dict(nested=False, numpy1=True),
        dict(protocol=3, nested=False),
    ],
)
@pytest.mark.parametrize(
    "settings",
    [
        dict(clamp=1.5),
        dict(z_dim=7, w_dim=20, layers=1, resolution=32),
        dict(layers=8, resolution=8, base=100, most=64, clamp=256),
    ],
)
def test_nvlabs_layouts(tmp_path, layout, settings):
    save_nvlabs(G := network(**settings), tmp_path / "x.dat", **layout)
    H = load_stylegan2(tmp_path / "x.dat")
    assert agree(G, H) and H.settings["clamp"] == G.settings["clamp"]
    if settings.get("clamp") == 1.5:
        assert H(H.sample(64, 0)).abs().max() > 1.5 and not agree(
            network(**settings | dict(clamp=None)), H
        )


def test_half_precision_and_channels_last(tmp_path):
    G = network()
    for p in G.parameters():
        p.copy_(p.half())
    expected, last = network(), torch.channels_last
    expected.load_state_dict(G.state_dict())
    for m in G.modules():
        if getattr(getattr(m, "weight", None), "ndim", 0) == 4:
            m.weight.data = m.weight.data.half().to(memory_format=last)
    assert not G.synthesis.b16.conv0.weight.is_contiguous()
    save_nvlabs(G, tmp_path / "x.pkl")
    H = load_stylegan2(tmp_path / "x.pkl")
    assert agree(expected, H) and {p.dtype for p in H.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "layout", [dict(), dict(zipped=False), dict(training=True), dict(training=True, zipped=False)]
)
@pytest.mark.parametrize(
    "settings", [dict(), dict(z_dim=20, w_dim=20, layers=8, resolution=64), dict(widths=[6, 10, 3])]
)
def test_rosinality_layouts(tmp_path, layout, settings):
    save_rosinality(G := network(**settings), tmp_path / "x.dat", **layout)
    assert agree(G, load_stylegan2(tmp_path / "x.dat"))


def test_rosinality_without_the_mean_latent_or_noise(tmp_path):
    save_rosinality(G := network(), tmp_path / "x.pt", average=False, noises=False, training=True)
    with pytest.warns(UserWarning, match="expected noise pictures, got none"):
        H = load_stylegan2(tmp_path / "x.pt")
    z = torch.randn(4096, G.z_dim, generator=torch.Generator().manual_seed(7))
    assert apart(H.w_avg, G.mapping(z)[:, 0].mean(0)) < 0.1 * G.mapping(z)[:, 0].std()
    G.mapping.w_avg.copy_(H.w_avg)
    assert agree(G, H, noise="none")


def test_own_files(tmp_path):
    save_generator(G := network(clamp=1.5), tmp_path / "x")
    assert (
        agree(G, load_stylegan2(tmp_path / "x"))
        and load_stylegan2(tmp_path / "x").settings == G.settings
    )
    save_nvlabs(G, tmp_path / "y")  # from any origin to our own format and back
    save_generator(load_stylegan2(tmp_path / "y"), tmp_path / "z")
    assert agree(G, load_generator(tmp_path / "z"))


def refused(path):
    "The message with which a file is refused."
    with pytest.raises(CheckpointError) as error:
        load_stylegan2(path)
    return str(error.value)


def test_other_networks_are_refused_by_name(tmp_path):
    path = tmp_path / "x"
    save_nvlabs(network(), path, c_dim=10)
    assert "class-conditional" in refused(path) and str(path) in refused(path)
    save_nvlabs(network(), path, architecture="resnet")
    assert "expected architecture ['skip'], got ['resnet']" in refused(path)
    newer = Persistent(
        "Generator",
        _modules={
            "synthesis": Persistent(
                "SynthesisNetwork", _modules={"input": Persistent("SynthesisInput")}
            )
        },
    )
    with official_names():
        path.write_bytes(pickle.dumps({"G_ema": newer}))
    assert "StyleGAN3" in refused(path)
    torch.save({"g_running": {}}, path)
    assert "StyleGAN1" in refused(path)
    path.write_bytes(b"\x80\x04\x8c\x14dnnlib.tflib.network\x8c\x07Network\x93.")
    assert "TensorFlow" in refused(path)
    path.write_bytes(b"PK\3\4")
    assert "empty file" in refused(path)
    assert "no such file" in refused(tmp_path) and "no such file" in refused(tmp_path / "nowhere")


def test_every_truncation_is_one_error(tmp_path):
    save_nvlabs(network(resolution=8, most=4), tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    for n in range(20, len(whole), len(whole) // 40):
        (tmp_path / "y").write_bytes(whole[:n])
        refused(tmp_path / "y")


def test_only_what_is_used_is_read(tmp_path):
    "A file of 80 MB of which the generator is a thousandth loads without taking 80 MB."
    save_nvlabs(network(), tmp_path / "x", others=[("D_extra", torch.zeros(20_000_000))])
    code = "import sys; from official import load_stylegan2, peak_memory; before = peak_memory(); load_stylegan2(sys.argv[1]); print(peak_memory() - before)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    assert int(done.stdout) < 40_000_000


HOSTILE = """
import json, sys, time
from pathlib import Path
from official import load_stylegan2, peak_memory
from natrig_nb.generator.checkpoints import CheckpointError
for path in sys.argv[1:]:
    before, cpu = peak_memory(), time.process_time()
    try: outcome = type(load_stylegan2(path)).__name__
    except CheckpointError as e: outcome = str(e)
    print(json.dumps([Path(path).name, outcome, time.process_time() - cpu, (peak_memory() - before) // 2**20]))
"""


@pytest.fixture(scope="module", params=[OWN, OFFICIAL] if OFFICIAL.is_dir() else [OWN])
def hostile(request, tmp_path_factory):
    "A folder of checkpoints that are made to do harm, and the tensors of the sound one among them."
    if request.param is OFFICIAL:
        folder = OFFICIAL.resolve() / "checkpoints-hostile"
        return folder, load_file(folder / "tiny_expected.safetensors")
    folder = tmp_path_factory.mktemp("hostile")
    return folder, write_hostile(folder).state_dict()


def test_hostile_files(hostile, tmp_path):
    files = sorted(hostile[0].glob("*.pkl"))
    done = subprocess.run(
        [sys.executable, "-c", HOSTILE, *map(str, files)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    rows = {
        name: (outcome, seconds, mb)
        for name, outcome, seconds, mb in map(json.loads, done.stdout.splitlines())
    }
    assert (
        len(rows) == len(files) >= 8 and list(tmp_path.iterdir()) == []
    )  # no NATRIG_PICKLE_IS_EXECUTED
    assert all(seconds < 2 and mb < 500 for _, seconds, mb in rows.values()), rows
    says = dict(
        bad_no_g_ema="expected G_ema or g_ema",
        bad_stride0_bomb="expected a tensor inside its",
        bad_truncated="got the end of the file",
        evil_inner_storage_bytes="got the name posix.system",
        evil_posix_system="got the name posix.system",
        legacy_tf_tuple="TensorFlow",
        ok_tiny="StyleGAN2",
        evil_module_src="StyleGAN2",
    )
    for name, words in says.items():
        assert words in rows[f"{name}.pkl"][0], rows[f"{name}.pkl"]


@pytest.mark.parametrize("name", ["ok_tiny", "evil_module_src"])
def test_tiny_networks_hold_the_right_tensors(hostile, name):
    folder, expected = hostile
    state = load_stylegan2(folder / f"{name}.pkl").state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == {
        k: tuple(v.shape) for k, v in expected.items()
    }
    assert all(torch.equal(state[k].cpu(), v) for k, v in expected.items())


def test_random_damage():
    found = fuzz(300)
    assert found["cases"] >= 300 and (found["executions"], found["hangs"], found["uncaught"]) == (
        0,
        0,
        0,
    ), found
    assert found["refused"] > 150 and found["loaded"] > 0, found


def test_the_watch_sees_what_it_should():
    "A loader that runs something and one that crashes are counted."
    assert fuzz(3, load=lambda path: os.system("true"))["executions"] == 3
    assert fuzz(2, load=lambda path: eval("1"))["executions"] == 2
    assert fuzz(2, load=lambda path: Path("NATRIG_PICKLE_IS_EXECUTED").touch())["executions"] == 2
    assert fuzz(2, load=lambda path: [].pop())["uncaught"] == 2


@slow
def test_random_damage_at_length():
    subprocess.run([sys.executable, ROOT / "tests" / "checkpoint_fuzz.py", "10000"], check=True)
    found = json.loads((ROOT / "data/results/fuzz.json").read_text())
    assert found["cases"] >= 10_000 and (
        found["executions"],
        found["hangs"],
        found["uncaught"],
    ) == (0, 0, 0), found
