"""Files that folders of images have in them, each with what is to become of it.

`write(directory)` writes them all. What an image must decode to comes from how it was made or from
Pillow's own conversion of it, never from the code under test.
"""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

H, W = 24, 36
Y, X = np.mgrid[:H, :W]
PICTURE = np.stack([X * 7, Y * 10, (X + 2 * Y) * 3], -1).astype(np.uint8)  # no symmetry at all
RGB = Image.fromarray(PICTURE)
GRAY = RGB.convert("L")
ALPHA = ((X * 5 + Y) % 256).astype(np.uint8)
ON_WHITE = PICTURE * (ALPHA[..., None] / 255) + 255 - ALPHA[..., None].astype(float)

UNREADABLE = "unreadable.png"

# 24x16 with arithmetic coding, which Pillow decodes but cannot write (libjpeg-turbo 2.1.5).
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV00;&K2L=TQ2L}fU2?z=d6b%du3k(?&6Au&}8Xq1V8XO!TBrYc)"
    "A}k{u94I#_EHE)NG&CP4IXyTsJT5adGXL8ELjeg12@DGi7!3^=G9erxGBPqUGBPqUGBPqUGBPqUGBPqU"
    "GBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBPqUGBW?k01*fP5C9kh0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or"
    "3<CiG0ucid06zf#0J8B9{(K;PC1S@zE;uD0@Pe)9Z*N@AoPE`D{lIt^_T#yBwbcOtu20EcNU<4%@WlVw"
)


@dataclasses.dataclass(frozen=True)
class Case:
    """A file.

    Attributes:
      name: its path below the directory.
      content: its bytes, or what creates it at a path.
      expected: pixels `[h, w, 3]`; or a part of the reason why it is bad; or None if it is no image
        file and must not be listed.
      within: how far the pixels may be off.
    """

    name: str
    content: bytes | Callable[[Path], object]
    expected: np.ndarray | str | None
    within: float = 0


def write(directory: Path) -> list[Case]:
    """Write all files and return them, without those that this file system refuses."""
    written = []
    for case in cases():
        path = directory / case.name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(case.content):
                case.content(path)
            else:
                path.write_bytes(case.content)
        except (OSError, UnicodeError):  # such as a name that is no UTF-8, on macOS
            continue
        if case.name == UNREADABLE and os.access(path, os.R_OK):  # root may read everything
            case = dataclasses.replace(case, expected=PICTURE)
        written.append(case)
    return written


def cases() -> list[Case]:
    """Return all files."""
    return [*jpegs(), *pngs(), *others(), *truncated(), *not_images(), *names(), *not_files()]


def encode(image: Image.Image, kind: str, **options) -> bytes:
    """Encode with Pillow."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def through_pillow(encoded: bytes) -> np.ndarray:
    """Return Pillow's own pixels, upright."""
    with warnings.catch_warnings(action="ignore"), Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


def with_orientation(orientation: object, tag: int = 0x0112) -> bytes:
    exif = Image.Exif()
    exif[tag] = orientation
    return exif.tobytes()


def jpeg(image: Image.Image = RGB, **options) -> bytes:
    """Encode as a JPEG."""
    return encode(image, "JPEG", **options)


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def insert(encoded: bytes, segments: bytes) -> bytes:
    """Put segments behind a JPEG's first two bytes."""
    return encoded[:2] + segments + encoded[2:]


def jpegs() -> list[Case]:
    plain, cmyk = jpeg(), jpeg(RGB.convert("CMYK"))
    adobe = cmyk.index(b"\xff\xee")
    frame = plain.index(b"\xff\xc0")
    profile = bytes(range(256)) * 400
    notes = b"\xff\xda" * 30_000  # what begins the pixels, where it is none
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    good = {
        "plain": plain,
        "444": jpeg(subsampling=0),
        "422": jpeg(subsampling=1),
        "420 quality 3": jpeg(subsampling=2, quality=3),
        "progressive": jpeg(progressive=True),
        "progressive gray": jpeg(GRAY, progressive=True),
        "restart markers": jpeg(restart_marker_blocks=1),
        "rgb inside": jpeg(keep_rgb=True),
        "gray": jpeg(GRAY),
        "cmyk adobe": cmyk,
        "cmyk": cmyk[:adobe] + cmyk[adobe + 16 :],
        "arithmetic": ARITHMETIC,
        "icc": jpeg(icc_profile=profile),
        "mpo": encode(RGB, "MPO", save_all=True, append_images=[GRAY.convert("RGB")]),
        "garbage behind": plain + b"<html>" * 50,
        "another behind": plain + jpeg(GRAY),
        "fill bytes": insert(plain, b"\xff\xff\xff"),
        "fill bytes before exif": insert(jpeg(exif=with_orientation(6)), b"\xff\xff"),
        "exif behind profile": jpeg(icc_profile=profile, exif=with_orientation(8)),
        "exif behind comments": insert(jpeg(exif=with_orientation(5)), segment(0xFE, notes) * 2),
        "xmp orientation": insert(plain, segment(0xE1, xmp)),
        "exif garbage": insert(plain, segment(0xE1, b"Exif\0\0garbage")),
        "exif cut": insert(plain, segment(0xE1, with_orientation(6)[:16])),
        "exif orientation 0": jpeg(exif=with_orientation(0)),
        "exif orientation 77": jpeg(exif=with_orientation(77)),
        "exif without orientation": jpeg(exif=with_orientation("someone", tag=0x013B)),
        "1x1": jpeg(RGB.resize((1, 1))),
        "1x7": jpeg(RGB.resize((7, 1))),
        "3000x1": jpeg(RGB.resize((1, 3000))),
        "1x3000": jpeg(RGB.resize((3000, 1))),
        "ended early": plain[:-40] + b"\xff\xd9",
    }
    good |= {f"exif {i}": jpeg(exif=with_orientation(i), subsampling=2) for i in range(1, 9)}
    bad = {
        "12 bits": (plain[: frame + 4] + b"\x0c" + plain[frame + 5 :], "rare kind"),
        "bomb": (plain[: frame + 5] + b"\xff\x00\xff\x00" + plain[frame + 9 :], "too large"),
        "no height": (plain[: frame + 5] + b"\0\0" + plain[frame + 7 :], "JPEG"),
        "ends in zeros": (plain[:-80] + bytes(80), "truncated JPEG"),
    }
    return [
        *(Case(f"jpeg/{name}.jpg", data, through_pillow(data)) for name, data in good.items()),
        *(Case(f"jpeg/{name}.jpg", data, reason) for name, (data, reason) in bad.items()),
    ]


def chunk(name: bytes, content: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(name + content))
    return struct.pack(">I", len(content)) + name + content + check


def png(pixels: np.ndarray, color: int, extra: bytes = b"", adam7: bool = False) -> bytes:
    """Write what Pillow does not: 16 bits per channel, interlaced files."""
    height, width = pixels.shape[:2]
    pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
    passes = [(0, 0, 1, 1)]
    if adam7:  # first row and column, and their steps
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)]
        passes += [(2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    rows = [b"\0" + row.tobytes() for y, x, dy, dx in passes for row in pixels[y::dy, x::dx]]
    header = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, color, 0, 0, adam7)
    packed = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(b"".join(rows)))
    return b"\x89PNG\r\n\x1a\n" + packed + chunk(b"IEND", b"")


def gray3(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., None], 3, -1)


def pngs() -> list[Case]:
    deep = PICTURE.astype(np.uint16) * 256 + 255  # the lower byte must not matter
    gray, whole, palette = np.asarray(GRAY), encode(RGB, "PNG"), RGB.quantize(16)
    of_palette = np.asarray(palette.convert("RGB"))
    holes = np.where(np.asarray(palette)[..., None] == 3, 255, of_palette)
    black = np.asarray(GRAY.point(lambda value: value > 90, "1"))
    rgba = Image.fromarray(np.dstack([PICTURE, ALPHA]))
    la = Image.merge("LA", [GRAY, Image.fromarray(ALPHA)])
    la_on_white = gray * (ALPHA / 255) + 255 - ALPHA.astype(float)
    key = np.where((PICTURE[5, 7] == PICTURE).all(-1, keepdims=True), 255, PICTURE)
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    header = bytearray(whole)
    header[18] ^= 1  # the width, so that its checksum is wrong
    huge = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", huge) + chunk(b"IDAT", zlib.compress(bytes(99)))
    empty = png(PICTURE[:0], 2)
    frames = {"save_all": True, "append_images": [GRAY.convert("RGB")]}
    return [
        Case("png/plain.png", whole, PICTURE),
        Case("png/gray 16.png", png(deep[..., 0], 0), gray3(PICTURE[..., 0])),
        Case("png/rgb 16.png", png(deep, 2), PICTURE),
        Case(
            "png/rgba 16.png",
            png(np.dstack([deep, np.full((H, W), 0xFFFF, np.uint16)]), 6),
            PICTURE,
        ),
        Case("png/interlaced.png", png(PICTURE, 2, adam7=True), PICTURE),
        Case("png/palette.png", encode(palette, "PNG"), of_palette),
        Case("png/palette with a hole.png", encode(palette, "PNG", transparency=3), holes),
        Case(
            "png/palette 2 bits.png",
            encode(RGB.quantize(4), "PNG", bits=2),
            np.asarray(RGB.quantize(4).convert("RGB")),
        ),
        Case("png/1 bit.png", encode(Image.fromarray(black), "PNG"), gray3(black * np.uint8(255))),
        Case("png/gray.png", encode(GRAY, "PNG"), gray3(gray)),
        Case("png/alpha.png", encode(rgba, "PNG"), ON_WHITE, within=1),
        Case("png/gray alpha.png", encode(la, "PNG"), gray3(la_on_white), within=1),
        Case(
            "png/color key.png",
            encode(RGB, "PNG", transparency=tuple(map(int, PICTURE[5, 7]))),
            key,
        ),
        Case("png/animated.png", encode(RGB, "PNG", **frames), PICTURE),
        Case("png/exif.png", encode(RGB, "PNG", exif=with_orientation(6)), np.rot90(PICTURE, -1)),
        Case("png/exif garbage.png", png(PICTURE, 2, chunk(b"eXIf", b"garbage")), PICTURE),
        Case("png/1x1.png", encode(RGB.resize((1, 1)), "PNG"), np.asarray(RGB.resize((1, 1)))),
        Case("png/no end.png", whole[:-12], PICTURE),
        Case("png/garbage behind.png", whole + bytes(1000), PICTURE),
        Case("png/damaged.png", bytes(damaged), "damaged PNG"),
        Case("png/damaged header.png", bytes(header), "PNG"),
        Case("png/bomb.png", bomb, "too large"),
        Case("png/no rows.png", empty, "PNG"),
    ]


def others() -> list[Case]:
    rgba = Image.fromarray(np.dstack([PICTURE, ALPHA]))
    palette = RGB.quantize(16)
    of_palette = np.asarray(palette.convert("RGB"))
    holes = np.where(np.asarray(palette)[..., None] == 3, 255, of_palette)
    frames = {"save_all": True, "append_images": [GRAY.convert("RGB")]}
    lossy = encode(RGB, "WEBP")
    scaled = Image.fromarray(PICTURE[..., 0] / np.float32(255))
    deep = Image.fromarray(PICTURE[..., 0].astype(np.uint16) * 257)
    pgm = b"P5 %d %d 65535\n" % (W, H) + (PICTURE[..., 0].astype(">u2") * 257).tobytes()
    first = gray3(PICTURE[..., 0])
    cmyk = RGB.convert("CMYK")
    turned = np.rot90(PICTURE, -1)
    return [
        Case("webp/lossy.webp", lossy, through_pillow(lossy)),
        Case("webp/lossless.webp", encode(RGB, "WEBP", lossless=True), PICTURE),
        Case("webp/alpha.webp", encode(rgba, "WEBP", lossless=True, exact=True), ON_WHITE, 1),
        Case("webp/animated.webp", encode(RGB, "WEBP", lossless=True, **frames), PICTURE),
        Case(
            "webp/exif.webp", encode(RGB, "WEBP", lossless=True, exif=with_orientation(6)), turned
        ),
        Case("bmp/24.bmp", encode(RGB, "BMP"), PICTURE),
        Case("bmp/8.bmp", encode(palette, "BMP"), of_palette),
        Case(
            "bmp/1.bmp",
            encode(GRAY.convert("1"), "BMP"),
            np.asarray(GRAY.convert("1").convert("RGB")),
        ),
        Case("gif/plain.gif", encode(palette, "GIF"), of_palette),
        Case("gif/hole.gif", encode(palette, "GIF", transparency=3), holes),
        Case(
            "gif/animated.gif",
            encode(palette, "GIF", save_all=True, append_images=[GRAY]),
            of_palette,
        ),
        Case("tiff/plain.tif", encode(RGB, "TIFF"), PICTURE),
        Case("tiff/lzw.tiff", encode(RGB, "TIFF", compression="tiff_lzw"), PICTURE),
        Case("tiff/pages.tiff", encode(RGB, "TIFF", **frames), PICTURE),
        Case("tiff/16.tiff", encode(deep, "TIFF"), first),
        Case("tiff/cmyk.tiff", encode(cmyk, "TIFF"), np.asarray(cmyk.convert("RGB"))),
        Case("tiff/float.tiff", encode(scaled, "TIFF"), first),
        Case("tiff/turned.tiff", encode(RGB, "TIFF", tiffinfo={0x0112: 6}), turned),
        Case(
            "tiff/float in 255.tiff",
            encode(scaled.point(lambda v: v * 255), "TIFF"),
            "floating-point pixels outside [0, 1]",
        ),
        Case("ppm/plain.ppm", encode(RGB, "PPM"), PICTURE),
        Case("ppm/16.pgm", pgm, first),
    ]


def truncated() -> list[Case]:
    whole = {
        "jpg": jpeg(),
        "png": encode(RGB, "PNG"),
        "webp": encode(RGB, "WEBP"),
        "bmp": encode(RGB, "BMP"),
        "gif": encode(RGB.quantize(64), "GIF"),
        "tiff": encode(RGB, "TIFF", compression="tiff_lzw"),
    }
    return [
        Case(f"truncated/{cut}.{kind}", data[:count], "truncated")
        for kind, data in whole.items()
        for cut, count in {
            "header": 20,
            "third": len(data) // 3,
            "most": len(data) - 30,
        }.items()
    ] + [Case("truncated/end marker.jpg", whole["jpg"][:-2], "truncated JPEG")]


def not_images() -> list[Case]:
    noise = np.random.RandomState(0).bytes(500)
    bad = {
        "empty": (b"", "empty file"),
        "text": (b"see the other folder\n", 'text, not an image: "see the other folder"'),
        "html": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "html, not an image"),
        "html lower": (b"\n<html>", "html, not an image"),
        "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "text, not an image"),
        "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        "pdf": (b"%PDF-1.7\n" + noise, "PDF, not an image"),
        "zip": (b"PK\3\4" + noise, "zip archive"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + noise, "HEIC"),
        "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "text, not an image"),
        "zeros": (bytes(4096), "zeros"),
        "noise": (b"\x01" + noise, "not an image: begins with 01"),
        "one byte": (b"\xff", "not an image"),
        "jpeg magic": (b"\xff\xd8\xff", "JPEG with a header that is truncated"),
    }
    return [Case(f"no image/{name}.jpg", data, why) for name, (data, why) in bad.items()]


def names() -> list[Case]:
    data, pixels = encode(RGB, "PNG"), PICTURE
    listed = [
        "png named.jpg",
        "upper.PNG",
        "mixed.JpEg",
        "with  spaces .png",
        "line\nbreak.png",
        "Жёлтый 犬 é.png",
        "no utf-8 \udcff\udcfe.png",
        "l" * 250 + ".png",
        "-dash.png",
        "%s {} '\"$(x);.png",
        "two.jpg.png",
        "tab\t\x1b[31m.png",
        "backslash\\.png",
        "/".join("abcdefghijklmnopqrstuvwxyz" * 2) + "/deep.png",
        "directory.jpg/inside.png",
    ]
    skipped = [
        ".hidden.png",
        "._resource.png",
        ".thumbs/x.png",
        "Thumbs.db",
        "png",
        "x.png.part",
        "sidecar.xmp",
    ]
    return [
        *(Case(f"names/{name}", data, pixels) for name in listed),
        *(Case(f"names/{name}", data, None) for name in skipped),
    ]


def not_files() -> list[Case]:
    def unreadable(path: Path) -> None:
        path.write_bytes(encode(RGB, "PNG"))
        path.chmod(0)

    def sparse(path: Path) -> None:
        path.touch()
        os.truncate(path, 2**33)

    return [
        Case("links/target.png", encode(RGB, "PNG"), PICTURE),
        Case("links/link.png", lambda path: path.symlink_to("target.png"), PICTURE),
        Case("links/broken.png", lambda path: path.symlink_to("gone.png"), "No such file"),
        Case("links/itself.png", lambda path: path.symlink_to("itself.png"), "symbolic links"),
        Case("links/up", lambda path: path.symlink_to("..", target_is_directory=True), None),
        Case("links/null.png", lambda path: path.symlink_to(os.devnull), None),
        Case("pipe.png", os.mkfifo, None),
        Case("empty.jpg", Path.mkdir, None),
        Case("sparse.jpg", sparse, "too large: 8 GiB"),
        Case(UNREADABLE, unreadable, "Permission denied"),
    ]
