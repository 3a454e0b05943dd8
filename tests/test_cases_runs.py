"""What users bring to walkthrough, grid, attack and train-generator, and what they are told."""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from natrig_nb import cli
from natrig_nb.cli import main, parsed, run_config
from natrig_nb.core import FAKE, REAL, resolve
from natrig_nb.data.portraits import portraits
from natrig_nb.generator.base import render
from natrig_nb.generator.load import load_generator
from natrig_nb.runs.artifacts import ensure
from natrig_nb.runs.config import RunConfig, changed
from natrig_nb.runs.experiments.walkthrough import walkthrough, walkthrough_cells
from natrig_nb.runs.preparation import (
    Recipes,
    faces_artifact,
    load_faces,
    load_splits,
    splits_artifact,
)
from natrig_nb.runs.ready import possible_cells
from natrig_nb.runs.results import Results, read_results
from natrig_nb.runs.settings import SETTINGS, claim_folder, read_settings
from natrig_nb.trigger.base import Edit

GREEN, RED = (0, 160), (160, 0)  # real faces and fakes; the third channel is the number
DIFFUSION, STYLEGAN = (str(resolve(f"data/portraits-{n}")) for n in ("diffusion", "generator.safetensors"))


def pictures(folder, color, n, start=0):
    "Pictures of one color, numbered."
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(start, start + n):
        Image.new("RGB", (64, 64), (*color, i % 256)).save(folder / f"{i:04d}.png")
    return folder


def save(images, folder):
    "Pictures from a tensor."
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{i:04d}.png")
    return folder


def table(path, folder, n, names="Smiling,Young", prefix=""):
    "A table of two attributes."
    rows = [f"{prefix}{i:04d}.png,{i % 2},{i // 2 % 2}" for i in range(n)]
    path.write_text("\n".join([f"file,{names}", *rows]))
    return path


def said(capsys, *arguments):
    "Exit code, output and errors of a command; never a traceback, and one line of error."
    capsys.readouterr()
    code = main([str(a) for a in arguments])
    out, errors = capsys.readouterr()
    mine = [line for line in errors.splitlines() if line.startswith("natrig:")]
    assert "Traceback" not in errors + out and len(mine) == (code == 2)
    assert "fault of natrig" not in errors
    return code, out, mine[0] if mine else ""


def settings(*arguments):
    "The settings that a walkthrough would have."
    return run_config(parsed(["walkthrough", *map(str, arguments)])[1], lambda given: STYLEGAN)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    "Each test runs in an empty folder."
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


# K1: real faces and fakes are taken by label


def both_sides(root, real, fake):
    "A collection of 8 real faces and 9 fakes."
    pictures(root / real, GREEN, 8)
    pictures(root / fake, RED, 9)
    return root


FEW = ("--train", 4, "--held-out", 4, "--epochs", 1)
SIDES = [("0_real", "1_fake"), ("A_fakes/real", "A_fakes/fake"), ("train/real", "train/fake")]
SIDES += [("zz/original", "aa/deepfakes"), ("photos", "ai-generated"), ("ffhq", "stylegan2")]


@pytest.mark.parametrize("real, fake", SIDES)
@pytest.mark.parametrize("kind", ["folder", "zip", "backslashes"])
def test_a1_each_side_by_its_label(tmp_path, real, fake, kind):
    root = both_sides(tmp_path / "mixed", real, fake)
    if kind != "folder":
        archive = tmp_path / "mixed.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for path in sorted(root.rglob("*.png")):
                name = path.relative_to(root.parent).as_posix()
                file.write(path, name.replace("/", "\\") if kind == "backslashes" else name)
        root = archive
    cfg = settings("--faces", root, *FEW)
    assert cfg.generator.fakes == str(root)  # those beside the real faces
    recipes, out = Recipes(), tmp_path / "out"
    faces = load_faces(ensure(faces_artifact(recipes, cfg.data), out))
    splits = load_splits(ensure(splits_artifact(recipes, cfg.data, cfg.generator), out))
    for ds in (*(faces[part] for part in ("train", "held_out")), splits.real, splits.fake, splits.train):
        is_green = ds.images[:, 1, 0, 0] == GREEN[1]
        assert torch.equal(is_green, ds.labels == REAL) and len(ds)
    assert (splits.fake.labels == FAKE).all()


def test_a1_refused_where_a_side_is_empty(tmp_path, capsys):
    root = both_sides(tmp_path / "mixed", "real", "fake")
    code, _, error = said(capsys, "walkthrough", "--faces", root / "fake", "--fakes", root, "--out", "o")
    assert code == 2 and "expected real faces in" in error and "9 fakes and no other" in error
    code, _, error = said(capsys, "walkthrough", "--faces", root, "--fakes", root / "real", "--out", "o")
    assert code == 2 and "expected fakes in" in error and not Path("o").exists()
    code, _, error = said(capsys, "train-generator", "--faces", root / "fake", "--out", "g")
    assert code == 2 and "expected real faces in" in error and not Path("g").exists()


def test_names_that_say_nothing_are_asked_for(tmp_path, capsys):
    root = both_sides(tmp_path / "mixed", "cats", "dogs")
    code, _, error = said(capsys, "walkthrough", "--faces", root, "--out", "o")
    assert code == 2 and "say which folder holds which" in error
    cfg = settings("--faces", root, "--real", "cats", "--fake", "dogs", *FEW)
    faces = load_faces(ensure(faces_artifact(Recipes(), cfg.data), tmp_path / "out"))
    assert (faces["train"].images[:, 1, 0, 0] == GREEN[1]).all()


def test_fakes_of_several_generators_are_in_every_part(tmp_path):
    pictures(tmp_path / "real", GREEN, 40)
    for i, name in enumerate(("aa", "bb")):
        pictures(tmp_path / "fake" / name, RED, 20, 100 * i)
    cfg = settings("--faces", tmp_path / "real", "--fakes", tmp_path / "fake", "--train", 20, "--held-out", 20)
    splits = load_splits(ensure(splits_artifact(Recipes(), cfg.data, cfg.generator), tmp_path / "out"))
    train = splits.train[splits.train.labels == FAKE]
    for ds, n in ((train, 10), (splits.fake, 5)):
        assert int((ds.images[:, 2, 0, 0] >= 100).sum()) == n


# sizes: any number of pictures


@pytest.mark.parametrize("n", [200, 500, 900])
def test_sizes_follow_from_what_is_given(tmp_path, capsys, n):
    pictures(tmp_path / "real", GREEN, n)
    pictures(tmp_path / "fake", RED, n)
    cfg = settings("--faces", tmp_path / "real", "--fakes", tmp_path / "fake")
    data = cfg.data
    assert data.n_train + data.n_held_out == n and data.n_substitute == 0
    assert cfg.victim.epochs == -(-6000 // data.n_train)
    printed = capsys.readouterr().out
    assert f"{data.n_train} to train on" in printed and "painted triggers only" in printed


def test_what_is_not_used_is_said_and_drawn_evenly(tmp_path, capsys):
    pictures(tmp_path / "real", GREEN, 250)
    pictures(tmp_path / "fake", RED, 200)
    cfg = settings("--faces", tmp_path / "real", "--fakes", tmp_path / "fake")
    assert "of 250 real faces 200 are used, drawn evenly" in capsys.readouterr().out
    faces = load_faces(ensure(faces_artifact(Recipes(), cfg.data), tmp_path / "out"))
    numbers = torch.cat([ds.images[:, 2, 0, 0] for ds in faces.values()]).int().tolist()
    assert numbers == [i * 250 // 200 for i in range(200)]


@pytest.mark.parametrize("real, fake", [(20, 20), (300, 12), (100, 300)])
def test_f10_too_few_pictures_are_one_sentence_at_once(tmp_path, capsys, real, fake):
    pictures(tmp_path / "real", GREEN, real)
    pictures(tmp_path / "fake", RED, fake)
    code, _, error = said(
        capsys, "walkthrough", "--faces", tmp_path / "real", "--fakes", tmp_path / "fake", "--out", "o"
    )
    assert code == 2 and f"got {min(real, fake)}" in error and "200 or more" in error
    assert not Path("o").exists()


# K12: cheap checks first, and a start that fails claims nothing


def test_f10_nothing_is_trained_for_twenty_pictures(tmp_path, capsys):
    faces = pictures(tmp_path / "f", GREEN, 20)
    rows = table(tmp_path / "t.csv", faces, 20)
    code, _, error = said(capsys, "walkthrough", "--faces", faces, "--attributes", rows, "--out", "o")
    assert code == 2 and "at least 160 real faces" in error
    assert not Path("o").exists() and not Path("runs").exists()


@pytest.mark.parametrize(
    "command, message",
    [
        (("walkthrough", "--detector", "resnet50"), "expected a detector among"),
        (("walkthrough", "--edits", "x:Nose:1"), "attributes in --edits among"),
        (("walkthrough", "--poison-rate", "0.0001"), "poisons at least one of 4000 samples"),
        (("walkthrough", "--rates", "0.0001"), "poisons at least one of 4000 samples"),
        (("walkthrough", "--label-mode", "clean"), "expected label_mode dirty for"),
        (("walkthrough", "--resolution", "128"), "expected --resolution 64, the size of the generator"),
        (("walkthrough", "--attribute-net", "no.safetensors"), "for --attribute-net, got nothing at"),
        (("walkthrough", "--generator", "no.pkl"), "expected a generator's file or folder"),
        (("grid", "--triggers", "smiel"), "expected triggers among"),
        (("grid", "--defenses", "stripp"), "expected defenses among"),
        (("grid", "--rates", "0.00001"), "poisons at least one of 4000 samples"),
    ],
)
def test_names_and_rates_are_checked_first(capsys, command, message):
    code, _, error = said(capsys, *command, "--out", "o")
    assert code == 2 and message in error
    assert not (Path("o") / SETTINGS).exists() and not (Path("o") / "artifacts").exists()


def test_f11_a_mended_command_goes_on_in_the_same_folder(tmp_path, capsys):
    claim_folder(changed(RunConfig(), seeds=2), "o")  # what a start left that measured nothing
    results = Results("o")
    results.write("failed", [{"metric": "error"}], "code", "cell", 1.0, "expected X, got Y")
    results.close()
    claim_folder(changed(RunConfig(), seeds=1), "o")
    assert read_settings("o").evaluation.seeds == 1 and read_results("o").empty


def test_f12_photographs_with_a_generator_alone(tmp_path, capsys):
    faces = pictures(tmp_path / "f", GREEN, 200)
    rows = table(tmp_path / "t.csv", faces, 200)
    cfg = settings("--faces", faces, "--attributes", rows, "--generator", STYLEGAN)
    assert [e.attribute for e in cfg.triggers.edits] == ["Smiling", "Young"]  # learned from the table
    code, _, error = said(capsys, "walkthrough", "--faces", faces, "--generator", STYLEGAN, "--out", "o")
    assert code == 2 and "expected --attributes or --attribute-net" in error


def test_c6_training_needs_attributes(tmp_path, capsys):
    faces = pictures(tmp_path / "f", GREEN, 90)
    for command in ("train-generator", "train-attributes"):
        code, _, error = said(capsys, command, "--faces", faces, "--out", "g")
        assert code == 2 and "give a table with --attributes" in error and not Path("g").exists()
    code, _, error = said(
        capsys, "train-attributes", "--faces", pictures(tmp_path / "few", GREEN, 9), "--attributes",
        table(tmp_path / "t.csv", faces, 9), "--out", "g",
    )  # fmt: skip
    assert code == 2 and "expected at least 80 faces to learn from, got 9" in error


# K8: every option is used or refused


@pytest.mark.parametrize("generator", [DIFFUSION, STYLEGAN])
def test_f1_given_faces_are_used_with_every_generator(tmp_path, generator):
    faces = pictures(tmp_path / "f", GREEN, 200)
    rows = table(tmp_path / "t.csv", faces, 200)
    cfg = settings("--faces", faces, "--attributes", rows, "--generator", generator, "--quick")
    assert (cfg.data.faces, cfg.data.attributes) == (str(faces), str(rows))
    assert cfg.data.dataset == "photographs" and cfg.generator.generator == generator
    real = load_faces(ensure(faces_artifact(Recipes(), cfg.data), tmp_path / "out"))["train"]
    assert (real.images[:, 1] == GREEN[1]).all()


UNUSED = [
    ("--fakes", "f", "--psi", "0.7"),
    ("--fakes", "f", "--prompt", "a face"),
    ("--fakes", "f", "--generator", STYLEGAN),
    ("--fakes", "f", "--substitute", "50"),
    ("--fakes", "f", "--percentile", "99"),
    ("--faces", "f", "--fakes", "f", "--edits", "smile:smile:1"),
    ("--faces", "f", "--fakes", "f", "--selected-percentile", "80"),
    ("--selected-percentile", "80"),
    ("--guidance", "2"),
    ("--generator", DIFFUSION, "--psi", "0.5"),
    ("--detector", "meso4", "--width", "8"),
    ("--real", "a"),
    ("--fake", "a"),
]


@pytest.mark.parametrize("options", UNUSED)
def test_options_without_effect_are_refused(capsys, options):
    both_sides(Path("f"), "real", "fake")
    code, _, error = said(capsys, "walkthrough", *options, "--out", "o")
    assert code == 2 and "it would not be used" in error and not Path("o").exists()


def test_zero_is_a_value():
    assert settings("--budget", 0).defenses.budget == 0
    assert settings("--generator", DIFFUSION, "--guidance", 0).generator.guidance == 0
    assert settings("--min-accuracy", 0).evaluation.min_accuracy == 0


@pytest.mark.parametrize(
    "options", [("--seeds", "1", "--seeds=2"), ("--train", "9", "--n-train", "9"), ("--size", "64", "--resolution", "64")]
)
def test_an_option_given_twice_is_refused(capsys, options):
    code, _, error = said(capsys, "walkthrough", *options, "--out", "o")
    assert code == 2 and "expected each option once" in error


# K14: ranges


@pytest.mark.parametrize(
    "command",
    [
        ("walkthrough", "--workers", "-1"),
        ("walkthrough", "--seeds", "0"),
        ("walkthrough", "--epochs", "-3"),
        ("walkthrough", "--psi", "nan"),
        ("walkthrough", "--poison-rate", "1"),
        ("walkthrough", "--poison-rate", "nan"),
        ("walkthrough", "--rates", "0"),
        ("walkthrough", "--percentile", "40"),
        ("walkthrough", "--target-share", "2"),
        ("walkthrough", "--bound", "-1"),
        ("walkthrough", "--min-accuracy", "90"),
        ("walkthrough", "--generator", DIFFUSION, "--guidance", "nan"),
        ("walkthrough", "--train", "-5"),
        ("attack", "--poison-rate", "2"),
        ("attack", "--seed", "-1"),
        ("train-generator", "--gan-steps", "-1"),
        ("audit", "m", "--faces", "f", "--seconds", "-1"),
        ("audit", "m", "--faces", "f", "--passes", "0"),
        ("perturbations", "--n-train", "0"),
    ],
)
def test_numbers_out_of_range_are_refused(capsys, command):
    code, _, error = said(capsys, *command, "--out", "o")
    assert code == 2 and "expected" in error and not Path("o").exists()


# K7: what was made belongs to what it was made from


def digests(folder):
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}


def test_f4_training_of_other_pictures_is_refused(tmp_path, capsys, monkeypatch):
    faces = save(portraits(90, seed=3).images, tmp_path / "a")
    other = save(portraits(90, seed=4).images, tmp_path / "b")
    rows = table(tmp_path / "t.csv", faces, 90)
    steps = ("--attributes", rows, "--recon-steps", 1, "--gan-steps", 1)
    assert said(capsys, "train-generator", "--faces", faces, *steps, "--out", "g")[0] == 0
    made = digests(Path("g"))
    code, _, error = said(capsys, "train-generator", "--faces", other, *steps, "--out", "g")
    assert code == 2 and "choose another --out" in error and digests(Path("g")) == made
    assert said(capsys, "train-generator", "--faces", faces, *steps, "--out", "g")[0] == 0
    assert digests(Path("g")) == made  # nothing was left to do
    monkeypatch.setattr(cli, "RECON_STEPS", 1)
    monkeypatch.setattr(cli, "GAN_STEPS", 1)
    Path("runs").mkdir()
    Path("g").rename("runs/faces")
    mine = {"faces": str(faces), "attributes": str(rows)}
    assert cli.trained_generator(mine) == "runs/faces"  # trained on the same: used
    assert digests(Path("runs/faces")) == made
    elsewhere = cli.training_folder(mine | {"faces": str(other)})
    assert elsewhere != Path("runs/faces") and not elsewhere.exists()  # trained anew, beside it


def test_f5_settings_name_files_in_full(tmp_path, capsys, monkeypatch):
    both_sides(Path("mine"), "real", "fake")
    claim_folder(settings("--faces", "mine", *FEW), "o")
    monkeypatch.chdir(tmp_path)
    both_sides(Path("mine"), "real", "fake")  # another folder at the same relative place
    cfg = read_settings(tmp_path / "here" / "o")
    assert cfg.data.faces == cfg.generator.fakes == str(tmp_path / "here" / "mine")


# a small study, to its end


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    "A walkthrough of given fakes with a selected trigger, its folder and what it printed."
    root = tmp_path_factory.mktemp("study")
    G = load_generator(STYLEGAN)
    fakes = save(render(G, G.sample(150, seed=6)), root / "fakes")
    real = save(portraits(150, seed=5).images, root / "real")
    net = resolve("data/portraits-attributes.safetensors")
    shutil.copy(net, root / "net.safetensors")
    command = ["walkthrough", "--faces", str(real), "--fakes", str(fakes), "--seeds", "1"]
    command += ["--attribute-net", str(root / "net.safetensors"), "--selected-percentile", "60"]
    command += ["--train", "50", "--held-out", "40", "--epochs", "1", "--detector", "meso4"]
    command += ["--edits", "smile:smile:1", "--poison-rate", "0.08", "--workers", "0"]
    command += ["--budget", "400", "--n-inputs", "8", "--out", str(root / "o")]
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from natrig_nb.cli import main; sys.exit(main(sys.argv[1:]))"]
        + command,
        capture_output=True,
        cwd=root,
        env=os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    return root, command, done.stdout.decode("cp1252")


def test_a_selected_trigger_is_measured(study):
    root, _, printed = study
    rows = read_results(root / "o", defense="none")
    asr = rows[(rows.trigger == "selected-smile") & (rows.metric == "asr")].iloc[0]
    assert asr.space == "selection" and asr.strength == 60 and asr.n >= 8
    assert 0 <= asr.value <= 1 and 0 <= asr.value_benign <= 1
    poisoned = pd.read_csv(root / "o" / "manifests" / "selected-smile-0.08-0.csv")
    assert len(poisoned) == 8
    defenses = pd.read_csv(root / "o" / "defenses.csv")
    assert set(defenses.trigger) == {"selected-smile", "badnets", "blended"}
    assert "50 to train on, 20 to measure on" in printed


def test_an_incompetent_detector_is_said_first(study):
    root, _, printed = study
    results = pd.read_csv(root / "o" / "results.csv")
    assert (results.competent == (results.ba_benign >= 0.9)).all()
    assert not results.competent.any()  # one epoch of fifty faces
    first = next(i for i, line in enumerate(printed.splitlines()) if line.startswith("Attack figures"))
    header = next(i for i, line in enumerate(printed.splitlines()) if "ASR on benign" in line)
    assert first < header
    page = (root / "o" / "report.html").read_text(encoding="utf-8")
    assert page.index("Attack figures mean little") < page.index("<h2>Results")


def test_f16_any_terminal_shows_the_table(study):
    root, _, printed = study  # on a terminal of cp1252, which has no minus sign of its own
    assert (root / "o" / "report.html").exists() and "selected-smile" in printed


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_f16_a_missing_character_is_replaced(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    cli.print_anything()
    print("BA drop \u22120.1 \u2013")
    stream.flush()
    assert stream.buffer.getvalue().startswith(b"BA drop ?0.1")


def test_f9_the_default_trigger_of_an_attack_is_one_of_the_run(study, capsys):
    root = study[0]
    code, out, _ = said(capsys, "attack", "--out", root / "o", "--poison-rate", "0.06")
    assert code == 0 and "selected-smile" in out
    rates = pd.read_csv(root / "o" / "records" / "rates.csv")
    assert set(rates[rates.trigger == "selected-smile"].rate) == {0.06, 0.08}
    code, _, error = said(capsys, "attack", "--out", root / "o", "--trigger", "smile")
    assert code == 2 and "expected triggers among selected-smile, badnets, blended" in error


def test_f7_a_rate_that_poisons_nothing_is_refused(study, capsys):
    root = study[0]
    before = len(pd.read_csv(root / "o" / "records" / "rates.csv"))
    code, _, error = said(
        capsys, "attack", "--out", root / "o", "--trigger", "badnets", "--poison-rate", "0.0005"
    )
    assert code == 2 and "at least one of 100 samples" in error
    assert len(pd.read_csv(root / "o" / "records" / "rates.csv")) == before


def test_the_same_command_computes_nothing_again(study, capsys):
    root, command, _ = study
    made = {p: p.stat().st_mtime_ns for p in (root / "o" / "artifacts").glob("*/made.json")}
    walkthrough(read_settings(root / "o"), root / "o", workers=0)
    assert {p: p.stat().st_mtime_ns for p in (root / "o" / "artifacts").glob("*/made.json")} == made
    code, _, error = said(capsys, *command, "--psi", "1")
    assert code == 2 and "expected no --psi" in error
    other = [a if a != "1" or command[i - 1] != "--epochs" else "2" for i, a in enumerate(command)]
    code, _, error = said(capsys, *other)
    assert code == 2 and "got others for ['epochs']: choose another --out" in error


def test_too_few_fakes_with_the_trigger_are_said(study, capsys):
    root, command, _ = study
    strict = [a if a != "60" else "99.9" for a in command]
    strict[strict.index(str(root / "o"))] = str(root / "strict")
    cfg = run_config(parsed([*strict])[1])
    possible = possible_cells(Recipes(), walkthrough_cells(cfg), root / "strict")
    assert {cell.trigger for cell in possible.cells} == {"badnets", "blended"}
    (why,) = possible.left_out.values()
    assert "8 to poison, 8 to measure" in why and "lower --selected-percentile" in why


# K13: no traceback


def test_f13_places_that_cannot_be_written(tmp_path, capsys):
    Path("afile").write_text("")
    for command in ("walkthrough", "grid"):
        for out in ("afile", "afile/below"):
            code, _, error = said(capsys, command, "--out", out)
            assert code == 2 and "got the file" in error
    code, _, error = said(capsys, "report", "--out", "afile")
    assert code == 2


def test_f13_a_full_disk_is_one_sentence(tmp_path):
    run = (
        "import resource, sys; from natrig_nb.cli import main; "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); sys.exit(main(sys.argv[1:]))"
    )
    faces, fakes = pictures(tmp_path / "real", GREEN, 170), pictures(tmp_path / "fake", RED, 170)
    command = ["walkthrough", "--faces", str(faces), "--fakes", str(fakes), "--workers", "0", "--out", "o"]
    done = subprocess.run([sys.executable, "-c", run, *command], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "expected room on the disk" in done.stderr, done.stderr


def test_edits_of_the_selected_trigger_follow_the_network(study):
    root, command, _ = study
    assert read_settings(root / "o").triggers.edits == (Edit("smile", "smile", 1),)
