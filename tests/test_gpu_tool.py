"""tools/gpu.py at toy size on a CPU: kernels, both phases, bf16, resuming, the record."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import gpu

from natrig_nb.generator import stylegan2
from natrig_nb.generator.stylegan2 import StyleGAN2, load_stylegan2
from natrig_nb.generator.stylegan2_training import Discriminator
from natrig_nb.nn.attributes import AttributeNet, save_attributes

TOY = dict(batch=4, dim=128, base=64, most=8, layers=2, judge_base=64, judge_most=8, half_life=5)


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("NATRIG_DEVICE", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "Inputs of 40 portraits at 16 pixels, with networks that were never trained."
    folder = tmp_path_factory.mktemp("inputs")
    gpu.make_portraits(folder, count=24, held=16, cores=2, size=16)
    torch.manual_seed(0)
    for name, width in (("teacher", 4), ("judge", 6)):
        save_attributes(
            AttributeNet(gpu.load_names(folder), width).eval(), folder / f"{name}.safetensors"
        )
    return folder


def toy(folder, out, known=True, **settings):
    "A run of ten steps, six of them in the game."
    data = gpu.load_inputs(folder)
    if not known:
        data.codes = None
    recipe = gpu.Recipe(**TOY, copying=0.4, shaken=not known)
    return gpu.train_stylegan(data, out, recipe, gpu.Pace(**{"steps": 10} | settings))


def test_folded_kernels_change_nothing():
    torch.manual_seed(0)
    G, D = StyleGAN2(32, 8, 8, 2, 64, 8).double(), Discriminator(32, base=64, most=8).double()
    w, x = torch.randn(2, 8).double(), torch.rand(4, 3, 32, 32).double()
    for name, p in G.named_parameters():
        if name.endswith(("noise_strength", "bias")):
            nn.init.normal_(p)
    plain = G(w), D(x)
    with gpu.folded():
        fast = G(w), D(x)
    for a, b in zip(plain, fast, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert stylegan2.SynthesisLayer.forward is not gpu.folded_layer


def test_shake_of_strength_zero_only_mirrors():
    x = torch.rand(6, 3, 16, 16) * 2 - 1
    y = gpu.shake(x, torch.zeros(()))
    same, mirrored = ((y - z).abs().amax((1, 2, 3)) < 1e-4 for z in (x, x.flip(3)))
    assert bool((same | mirrored).all())


def test_the_reader_is_the_attribute_network():
    net, x = AttributeNet(["smile", "hat"], 4).eval(), torch.rand(3, 3, 16, 16)
    for conv in net.convs:
        conv[1].running_mean.normal_()
        conv[1].running_var.uniform_(0.5, 2)
    reader = gpu.Reader(net)
    *maps, features = reader(x)
    for a, b in zip([*maps, reader.scores(features)], [*net.stages(x), net(x)], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_groups_of_the_discriminator_stay_pure():
    pair = gpu.side_by_side(torch.zeros(8, 3, 4, 4), torch.rand(8, 3, 4, 4)).reshape(4, 4, 3, 4, 4)
    assert [bool((pair[:, i] == 0).all()) for i in range(4)] == [True, False, True, False]


def test_rare_looks_come_up_more_often(folder):
    data = gpu.load_inputs(folder)
    chance = data.odds.diff(prepend=torch.zeros(1))
    assert abs(float(data.odds[-1]) - 1) < 1e-6 and float(chance.max()) > 1.2 * float(chance.min())


@pytest.mark.parametrize("known", [True, False], ids=["known codes", "encoder"])
def test_both_phases_and_the_file(folder, tmp_path, known):
    run = toy(folder, tmp_path, known)
    assert run.game and run.step == 10
    G = load_stylegan2(tmp_path / "generator.safetensors")
    w = G.sample(2, 0)
    torch.testing.assert_close(G(w), run.ema(w))
    assert all(bool(torch.isfinite(p).all()) for p in G.parameters())


@pytest.mark.parametrize("stop", [2, 7], ids=["in phase one", "in the game"])
def test_a_stopped_run_goes_on(folder, tmp_path, stop):
    toy(folder, tmp_path, steps=10, stop=stop)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["step"] == stop and state["game"] == (stop > 4)
    run = toy(folder, tmp_path)
    assert run.step == 10 and run.log[-1]["step"] == 10


def test_mixed_precision_stays_close(folder, tmp_path, monkeypatch):
    losses = []
    for mixed in (False, True):
        monkeypatch.setattr(gpu, "MIXED", mixed)
        run = gpu.new_run(gpu.load_inputs(folder), gpu.Recipe(**TOY))
        gpu.set_pace(run, 0.5)
        torch.manual_seed(1)
        losses.append([float(gpu.copy_step(run)["copy"]) for _ in range(4)])
    a, b = torch.tensor(losses)
    assert float((a - b).abs().max()) < 0.05 * float(a.abs().mean()) and not torch.equal(a, b)


@pytest.mark.parametrize("known", [True, False], ids=["known codes", "encoder"])
def test_mixed_precision_plays_the_game(folder, tmp_path, monkeypatch, known):
    monkeypatch.setattr(gpu, "MIXED", True)
    run = toy(folder, tmp_path, known)
    weights = [p for k in run.NETS for p in getattr(run, k).parameters()]
    assert run.game and all(bool(torch.isfinite(p).all()) for p in weights)


def test_the_record(folder, tmp_path):
    run = toy(folder, tmp_path)
    found = gpu.measure_quality(run.ema, run.data)
    assert (
        found["faces"] == 8 and found["judge"]["frechet"] > found["judge"]["frechet_real_half"] > 0
    )
    assert (
        set(found["rare_looks"])
        == set(run.data.judge.names)
        == set(found["correlation_with_truth"])
    )
    rate = gpu.speed(run, size=128)
    assert 0 < rate["tflop_per_second"] < 3 * rate["peak_tflop_per_second"]
    assert sum(f.stat().st_size for f in tmp_path.iterdir() if f.name != "state.pt") < 16e6
    json.dumps(found | rate)


def test_a_diffusion_model_within_minutes(tmp_path):
    gpu.make_portraits(tmp_path, count=8, held=8, cores=1)
    save_attributes(
        AttributeNet(gpu.load_names(tmp_path), 4).eval(), tmp_path / "teacher.safetensors"
    )
    save_attributes(
        AttributeNet(gpu.load_names(tmp_path), 4).eval(), tmp_path / "judge.safetensors"
    )
    data = gpu.load_inputs(tmp_path)
    folder = gpu.train_pipeline(data, tmp_path / "out", minutes=1e-6, batch=2)
    notes = [
        json.loads((tmp_path / f"out/{k}.json").read_text()) for k in ("autoencoder", "denoiser")
    ]
    assert [note["steps"] for note in notes] == [1, 1] and (folder / "model_index.json").exists()


def test_missing_inputs_are_named(tmp_path):
    with pytest.raises(ValueError, match="run `inputs` first"):
        gpu.load_inputs(tmp_path)
