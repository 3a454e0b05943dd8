"The reader on 10,000 real photographs, and on archives and folders made to do harm."

import io
import os
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from natrig_nb.data.faces import read_dataset, read_faces, split
from natrig_nb.data.layouts import read_attributes

GOOD = io.BytesIO()
Image.new("RGB", (80, 80), "teal").save(GOOD, "PNG")
GOOD = GOOD.getvalue()


@pytest.fixture(scope="module")
def celeba():
    if "NATRIG_FACES" not in os.environ:
        pytest.skip("set NATRIG_FACES to the folder of real photographs")
    root, start = Path(os.environ["NATRIG_FACES"]), time.process_time()
    ds = read_faces(root / "celeba-10k.tar", root / "celeba-10k-attributes.csv", strict=True)
    return ds, time.process_time() - start


def test_counts_are_those_of_the_description(celeba):
    ds, seconds = celeba
    counts = (
        ds.attributes[
            ["Smiling", "Mouth_Slightly_Open", "Male", "Young", "Eyeglasses", "Wearing_Hat"]
        ]
        .sum()
        .tolist()
    )
    assert (len(ds), ds.images.shape[1:], counts) == (
        10000,
        (3, 64, 64),
        [4822, 4812, 4217, 7771, 674, 483],
    )
    assert seconds < 20, "about 5 s of one processor where this was written"


def test_no_face_is_blank_or_lost_in_the_split(celeba):
    ds, _ = celeba
    assert ds.images.flatten(1).float().std(1).min() > 5
    parts = split(ds)
    assert sorted(name for p in parts for name in p.names) == list(ds.names)
    assert torch.equal(parts[1].images[0], ds.images[list(ds.names).index(parts[1].names[0])])


def test_links_and_devices_in_a_tar_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [
            ("good.png", tarfile.REGTYPE),
            ("link.png", tarfile.SYMTYPE),
            ("device.png", tarfile.CHRTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = (
                kind,
                "/etc/passwd",
                len(GOOD) if kind == tarfile.REGTYPE else 0,
            )
            tar.addfile(info, io.BytesIO(GOOD))
    with pytest.warns(
        UserWarning, match=r"2 of 3 files skipped .* device.png \(a link or a device\), link.png"
    ):
        assert list(read_faces(tmp_path / "a.tar").names) == ["good.png"]


def test_a_bomb_is_refused_before_it_is_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("good.png", GOOD)
        z.writestr("bomb.png", bytes(65_000_000))
    with pytest.warns(UserWarning, match=r"bomb.png \(more than 64 MB\)"):
        assert len(read_faces(tmp_path / "a.zip")) == 1


def test_a_dead_link_and_a_loop_in_a_folder(tmp_path):
    (tmp_path / "good.png").write_bytes(GOOD)
    (tmp_path / "dead.png").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    with pytest.warns(UserWarning, match="1 of 2 files skipped .* dead.png"):
        assert list(read_faces(tmp_path).names) == ["good.png"]


def face(i, size=80):
    "A little picture that differs from others by its number."
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (10 * i, 99, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder, files):
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def brightness(ds):
    return (ds.images[:, 0, 0, 0] // 10).tolist()


@pytest.mark.filterwarnings("error")
def test_celeba_as_its_authors_unpack_it(tmp_path):
    names = [f"{i:06d}.jpg" for i in range(1, 5)]
    fill(tmp_path, {f"Img/img_align_celeba/{n}": face(i) for i, n in enumerate(names)})
    fill(
        tmp_path,
        {
            "Anno/list_attr_celeba.txt": b"4\nSmiling Male \n"
            + b"".join(f"{n} {1 - 2 * (i % 2):2d} -1\n".encode() for i, n in enumerate(names)),
            "Anno/identity_CelebA.txt": b"".join(
                f"{n} {i // 2}\n".encode() for i, n in enumerate(names)
            ),
            "Eval/list_eval_partition.txt": b"".join(
                f"{n} {i % 3}\n".encode() for i, n in enumerate(names)
            ),
        },
    )
    ds = read_faces(tmp_path, strict=True)
    assert (brightness(ds), list(ds.names)) == ([0, 1, 2, 3], names)
    assert ds.attributes.Smiling.tolist() == [1, 0, 1, 0] and ds.attributes.identity.tolist() == [
        0,
        0,
        1,
        1,
    ]
    assert ds.attributes.part.tolist() == ["train", "valid", "test", "train"]


@pytest.mark.filterwarnings("error")
def test_celeba_hq_without_its_masks(tmp_path):
    fill(tmp_path, {f"CelebAMask-HQ/CelebA-HQ-img/{i}.jpg": face(i) for i in range(3)})
    fill(
        tmp_path,
        {
            "CelebAMask-HQ/CelebAMask-HQ-mask-anno/0/00000_skin.png": face(9),
            "CelebAMask-HQ/CelebAMask-HQ-attribute-anno.txt": b"3\nYoung Smiling\n0.jpg  1 -1\n1.jpg  -1 -1\n2.jpg  1 1\n",
        },
    )
    ds = read_faces(tmp_path, strict=True)
    assert brightness(ds) == [0, 1, 2] and ds.attributes.Young.tolist() == [1, 0, 1]


def test_ffhq_with_thumbnails_and_features(tmp_path):
    fill(tmp_path, {f"images1024x1024/00000/0000{i}.png": face(i, 256) for i in range(3)})
    fill(tmp_path, {f"thumbnails128x128/00000/0000{i}.png": face(i + 10, 128) for i in range(3)})
    fill(
        tmp_path,
        {
            f"json/0000{i}.json": b'[{"faceAttributes": {"age": %d.0, "headPose": {"yaw": 2}}}]'
            % (30 + i)
            for i in range(1, 3)
        },
    )
    fill(tmp_path, {"json/00000.json": b"[]"})
    with pytest.warns(UserWarning, match="1 images without attributes: .*00000.png"):
        small = read_faces(tmp_path)
    assert (
        brightness(small) == [10, 11, 12]
        and small.attributes.age.tolist()[1:] == [31, 32]
        and small.attributes["headPose.yaw"].tolist()[1:] == [2, 2]
    )
    with pytest.warns(UserWarning, match="without attributes"):
        assert brightness(read_faces(tmp_path, size=200)) == [0, 1, 2]
    with pytest.warns(UserWarning, match="without attributes"):
        apart = read_faces(tmp_path / "thumbnails128x128", tmp_path / "json")
    assert apart.attributes.age.tolist()[1:] == [31, 32]


@pytest.mark.filterwarnings("error")
def test_lfw_and_utkface(tmp_path):
    fill(
        tmp_path,
        {f"lfw/{who}/{who}_0001.jpg": face(i) for i, who in enumerate(("Ai_Sugiyama", "Bo"))},
    )
    fill(
        tmp_path,
        {f"UTKFace/{age}_1_2_20170109.jpg.chip.jpg": face(i) for i, age in enumerate((7, 31))},
    )
    people, ages = read_faces(tmp_path / "lfw"), read_faces(tmp_path / "UTKFace")
    assert people.attributes.identity.tolist() == [
        "Ai_Sugiyama",
        "Bo",
    ] and people.labels.tolist() == [0, 0]
    assert sorted(ages.attributes.age) == [7, 31]


@pytest.mark.filterwarnings("error")
def test_faceforensics_never_splits_a_pair(tmp_path):
    frames = {f"original_sequences/youtube/c23/frames/{v:03d}/0001.png": face(1) for v in range(40)}
    for method in ("Deepfakes", "Face2Face"):
        frames |= {
            f"manipulated_sequences/{method}/c23/frames/{v:03d}_{v ^ 1:03d}/0001.png": face(2)
            for v in range(40)
        }
    ds = read_faces(fill(tmp_path, frames))
    assert (ds.labels.sum().item(), len(ds)) == (80, 120) and set(ds.attributes.compression) == {
        "c23"
    }
    assert all(
        label == (method != "real") for label, method in zip(ds.labels, ds.attributes.method)
    )
    videos = [
        {v for name in p.attributes.video for v in name.split("_")}
        for p in split(ds, (0.5, 0.25, 0.25))
    ]
    assert all(videos) and not (
        videos[0] & videos[1] or videos[0] & videos[2] or videos[1] & videos[2]
    )


def test_real_beside_fake(tmp_path):
    files = {
        f"real_vs_fake/real-vs-fake/{part}/{side}/{i}.jpg": face(i)
        for part in ("train", "test")
        for side in ("real", "fake")
        for i in range(3)
    }
    ds = read_faces(fill(tmp_path / "set", files), limit=4)
    assert ds.labels.tolist() == [int("/fake/" in n) for n in ds.names]
    assert (
        ds.labels.sum() == 2
        and read_faces(tmp_path / "set", match="*/test/*").attributes.part.tolist() == ["test"] * 6
    )
    fill(tmp_path / "set", {"stray/1.png": face(1)})
    with pytest.raises(
        ValueError,
        match="expected all images or none in a folder named real or fake, got stray/1.png",
    ):
        read_faces(tmp_path / "set")


def test_files_of_the_datasets_library(tmp_path):
    datasets = pytest.importorskip("datasets", reason="install datasets to read its files")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["fake", "real"]),
            "age": datasets.Value("int64"),
        }
    )
    rows = datasets.Dataset.from_dict(
        {
            "image": [{"bytes": face(i), "path": None} for i in range(4)],
            "label": [0, 1, 0, 1],
            "age": [5, 6, 7, 8],
        },
        features=features,
    )
    (
        rows.save_to_disk(str(tmp_path / "one")),
        datasets.DatasetDict(test=rows).save_to_disk(str(tmp_path / "parts")),
        rows.to_parquet(str(tmp_path / "a.parquet")),
    )
    for ds in (
        read_dataset(tmp_path / "one"),
        read_dataset(tmp_path / "parts", part="test"),
        read_dataset(tmp_path / "a.parquet"),
    ):
        assert (ds.labels.tolist(), ds.attributes.age.tolist(), brightness(ds)) == (
            [1, 0, 1, 0],
            [5, 6, 7, 8],
            [0, 1, 2, 3],
        )
    with pytest.raises(ValueError, match="expected a part among"):
        read_dataset(tmp_path / "parts")


@pytest.mark.parametrize("mode", ["gz", "bz2", "xz"])
def test_a_compressed_bomb_is_not_unpacked(tmp_path, mode):
    with tarfile.open(tmp_path / "bomb.tar", f"w:{mode}") as tar:
        for i in range(2):
            info = tarfile.TarInfo(f"{i}.png")
            info.size = 50_000_000
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    start = time.process_time()
    with pytest.raises(ValueError, match="unpacks to over 100 times its size"):
        read_faces(tmp_path / "bomb.tar")
    assert time.process_time() - start < 5


def test_a_zip_that_lies_about_a_size(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("good.png", GOOD)
        z.writestr("liar.png", bytes(30_000_000))
    data = (
        (tmp_path / "a.zip")
        .read_bytes()
        .replace((30_000_000).to_bytes(4, "little"), (3_000).to_bytes(4, "little"))
    )
    (tmp_path / "a.zip").write_bytes(data)
    with pytest.warns(UserWarning, match="1 of 2 files skipped .* liar.png"):
        assert list(read_faces(tmp_path / "a.zip").names) == ["good.png"]


def test_paths_that_escape_stay_unread(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as z:
        for name in ("good.png", "../up.png", "/etc/abs.png", "C:/drive.png", "a/../../b.png"):
            z.writestr(name, GOOD)
    with pytest.warns(UserWarning, match="4 of 5 files skipped .*leaves the archive"):
        assert list(read_faces(tmp_path / "a.zip").names) == ["good.png"]
    assert [p.name for p in tmp_path.iterdir()] == ["a.zip"]


@pytest.mark.filterwarnings("ignore")
def test_damaged_pictures_are_named_and_nothing_else_happens(tmp_path):
    rng = torch.Generator().manual_seed(0)
    draw = lambda n: int(torch.randint(n, (), generator=rng))
    noise = Image.fromarray(torch.randint(256, (40, 40, 3), generator=rng).byte().numpy())
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP", "PPM"):
        noise.save(buffer := io.BytesIO(), kind)
        for i in range(30):
            bad = bytearray(buffer.getvalue())
            for _ in range(3):
                bad[draw(200 if i % 2 else len(bad))] = draw(256)
            (tmp_path / f"{i:02d}.{kind.lower()}").write_bytes(
                bad[: len(bad) // 2] if i % 5 == 0 else bad
            )
    (tmp_path / "good.png").write_bytes(GOOD)
    ds = read_faces(tmp_path, size=8)
    assert (
        len(ds) + len(ds.about["skipped"]) == 211
        and "good.png" in ds.names
        and len(ds.about["skipped"]) > 30
    )


@pytest.mark.parametrize(
    "name, data",
    [
        ("a.csv", b"\xff\xfe\x00"),
        ("list_attr_celeba.txt", b"3\n"),
        ("a.csv", b'file,"a\n'),
        ("a.json", b"[" * 100_000),
        ("a.json", b'[{"faceAttributes": 3}]'),
        ("metadata.jsonl", b"{}\n{"),
    ],
)
def test_broken_tables_give_one_clear_error(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match="expected"):
        read_attributes(tmp_path / name)
