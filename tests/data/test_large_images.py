"""Images, archives and records that claim more memory than there may be: bombs, in bytes."""

from __future__ import annotations

import functools
import io
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from data import awkward
from data.test_placements import Photographs, loading, read_batches
from etils import epath
from PIL import Image, ImageFile
from train import tiny

from simclr_jax import recipes
from simclr_jax.data import decode, formats, reader, sources
from simclr_jax.data.decode import BadImage, Rules
from simclr_jax.data.held_out import HeldOut
from simclr_jax.data.placements import filling, split
from simclr_jax.data.reader import Reader, Unreadable
from simclr_jax.data.sources import tfrecord_files
from simclr_jax.errors import UserError
from simclr_jax.stages.inputs import Inputs

SIDE = 13_300  # of a picture that Pillow would still decode

# Each format as a file of 40x30 pixels.
SMALL = {
    "JPEG": {},
    "PNG": {},
    "WEBP": {"lossless": True},
    "BMP": {},
    "GIF": {},
    "TIFF": {},
    "PPM": {},
    "AVIF": {},
    "JPEG2000": {},
    "HEIF": {},
}


def small(kind):
    if kind not in formats.readable():
        pytest.skip(f"no {kind} here")
    if kind == "HEIF":
        formats._register_heif()
    image = Image.new("P" if kind == "GIF" else "RGB", (40, 30))
    return awkward.encode(image, kind, **SMALL[kind])


@pytest.mark.parametrize("simplejpeg", [True, False])
@pytest.mark.parametrize("kind", SMALL)
def test_pixels_are_counted_before_one_is_decoded(kind, simplejpeg, monkeypatch):
    encoded = small(kind)
    if not simplejpeg:
        monkeypatch.setattr(decode, "_simplejpeg", lambda: None)
    assert decode.decode(encoded, Rules(most_pixels=1200)).shape == (30, 40, 3)
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("decoded"))
    reason = r"^too large: 40x30 pixels, more than data\.max_megapixels=0\.001199$"
    for read in (decode.decode, lambda x, rules: decode.size(io.BytesIO(x), rules)):
        with pytest.raises(BadImage, match=reason):
            read(encoded, Rules(most_pixels=1199))


def test_the_recipe_says_how_large_an_image_may_be(tmp_path):
    """And an image that is larger is listed by name, and another takes its place."""
    for i in range(20):
        side = 40 if i == 7 else 20
        Image.new("RGB", (side, side), (i, 0, 0)).save(tmp_path / f"{i:02}.png")
    c = tiny.recipe(
        data__source="folder", data__path=str(tmp_path), data__labels=False,
        augment__placement="split", augment__grid="opencv", data__max_bad_fraction=0.2,
    )  # fmt: skip
    for most, bad in ((0.0016, 0), (0.001, 1)):
        c.data.max_megapixels = most
        train, test = sources.open_splits(c.data)
        inputs = Inputs(c, train, test)
        seen = [image.shape for image in inputs.originals(len(train))]
        whole = list(inputs.for_evaluation(test)[:])
        assert len(seen) == len(train) and len(whole) == len(test)
        assert sum(len(one) for one in inputs._unreadable.values()) == bad
        assert ((40, 40, 3) in seen) == ("07.png" in train.paths and not bad)


# Bombs, as they cost without the limits -----------------------------------------------------------


def png(*chunks, width=SIDE, height=SIDE, bits=1, color=0, body=None):
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    if body is None:
        body = zlib.compress(bytes((1 + -(-width * bits // 8)) * height), 1)
    parts = (awkward.chunk(b"IHDR", header), *chunks, awkward.chunk(b"IDAT", body))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts) + awkward.chunk(b"IEND", b"")


def tiff(width, height, *more, body=b""):
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1} | dict(more)
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    tiled = 322 in tags
    tags |= {324 if tiled else 273: at, 325 if tiled else 279: len(body)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + body


def claiming(encoded, at, layout, *sides):
    return encoded[:at] + struct.pack(layout, *sides) + encoded[at + struct.calcsize(layout) :]


def bombs():
    """Return files of kilobytes: those that are to be refused, and those that are to be cheap."""
    jpeg, gif, bmp = (
        awkward.encode(Image.new(mode, (16, 16)), kind)
        for mode, kind in (("RGB", "JPEG"), ("P", "GIF"), ("RGB", "BMP"))
    )
    zeros = zlib.compress(bytes(200_000_000), 1)
    frame = jpeg.index(b"\xff\xc0") + 5
    refused = {
        "png": png(),
        "palette": png(awkward.chunk(b"PLTE", bytes(6)), awkward.chunk(b"tRNS", b"\x10"), color=3),
        "jpeg": claiming(jpeg, frame, ">HH", SIDE, SIDE),
        "progressive jpeg": claiming(
            jpeg.replace(b"\xff\xc0", b"\xff\xc2"), frame, ">HH", SIDE, SIDE
        ),
        "webp": b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f"
        + struct.pack("<I", 16_382 | 16_382 << 14) + bytes(8) + b"\0",
        "gif": claiming(gif, 6, "<HH", 60_000, 60_000),
        "bmp": claiming(bmp, 18, "<II", SIDE, SIDE),
        "ppm": b"P6 13300 13300 255\n" + bytes(100),
        "pgm": b"P5 13300 13300 65535\n" + bytes(100),
        "tiff": tiff(SIDE, SIDE, (278, SIDE), body=zeros),
        "tiff of one tile": tiff(10, 10, (322, 16_000), (323, 16_000), body=zeros),
        "png text": png(awkward.chunk(b"zTXt", b"a\0\0" + zeros), width=8, height=8),
        "png profile": png(awkward.chunk(b"iCCP", b"a\0\0" + zeros), width=8, height=8),
    }  # fmt: skip
    frames = [Image.new("RGB", (1000, 1000), (i, 0, 0)) for i in range(20)]
    many = {"save_all": True, "append_images": frames[1:]}
    cheap = {
        "gif of many frames": awkward.encode(frames[0], "GIF", **many),
        "png of many frames": awkward.encode(frames[0], "PNG", **many),
        "webp of many frames": awkward.encode(frames[0], "WEBP", lossless=True, **many),
        "tiff of many pages": awkward.encode(frames[0], "TIFF", compression="tiff_lzw", **many),
        "tiff of one strip": tiff(10, 10, (278, 2**31), body=zeros),
        "more pixels than it has": png(width=8, height=8, body=zeros),
    }
    return refused, cheap


READ = """
import json, resource, sys
from pathlib import Path
from simclr_jax.data import decode
outcomes = {}
decode.decode(Path("first.png").read_bytes())
for name in json.loads(sys.argv[1]):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        outcome = str(decode.decode(decode.content(Path(name))).shape)
    except decode.BadImage as reason:
        outcome = str(reason)
    taken = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    outcomes[name] = outcome, taken / 1024
print(json.dumps(outcomes))
"""


def test_no_bomb_takes_memory(tmp_path):
    """The largest of all may take 100 MB; a single one of them would take hundreds."""
    refused, cheap = bombs()
    for name, encoded in (refused | cheap).items():
        assert len(encoded) < 3_000_000, name
        (tmp_path / name).write_bytes(encoded)
    Image.new("RGB", (1000, 1000)).save(tmp_path / "first.png")
    command = [sys.executable, "-c", READ, json.dumps([*refused, *cheap])]
    environment = os.environ | {"PYTHONPATH": str(Path(decode.__file__).parents[2])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert not done.returncode and not done.stderr, done.stderr
    outcomes = json.loads(done.stdout)
    for name in refused:
        outcome, _ = outcomes[name]
        profile = "Decompressed data too large" in outcome
        assert outcome.startswith("too large: ") or (profile and name.startswith("png ")), outcome
    for name in ("gif of many frames", "png of many frames", "webp of many frames"):
        assert outcomes[name][0] == "(1000, 1000, 3)"
    assert sum(taken for _, taken in outcomes.values()) < 100, outcomes


# What does not fit, after all ---------------------------------------------------------------------


def no_memory(*_, **__):
    raise MemoryError


@pytest.fixture
def one(tmp_path):
    """Return a source of one image, `only.png`."""
    Image.new("RGB", (20, 20)).save(tmp_path / "only.png")
    data = recipes.base().data
    data.source, data.path, data.labels = "folder", str(tmp_path), False
    return sources.OPENERS["folder"](data, None)["train"]()


def test_an_image_that_does_not_fit_into_memory_is_named(one, monkeypatch):
    unreadable = Unreadable("train", 1, 0.5)
    follow = functools.partial(np.zeros_like)
    monkeypatch.setattr(ImageFile.ImageFile, "load", no_memory)
    ways = {
        "read": lambda: Reader(one, follow, unreadable).read(np.zeros(1, np.int64)),
        "load": lambda: reader.load(one, unreadable, 1),
        "evaluate": lambda: HeldOut(one, lambda image: image, unreadable, 1)[:1],
    }
    for way in ways.values():
        with pytest.raises(UserError, match=r"^only\.png does not fit into memory.*data\.threads"):
            way()
    assert not len(unreadable)  # with more memory it is read


class Vast:
    """Images of a terapixel each, of which no bytes exist."""

    labels, classes, multi_label, class_names = None, 0, False, ()

    def __len__(self):
        return 1000

    def name(self, example):
        return f"{example}.png"

    def example(self, example):
        return np.broadcast_to(np.uint8(0), (10**6, 10**6, 3)), -1


def test_a_data_set_that_does_not_fit_is_told_from_its_first_image():
    with pytest.raises(UserError, match=r"^1000 images of 1000000x1000000 .*placement=split"):
        reader.load(Vast(), Unreadable("train", 1000, 0.5), 1)


def test_what_is_made_of_an_image_may_not_fit_either(one):
    cv2 = pytest.importorskip("cv2")
    unreadable = Unreadable("train", 1, 0.5)

    def prepare(image):
        if image.shape[0] < 20:  # the stand-in for unreadable ones
            return image
        raise cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9000000000 bytes")

    for make in (no_memory, prepare):
        with pytest.raises(UserError, match=r"^only\.png does not fit into memory"):
            HeldOut(one, make, unreadable, 1)[:1]
        with pytest.raises(UserError, match=r"^only\.png does not fit into memory"):
            Reader(one, np.zeros_like, unreadable).read(np.zeros(1, np.int64), make)


def test_so_may_the_crops_of_placement_split(monkeypatch):
    cv2 = pytest.importorskip("cv2")

    def opencv(*_, **__):
        raise cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9000000000 bytes")

    for fails in (no_memory, opencv):
        monkeypatch.setattr(split, "resizer", lambda fails=fails: fails)
        with pytest.raises(UserError, match=r"^\d+\.jpg does not fit into memory.*data\.threads"):
            read_batches("split", loading(Photographs()))


def test_nor_may_the_arrays_of_a_batch_fit():
    with pytest.raises(UserError, match=r"^9 images of a batch, 1000000000x1000000x3 bytes each"):
        filling.Memory().take((9, 10**9, 10**6, 3))


def test_words_of_libraries_that_lack_memory_are_no_fault_of_the_image(monkeypatch):
    def fails(_):
        raise OSError("out of memory error when reading image file")

    encoded = small("PNG")
    monkeypatch.setattr(ImageFile.ImageFile, "load", fails)
    with pytest.raises(MemoryError):
        decode.decode(encoded)


def test_nor_are_those_of_opencv_while_it_decodes(monkeypatch):
    cv2 = pytest.importorskip("cv2")

    def fails(*_):
        raise cv2.error("OpenCV: (-4:Insufficient memory) Failed to allocate 9000000000 bytes")

    encoded = awkward.png(np.zeros((9, 9, 3), np.uint16), 2)
    monkeypatch.setattr(cv2, "imdecode", fails)
    with pytest.raises(MemoryError):
        decode.decode(encoded, Rules("4095"))


def test_memory_that_runs_out_among_metadata_turns_no_image(monkeypatch):
    encoded = awkward.encode(awkward.RGB, "PNG", exif=awkward.with_orientation(6))
    monkeypatch.setattr(Image.Exif, "get", no_memory)
    with pytest.raises(MemoryError):
        decode.decode(encoded)


def test_words_of_a_stranger_about_memory_are_those_of_no_library(tmp_path):
    """A file of text is a bad image, whatever it says."""
    data = recipes.base().data
    data.source, data.path, data.labels = "folder", str(tmp_path), False
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_text("out of memory, insufficient memory")
    source = sources.OPENERS["folder"](data, None)["train"]()
    with pytest.raises(UserError, match=r"2 of 2 images .*text, not an image"):
        Reader(source, lambda at: at % 2, Unreadable("train", 2, 0.5)).read(np.zeros(1, np.int64))


# Files that are large themselves ------------------------------------------------------------------


def test_a_large_file_is_read_only_if_it_begins_like_an_image(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "LOOKED_INTO", 1000)
    path = tmp_path / "x.png"
    path.write_bytes(small("PNG") + bytes(5000))
    assert len(decode.content(path)) > 5000
    path.write_bytes(bytes(5000))
    with pytest.raises(BadImage, match="begins with zeros"):
        decode.content(path)
    path.write_bytes(small("PNG") + bytes(5000))
    with pytest.raises(BadImage, match="too large: 40x30"):
        decode.content(path, Rules(most_pixels=100))
    monkeypatch.setattr(decode, "LARGEST", 2000)
    with pytest.raises(BadImage, match=r"^too large: "):
        decode.content(path)


def test_a_file_takes_the_memory_that_it_has_bytes(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(bytes(100_000))
    tracemalloc.start()
    try:
        assert len(decode.content(path)) == 100_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(BadImage, match="pipe"):
        decode.content(tmp_path / "x.png")


# Archives and records -----------------------------------------------------------------------------


def claims_20_gb(path, name="images"):
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (20_000, 1000, 1000, 1)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(1000))
    return path


def test_an_archive_that_claims_gigabytes_is_refused_by_name(tmp_path):
    data = recipes.base().data
    data.source, data.path = "memory", str(claims_20_gb(tmp_path / "bomb.npz"))
    with pytest.raises(UserError, match=r"bomb\.npz is no archive.*claims 20000000000 bytes"):
        sources.open_splits(data)


@pytest.fixture
def records(tmp_path):
    """Return a file of four records, of 10, 2000, 10 and 10 bytes, and how to open it."""
    content = b""
    for size in (10, 2000, 10, 10):
        head = struct.pack("<Q", size)
        check = tfrecord_files._masked(tfrecord_files._crc32c(np.frombuffer(head, np.uint8)[None]))
        content += head + check.astype("<u4").tobytes() + bytes(size + 4)
    path = tmp_path / "train.tfrecord"
    path.write_bytes(content)
    kept = tmp_path / "kept"
    return lambda: tfrecord_files.TFRecordFiles([epath.Path(path)], kept), kept


def test_a_record_of_gigabytes_is_not_read(records, monkeypatch):
    opened, _ = records
    monkeypatch.setattr(tfrecord_files, "LARGEST", 1000)
    monkeypatch.setattr(tfrecord_files, "_verified", lambda record, tail: record)
    found = opened()
    assert [len(found[row]) for row in (0, 2, 3)] == [10, 10, 10]
    for rows in ([1], [0, 1, 2]):
        with pytest.raises(BadImage, match=r"^too large: "):
            found.fetch(np.array(rows))


@pytest.mark.parametrize("harm", ["bomb", "text", "cut", "odd", "sums"])
def test_a_damaged_index_is_made_again(records, harm):
    opened, kept = records
    whole = opened()._length.tolist()
    (place,) = kept.glob("*.npz")
    content, made = place.read_bytes(), io.BytesIO()
    if harm == "bomb":
        claims_20_gb(place, "lengths")
    elif harm in ("odd", "sums"):
        odd = {"counts": ["4"], "lengths": [[1, 2], [3, 4]]}
        sums = {"counts": [4], "lengths": whole[:3]}
        np.savez(made, **(odd if harm == "odd" else sums))
        place.write_bytes(made.getvalue())
    else:
        place.write_bytes(b"text" if harm == "text" else content[:-60])
    assert opened()._length.tolist() == whole
