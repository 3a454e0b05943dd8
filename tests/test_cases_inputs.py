"""Inputs that real users bring: folders, archives, pictures, tables, detectors and generators.

The letters are those of the collection of public reports; what follows a case are its neighbors. Everything
here ends with the right answer or with one sentence, never with a wrong answer or a traceback.
"""

import io
import json
import os
import shutil
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from natrig_nb.cli import main
from natrig_nb.core import FAKE, REAL, load_tensors, resolve, save_tensors
from natrig_nb.data.faces import read_faces
from natrig_nb.data.layouts import read_attributes
from natrig_nb.data.portraits import portraits
from natrig_nb.detector.base import load_detector, make_detector, predict_fake
from natrig_nb.generator.base import render
from natrig_nb.generator.load import load_generator
from natrig_nb.nn.attributes import attribute_scores, load_attributes, train_attributes
from natrig_nb.testing import synthetic_faces

sys.path.insert(0, str(Path(__file__).parent))
from miniature import tiny_generator  # noqa: E402
from official import save_rosinality  # noqa: E402

JUNK = b"\0\5\x16\7\0\2\0\0Mac OS X" + bytes(60)


def png(color=(9, 9, 200), size=80):
    """A picture of one color, encoded."""
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, "PNG")
    return buffer.getvalue()


PNG = png()


def write(folder, names, data=PNG):
    """Files with one content."""
    for name in names:
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def zipped(path, files):
    """A zip of {name: content}, with names as they are."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return path


def said(call):
    """The sentence with which a call refuses; it has to be one, and to begin as all do."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call()
    text = str(error.value)
    assert "\n" not in text and len(text) < 700, text
    return text


def warned(call):
    """What a call returns, and its warnings as one text."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = call()
    return result, " ".join(str(w.message) for w in caught)


# Folders and archives


LABELED = [  # A3, A4: a folder of real faces, one of fakes
    ("real_images", "fake_images"),
    ("Real Images", "Fake Images"),
    ("0real", "1fake"),
    ("0_real", "1_fake"),
    ("nature", "ai"),
    ("Celeb-real", "Celeb-synthesis"),
    ("A_original", "B_CramerGAN"),
    ("human", "ai-generated"),
    ("authentic", "tampered"),
    ("ffhq", "stylegan2"),
    ("live", "spoof"),
    ("real", "deepfake"),
    ("real", "df"),
    ("original", "altered"),
    # neighbors
    ("REAL", "FAKE"),
    ("realImages", "fakeImages"),
    ("training_real", "training_fake"),
    ("real-faces-v2", "StyleGAN3"),
    ("bonafide", "morphed_attack_fake"),
    ("genuine", "forged"),
    ("pristine", "manipulated"),
    ("original_sequences", "manipulated_sequences"),
    ("FFHQ", "ProGAN"),
    ("Real", "AI"),
    ("photos", "deepfakes"),
    ("train/real", "train/fake"),
    ("real_vs_fake/real", "real_vs_fake/fake"),
    ("real/1_m", "fake/1_m"),
    ("x/01/real", "x/01/fake"),
]
ASKED = [  # names that do not say which is which
    ("0", "1"),
    ("class0", "class1"),
    ("a", "b"),
    ("positive", "negative"),
    ("vrai", "faux"),
    ("not_fake", "fake"),
    ("non-real", "real"),
    ("unreal", "real"),
    ("train/0", "train/1"),
    ("celeb", "dataset_fake_or_real"),
    ("youtube", "edited"),
]


def pair_of_folders(root, real, fake):
    write(root, [f"{real}/{i}.png" for i in range(2)])
    return write(root, [f"{fake}/{i}.png" for i in range(2)])


@pytest.mark.parametrize("real,fake", LABELED)
def test_folders_whose_names_say_it(tmp_path, real, fake):
    faces = read_faces(pair_of_folders(tmp_path / "set", real, fake))
    of_fake = [str(name).startswith(faces_prefix(fake, real)) for name in faces.names]
    assert len(faces) == 4 and sum(of_fake) == 2
    assert faces.labels.tolist() == [FAKE if is_fake else REAL for is_fake in of_fake]


def faces_prefix(folder, other):
    """A folder's name below what it shares with the other one."""
    shared = os.path.commonpath([folder, other])
    return os.path.relpath(folder, shared or ".").split("/")[0] + "/"


@pytest.mark.parametrize("real,fake", ASKED)
def test_folders_whose_names_do_not_say_it(tmp_path, real, fake):
    folder = pair_of_folders(tmp_path / "set", real, fake)
    text = said(lambda: read_faces(folder))
    assert "expected" in text and "real=NAME or fake=NAME" in text
    faces = read_faces(folder, real=Path(real).name, fake=Path(fake).name)
    assert sorted(faces.labels.tolist()) == [REAL, REAL, FAKE, FAKE]
    of_fake = [str(name).startswith(faces_prefix(fake, real)) for name in faces.names]
    assert faces.labels.tolist() == [FAKE if is_fake else REAL for is_fake in of_fake]


@pytest.mark.parametrize("separator", ["\\", "/"])
def test_names_of_other_systems(tmp_path, separator):  # A5
    names = [separator.join(("set", side, f"{i}.png")) for side in ("real", "fake") for i in (0, 1)]
    faces = read_faces(zipped(tmp_path / "w.zip", dict.fromkeys(names, PNG)))
    assert faces.labels.tolist() == [FAKE, FAKE, REAL, REAL]
    assert faces.names.tolist() == ["fake/0.png", "fake/1.png", "real/0.png", "real/1.png"]


CLUTTER = [
    "__MACOSX/._cover.png",
    "__MACOSX/real/._a.png",
    "real/._a.png",
    ".Trashes/old.png",
    "real/.thumb.png",
    ".ipynb_checkpoints/a.png",
    "real/@eaDir/a.png/SYNOPHOTO_THUMB_M.png",
    "$RECYCLE.BIN/S-1/a.png",
]


@pytest.mark.parametrize("kind", ["zip", "tar", "folder"])
def test_clutter_is_no_image_and_has_no_label(tmp_path, kind):  # A7, A8
    files = {"real/a.png": PNG, "fake/b.png": png((200, 9, 9)), **dict.fromkeys(CLUTTER, JUNK)}
    path = tmp_path / f"set.{kind}"
    if kind == "zip":
        zipped(path, files)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                info = tarfile.TarInfo(f"./{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    else:
        for name, data in files.items():
            write(path, [name], data)
    faces, text = warned(lambda: read_faces(path, strict=True, limit=2))
    assert (faces.labels.tolist(), faces.names.tolist()) == ([1, 0], ["fake/b.png", "real/a.png"])
    assert text == "" and faces.about["given"] == 2


def test_a_limit_counts_images_only_and_is_told(tmp_path):  # A7, A11
    names = [f"set/{i:04d}.png" for i in range(60)]
    junk = [f"__MACOSX/set/._{i:04d}.png" for i in range(60)]
    path = zipped(tmp_path / "m.zip", dict.fromkeys(junk, JUNK) | dict.fromkeys(names, PNG))
    faces = read_faces(path, limit=20)
    assert [faces.about[k] for k in ("given", "read", "left_out")] == [60, 20, 40]
    places = [int(name[:4]) for name in faces.names]
    assert places == list(range(0, 60, 3))
    assert len(read_faces(path, limit=80)) == 60


def test_links_to_folders(tmp_path):
    write(tmp_path / "store", ["a.png", "b.png"])
    (tmp_path / "set").mkdir()
    (tmp_path / "set/real").symlink_to(tmp_path / "store")
    write(tmp_path / "set", ["fake/c.png"])
    (tmp_path / "set/fake/again").symlink_to(tmp_path / "set")
    faces = read_faces(tmp_path / "set")
    assert faces.names.tolist() == ["fake/c.png", "real/a.png", "real/b.png"]
    assert faces.labels.tolist() == [FAKE, REAL, REAL]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"PK\3\4 broken", b"\x1f\x8b broken", b"Rar!\x1a\x07\0", b"7z\xbc\xaf\x27\x1c"],
)
def test_what_is_no_archive(tmp_path, content):
    (tmp_path / "x.zip").write_bytes(content)
    assert said(lambda: read_faces(tmp_path / "x.zip")).startswith("expected a ")


def test_places_without_images(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "notes", ["a.txt", "b.docx"])
    assert "no readable image" in said(lambda: read_faces(tmp_path / "empty"))
    assert "no readable image: a.txt (not an image)" in said(lambda: read_faces(tmp_path / "notes"))
    assert "got nothing at" in said(lambda: read_faces(tmp_path / "nowhere"))
    write(tmp_path / "one", ["a.png"])
    assert "expected a folder, .zip or .tar" in said(lambda: read_faces(tmp_path / "one/a.png"))


# Pictures


def transparent(mode, kind):
    """A picture with a see-through surround, under which another color hides."""
    image = Image.new("RGBA", (80, 80), (0, 255, 0, 0))
    image.paste((210, 160, 130, 255), (20, 20, 60, 60))
    buffer = io.BytesIO()
    if mode == "P":
        image = image.convert("RGB").quantize(4)
        image.info["transparency"] = image.getpixel((2, 2))
        image.save(buffer, kind, transparency=image.getpixel((2, 2)))
    elif mode == "RGB":
        image.convert("RGB").save(buffer, kind, transparency=(0, 255, 0))
    else:
        image.convert(mode).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "mode,kind",
    [
        ("RGBA", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("RGB", "PNG"),
        ("P", "GIF"),
        ("RGBA", "WEBP"),
        ("RGBA", "TIFF"),
    ],
)
def test_one_background_under_transparency(tmp_path, mode, kind):  # B1
    write(tmp_path / "set", ["a.png"], transparent(mode, kind))
    faces, text = warned(lambda: read_faces(tmp_path / "set"))
    assert faces.images[0, :, 2, 2].tolist() == [255, 255, 255]
    assert faces.images[0, :, 32, 32].float().mean() < 200
    assert faces.about["transparent"] == 1
    assert "1 images of" in text and "laid on the background (255, 255, 255)" in text


def test_an_alpha_channel_that_hides_nothing(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGBA", (80, 80), (10, 20, 30, 255)).save(buffer, "PNG")
    write(tmp_path / "set", ["a.png"], buffer.getvalue())
    faces, text = warned(lambda: read_faces(tmp_path / "set"))
    assert (faces.images[0, :, 5, 5].tolist(), text) == ([10, 20, 30], "")
    assert faces.about["transparent"] == 0


def test_pictures_that_are_no_faces_of_eight_bits(tmp_path):
    deep = io.BytesIO()
    Image.fromarray(np.full((80, 80), 40_000, np.uint16)).save(deep, "PNG")
    small = png(size=20)
    for name, data in {"deep.png": deep.getvalue(), "small.png": small, "cut.png": PNG[:60]}.items():
        write(tmp_path / "set", [name], data)
    write(tmp_path / "set", ["good.png"])
    faces, text = warned(lambda: read_faces(tmp_path / "set"))
    assert faces.names.tolist() == ["good.png"]
    assert "3 of 4 files skipped" in text and "expected 8 bits a channel" in text
    assert sorted(faces.about["skipped"]) == ["cut.png", "deep.png", "small.png"]


def test_gray_and_cmyk_and_one_bit(tmp_path):
    for mode, color in {"L": 100, "1": 1, "CMYK": (0, 0, 0, 0)}.items():
        buffer = io.BytesIO()
        Image.new(mode, (80, 80), color).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        write(tmp_path / "set", [f"{mode}.png"], buffer.getvalue())
    faces = read_faces(tmp_path / "set", strict=True)
    colors = {str(n): faces.images[i, :, 9, 9].tolist() for i, n in enumerate(faces.names)}
    assert colors["L.png"] == [100] * 3 and colors["1.png"] == [255] * 3
    assert min(colors["CMYK.png"]) > 250


# Tables


@pytest.fixture(scope="module")
def people():
    return portraits(80, seed=3).images


def save_people(images, folder, names):
    """Faces as files."""
    for image, name in zip(images, names, strict=True):
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return folder


def learned(faces):
    """A quickly trained attribute network, and what was said on the way."""
    net, text = warned(lambda: train_attributes(faces, epochs=1, width=4))
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    return net, text


def test_one_name_that_says_no_age(tmp_path, people):  # C1
    names = [f"{1 + i}_{i % 2}_{i % 5}_2017010914{i:07d}.jpg" for i in range(80)]
    names[38] = "39_1_20170109140000038.jpg"
    faces = read_faces(save_people(people, tmp_path / "u", names))
    assert faces.attributes.isna().any(axis=1).sum() == 1
    net, text = learned(faces)
    assert net.names == ["age", "gender", "race"]
    assert "1 of 80 faces have no known attribute and are left out, e.g. 39_1_2017" in text


def table_text(values, header="image_id,Smiling"):
    return header + "\n" + "".join(f"{i:06d}.jpg,{v}\n" for i, v in enumerate(values))


def with_table(tmp_path, people, text):
    """Faces called 000000.jpg and so on, with a table beside them."""
    names = [f"{i:06d}.jpg" for i in range(len(people))]
    folder = save_people(people, tmp_path / "f", names)
    table = tmp_path / "t.csv"
    if isinstance(text, bytes):
        table.write_bytes(text)
    else:
        table.write_text(text)
    return folder, table


SIGNED = [1 - 2 * (i % 2) for i in range(80)]


def test_an_image_without_a_row(tmp_path, people):  # C2
    rows = table_text(SIGNED).splitlines()
    folder, table = with_table(tmp_path, people, "\n".join(rows[:12] + rows[13:]))
    faces, text = warned(lambda: read_faces(folder, table))
    assert "1 images without attributes: 000011.jpg (no row)" in text
    net, text = learned(faces)
    assert net.names == ["Smiling"] and "1 of 80 faces have no known attribute" in text


@pytest.mark.parametrize("hole", ["", "?", "NA", "nan", "unknown"])
def test_values_that_are_not_known(tmp_path, people, hole):
    folder, table = with_table(tmp_path, people, table_text([hole, *SIGNED[1:]]))
    faces, _ = warned(lambda: read_faces(folder, table))
    assert np.isnan(faces.attributes.Smiling[0])
    assert faces.attributes.Smiling[1:].tolist() == [0, 1] * 39 + [0]
    learned(faces)


def test_identities_are_no_attributes(tmp_path, people):  # C4
    names = [f"lfw/Person_{k}/Person_{k}_{i:04d}.jpg" for k in range(40) for i in (1, 2)]
    faces = read_faces(save_people(people, tmp_path, names))
    assert faces.attributes.columns.tolist() == ["identity"]
    text = said(lambda: train_attributes(faces, epochs=1, width=4))
    assert "expected a table with attributes of the faces (--attributes), got identity" in text


def celeba(tmp_path, people):
    """CelebA as its authors unpack it."""
    names = [f"{i:06d}.jpg" for i in range(80)]
    root = save_people(people, tmp_path / "celeba/img_align_celeba", names).parent
    rows = "".join(f"{n} {1 - 2 * (i % 2):2d} {1 - 2 * (i % 3 > 0):2d}\n" for i, n in enumerate(names))
    (root / "list_attr_celeba.txt").write_text(f"80\nSmiling Young \n{rows}")
    (root / "identity_CelebA.txt").write_text("".join(f"{n} {i % 7}\n" for i, n in enumerate(names)))
    parts = "".join(f"{n} {i % 3}\n" for i, n in enumerate(names))
    (root / "list_eval_partition.txt").write_text(parts)
    return root


def test_celeba_as_unpacked(tmp_path, people):  # C5
    faces = read_faces(celeba(tmp_path, people), strict=True)
    assert set(faces.attributes) == {"Smiling", "Young", "identity", "part"}
    assert learned(faces)[0].names == ["Smiling", "Young"]


def test_faces_without_a_table(tmp_path, people):  # C6
    faces = read_faces(save_people(people[:40], tmp_path / "f", [f"{i}.jpg" for i in range(40)]))
    text = said(lambda: train_attributes(faces))
    assert "expected a table with attributes of the faces (--attributes), got none" in text


TABLES = {  # C7, C8, C12 and neighbors: what a table looks like that says Smiling and Young
    "spaces in the header": "image_id, Smiling , Young\n{rows}",
    "spaces around values": "image_id,Smiling,Young\n{spaced}",
    "an index column": ",image_id,Smiling,Young\n{numbered}",
    "an unnamed index": "Unnamed: 0,image_id,Smiling,Young\n{numbered}",
    "a byte order mark": "\ufeffimage_id,Smiling,Young\n{rows}",
    "quotes": '"image_id","Smiling","Young"\n{quoted}',
    "Windows lines": "image_id,Smiling,Young\r\n{windows}",
    "semicolons": "image_id;Smiling;Young\n{semicolons}",
    "tabs": "image_id\tSmiling\tYoung\n{tabs}",
    "filename": "filename,Smiling,Young\n{rows}",
    "path": "path,Smiling,Young\n{rows}",
    "words": "image_id,Smiling,Young\n{words}",
    "yes and no": "image_id,Smiling,Young\n{answers}",
}


@pytest.mark.parametrize("look", TABLES)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_how_tables_look(tmp_path, look, encoding):
    pairs = [(1, -1), (-1, 1), (1, 1), (-1, -1)]
    names = [f"{i:06d}.jpg" for i in range(4)]
    rows = [(n, *map(str, pair)) for n, pair in zip(names, pairs, strict=True)]
    yes = {"1": "True", "-1": "False"}
    forms = {
        "rows": ["{},{},{}".format(*r) for r in rows],
        "spaced": [" {} , {} ,{} ".format(*r) for r in rows],
        "numbered": ["{},{},{},{}".format(i, *r) for i, r in enumerate(rows)],
        "quoted": ['"{}","{}","{}"'.format(*r) for r in rows],
        "semicolons": ["{};{};{}".format(*r) for r in rows],
        "tabs": ["{}\t{}\t{}".format(*r) for r in rows],
        "words": [f"{n},{yes[a]},{yes[b]}" for n, a, b in rows],
        "answers": [f"{n},{'yes' if a == '1' else 'no'},{'Yes' if b == '1' else 'No'}" for n, a, b in rows],
    }
    texts = {name: "\n".join(lines) + "\n" for name, lines in forms.items()}
    text = TABLES[look].format(**texts, windows=texts["rows"].replace("\n", "\r\n"))
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    table = read_attributes(tmp_path / "t.csv")
    assert table.columns.tolist() == ["Smiling", "Young"]
    assert table.index.tolist() == names
    assert (table.Smiling.tolist(), table.Young.tolist()) == ([1, 0, 1, 0], [0, 1, 1, 0])


WRONG_TABLES = {
    "no header": ("000000.jpg,1\n000001.jpg,-1\n", "expected a column file or image_id"),
    "no key": ("Smiling,Young\n1,0\n", "expected a column file or image_id"),
    "twice": ("image_id,Smiling\na.jpg,1\na.jpg,-1\n", "expected one row per file"),
    "too many values": ("image_id,Smiling\na.jpg,1,2\nb.jpg,1,2\n", "expected as many names"),
    "nothing": ("", "expected"),
    "half text": (
        "image_id,age\na.jpg,1\nb.jpg,2\nc.jpg,old\n",
        "expected numbers in column age of t.csv, got old (c.jpg)",
    ),
    "decimal commas": (
        "image_id;age;tone\na.jpg;1;0,5\nb.jpg;2;0,7\n",
        "expected numbers with a decimal point in column tone of t.csv, got 0,5 (a.jpg)",
    ),
    "two columns of a name": ("image_id,Smiling,Smiling\na.jpg,1,0\n", "expected one column Smiling"),
}


@pytest.mark.parametrize("look", WRONG_TABLES)
def test_tables_that_say_nothing_clear(tmp_path, look):
    text, message = WRONG_TABLES[look]
    (tmp_path / "t.csv").write_text(text)
    assert message in said(lambda: read_attributes(tmp_path / "t.csv"))


def test_zero_beside_signs_is_unknown(tmp_path):
    rows = "a.jpg,1,1,0\nb.jpg,-1,-1,1\nc.jpg,0,1,0\n"
    (tmp_path / "t.csv").write_text(f"image_id,Smiling,Young,Hat\n{rows}")
    table, text = warned(lambda: read_attributes(tmp_path / "t.csv"))
    assert table.Smiling.tolist()[:2] == [1, 0] and np.isnan(table.Smiling.iloc[2])
    assert (table.Young.tolist(), table.Hat.tolist()) == ([1, 0, 1], [0, 1, 0])
    assert "0 in Smiling of t.csv is read as unknown, since -1 means no there" in text


def test_a_spreadsheet_is_named(tmp_path):
    zipped(tmp_path / "t.xlsx", {"xl/workbook.xml": b"<x/>"})
    assert "got an Excel or zip file: save it as CSV" in said(
        lambda: read_attributes(tmp_path / "t.xlsx")
    )


def test_train_generator_tells_before_it_trains(tmp_path, people, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    celeba(tmp_path, people)
    save_people(people[:2], "lfw/Ann", ["Ann_0001.jpg", "Ann_0002.jpg"])
    steps = ["--recon-steps", "2", "--gan-steps", "1", "--out", "g"]
    for faces, message in (
        ("lfw", "expected attributes of the faces in lfw, got none: give a table with --attributes"),
        ("nowhere", "got nothing at"),
        ("celeba/list_attr_celeba.txt", "expected a folder, .zip or .tar of images"),
    ):
        assert main(["train-generator", "--faces", faces, *steps]) == 2
        assert message in capsys.readouterr().err
        assert not Path("g/attributes.safetensors").exists()
    assert main(["train-generator", "--faces", "celeba", *steps]) == 0  # C5 to the end
    net = load_attributes("g/attributes.safetensors")
    assert net.names == ["Smiling", "Young"]
    G = load_generator("g/generator.safetensors")
    assert render(G, G.sample(2, 0)).shape == (2, 3, 64, 64)


# Detectors: more cases are in tests/test_detectors.py


FACES = synthetic_faces(6, seed=1, size=32).images
NETWORK = dict(name="resnet18", width=8)


@pytest.fixture(scope="module")
def resnet():
    return make_detector("resnet18", seed=3, width=8).eval()


def gives_the_same(path, model, **how):
    p = predict_fake(load_detector(path, **(NETWORK | how)), FACES)
    return torch.allclose(p, predict_fake(model, FACES), atol=1e-5)


STATES = {  # how others save a state dict
    "module twice, wrapped": lambda s: {"model": {f"module.module.{k}": v for k, v in s.items()}},
    "compiled, wrapped twice": lambda s: {
        "checkpoint": {"state_dict": {f"_orig_mod.{k}": v for k, v in s.items()}}
    },
    "lightning": lambda s: {
        "state_dict": {f"net.{k}": v for k, v in s.items()},
        "pytorch-lightning_version": "2.1",
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}],
        "callbacks": {},
    },
    "an average with its counter": lambda s: {
        "state_dict_ema": {f"module.{k}": v for k, v in s.items()} | {"n_averaged": torch.tensor(3)}
    },
    "parameters": lambda s: {k: torch.nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "double precision": lambda s: {k: v.double() for k, v in s.items()},
    "a model and a discriminator": lambda s: {"detector": s, "discriminator": {"w": torch.ones(3)}},
}


@pytest.mark.parametrize("layout", STATES)
@pytest.mark.parametrize("zip_file", [True, False])
def test_layouts_of_state_dicts(tmp_path, resnet, layout, zip_file):
    content = STATES[layout](dict(resnet.state_dict()))
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zip_file)
    assert gives_the_same(tmp_path / "c.pth", resnet)


WRONG_STATES = {
    "another network": lambda s: {f"conv{i}.weight": torch.ones(2) for i in range(3)},
    "the head is missing": lambda s: {k: v for k, v in s.items() if not k.startswith("head")},
    "three classes": lambda s: s | {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)},
    "not finite": lambda s: s | {"head.bias": torch.tensor([0.0, float("nan")])},
    "infinite": lambda s: s | {"head.bias": torch.tensor([0.0, float("inf")])},
    "a list": lambda s: list(s.values()),
    "a tensor": lambda s: s["head.weight"],
    "text": lambda s: {"state_dict": "see the other file"},
    "nothing": lambda s: {},
}


@pytest.mark.parametrize("layout", WRONG_STATES)
def test_what_is_no_state_dict_of_the_network(tmp_path, resnet, layout):
    torch.save(WRONG_STATES[layout](dict(resnet.state_dict())), tmp_path / "c.pth")
    text = said(lambda: load_detector(tmp_path / "c.pth", **NETWORK))
    assert text.startswith("expected ") and "c.pth" in text


@pytest.mark.parametrize(
    "name,content",
    [
        ("a.onnx", b"\x08\x07\x12\x07pytorch" + bytes(60)),
        ("a.pkl", b"\x80\x04\x95\x10" + bytes(40)),
        ("a.tar", b"x" * 257 + b"ustar" + bytes(300)),
        ("a.pth.gz", b"\x1f\x8b\x08" + bytes(60)),
        ("model.safetensors.index.json", b'{"weight_map": {}}'),
        ("a.safetensors", b"\x10\0\0\0\0\0\0\0{" + bytes(40)),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(60)),
        ("a.keras", b"PK\3\4" + bytes(60)),
        ("a.pth", PNG),
    ],
)
def test_files_of_another_kind(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    for how in ({}, NETWORK):
        assert said(lambda how=how: load_detector(tmp_path / name, **how)).startswith("expected ")


def test_addresses_that_lead_nowhere(tmp_path):
    for address in (tmp_path, tmp_path / "no.pth", "resnet18", "hf:", f"hf:{tmp_path}", "timm:"):
        assert said(lambda address=address: load_detector(str(address))).startswith("expected ")


# Generators


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("tensor", ["synthesis.b64.conv1.weight", "mapping.w_avg", "mapping.fc0.bias"])
def test_a_generator_that_is_not_finite(tmp_path, tensor, value):  # E1
    source = resolve("data/portraits-generator.safetensors")
    tensors, path = load_file(source), tmp_path / "g.safetensors"
    save_tensors(path, tensors | {tensor: tensors[tensor] * value}, load_tensors(source).metadata)
    assert "expected finite numbers in the generator" in said(lambda: load_generator(path))


@pytest.fixture
def pipeline(tmp_path):
    """A copy of the shipped diffusion model."""
    return Path(shutil.copytree(resolve("data/portraits-diffusion"), tmp_path / "pipe"))


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pipeline_that_is_not_finite(pipeline, part):  # E1
    path = next((pipeline / part).glob("*.safetensors"))
    tensors = load_file(path)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] * float("nan")}, path, {"format": "pt"})
    assert f"expected finite numbers in {part} of" in said(lambda: load_generator(pipeline))


@pytest.mark.parametrize("guidance", [float("nan"), float("inf")])
def test_guidance_is_a_number(pipeline, guidance):  # E1
    text = said(lambda: load_generator(pipeline, guidance=guidance))
    assert "expected a finite guidance" in text


@pytest.mark.parametrize("parts", [("safety_checker",), ("safety_checker", "feature_extractor")])
def test_a_pipeline_without_parts_that_are_never_used(pipeline, parts):  # E6
    index = json.loads((pipeline / "model_index.json").read_text())
    named = {
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
    }
    index |= {name: named[name] for name in parts}
    (pipeline / "model_index.json").write_text(json.dumps(index))
    G = load_generator(pipeline, steps=2)
    assert render(G, G.sample(1, 0)).float().std() > 0


@pytest.mark.parametrize("lost", ["unet", "vae", "tokenizer", "scheduler/scheduler_config.json"])
def test_a_pipeline_without_a_part_that_is_used(pipeline, lost):
    path = pipeline / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert "expected a whole pipeline of safetensors in" in said(lambda: load_generator(pipeline))


@pytest.mark.parametrize(
    "index",
    [
        "{",
        "[]",
        "{}",
        '{"_class_name": "StableDiffusionPipeline"}',
        '{"_class_name": "KandinskyPipeline"}',
        '{"_class_name": "OwnPipeline", "_diffusers_version": "0.1"}',
    ],
)
def test_an_index_that_names_no_usable_pipeline(pipeline, index):
    (pipeline / "model_index.json").write_text(index)
    assert said(lambda: load_generator(pipeline)).startswith("expected ")


@pytest.mark.parametrize(
    "name",
    ["portraits-attributes.safetensors", "portraits-yshape.safetensors", "README.md", "results"],
)
def test_what_is_no_generator(name):
    assert said(lambda: load_generator(resolve(f"data/{name}"))).startswith("expected ")


def test_a_generator_in_a_parallel_wrapper(tmp_path):  # E4
    G = tiny_generator(5)
    save_rosinality(G, tmp_path / "g.pt")
    content = torch.load(tmp_path / "g.pt", weights_only=True)
    content["g_ema"] = {f"module.{k}": v for k, v in content["g_ema"].items()}
    torch.save(content, tmp_path / "g.pt")
    again = load_generator(tmp_path / "g.pt")
    w = G.sample(2, seed=1)
    assert torch.allclose(again(w.to(again.device)).cpu(), G(w), atol=5e-5)


def test_attributes_that_are_not_finite(tmp_path):
    tensors, metadata = load_tensors(resolve("data/portraits-attributes.safetensors"))
    save_tensors(tmp_path / "a.safetensors", tensors | {"std": tensors["std"] * float("nan")}, metadata)
    assert "got NaN or infinity in 1 of" in said(lambda: load_attributes(tmp_path / "a.safetensors"))
    save_tensors(tmp_path / "b.safetensors", tensors, metadata)
    scores = attribute_scores(load_attributes(tmp_path / "b.safetensors"), portraits(2, 1).images)
    assert scores.isfinite().all()
