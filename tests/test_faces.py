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

from natrig_nb.faces import read_faces, split

GOOD = io.BytesIO()
Image.new("RGB", (80, 80), "teal").save(GOOD, "PNG")
GOOD = GOOD.getvalue()


@pytest.fixture(scope="module")
def celeba():
    if "NATRIG_FACES" not in os.environ: pytest.skip("set NATRIG_FACES to the folder of real photographs")
    root, start = Path(os.environ["NATRIG_FACES"]), time.process_time()
    ds = read_faces(root / "celeba-10k.tar", root / "celeba-10k-attributes.csv", strict=True)
    return ds, time.process_time() - start


def test_counts_are_those_of_the_description(celeba):
    ds, seconds = celeba
    counts = ds.attributes[["Smiling", "Mouth_Slightly_Open", "Male", "Young", "Eyeglasses", "Wearing_Hat"]].sum().tolist()
    assert (len(ds), ds.images.shape[1:], counts) == (10000, (3, 64, 64), [4822, 4812, 4217, 7771, 674, 483])
    assert seconds < 20, "about 5 s of one processor where this was written"


def test_no_face_is_blank_or_lost_in_the_split(celeba):
    ds, _ = celeba
    assert ds.images.flatten(1).float().std(1).min() > 5
    parts = split(ds)
    assert sorted(name for p in parts for name in p.names) == list(ds.names)
    assert torch.equal(parts[1].images[0], ds.images[list(ds.names).index(parts[1].names[0])])


def test_links_and_devices_in_a_tar_are_named(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in [("good.png", tarfile.REGTYPE), ("link.png", tarfile.SYMTYPE), ("device.png", tarfile.CHRTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, "/etc/passwd", len(GOOD) if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(GOOD))
    with pytest.warns(UserWarning, match=r"2 of 3 files skipped .* device.png \(a link or a device\), link.png"):
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
