import io
import struct

import numpy as np
import pytest
from conftest import save_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitveg_tl.data.images import check_header, decode, pixel_array
from fruitveg_tl.utils.errors import InputError
from fruitveg_tl.utils.storage import MARK


def colour_of(path, size=32):
    return decode(path, size)[size // 2, size // 2].tolist()


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (200, 30, 10), (200, 30, 10)),
        ("L", 90, (90, 90, 90)),
        ("RGBA", (0, 0, 255, 0), (255, 255, 255)),  # transparent: white shows through
        ("RGBA", (10, 20, 250, 255), (10, 20, 250)),
        ("LA", (40, 255), (40, 40, 40)),
        ("I;16", 90 * 256, (90, 90, 90)),
    ],
)
def test_every_png_mode_becomes_rgb(tmp_path, mode, colour, expected):
    file = tmp_path / "x.png"
    Image.new(mode, (50, 40), colour).save(file)
    assert colour_of(file) == list(expected)


def tiff(values: np.ndarray, white_is_zero: bool = False) -> bytes:
    """Write what Pillow cannot: an uncompressed TIFF of any depth."""
    height, width, *channels = values.shape
    count, kind = (channels or [1])[0], {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = struct.pack(f"<{count}H", *[8 * values.dtype.itemsize] * count).ljust(8, b"\0")
    body = bits + values.astype(values.dtype.newbyteorder("<")).tobytes()
    depth = int.from_bytes(bits[:4], "little") if count < 3 else 8  # beyond four bytes: its place
    tags = [
        (256, width), (257, height), (258, depth, count), (259, 1),
        (262, 0 if white_is_zero else 1 + (count == 3)), (273, 16), (277, count), (278, height),
        (279, values.nbytes), (339, kind),
    ]  # fmt: skip
    entries = b"".join(
        struct.pack("<HHII", tag, 3 if tag in (258, 259, 262, 277, 339) else 4, (rest or [1])[0], v)
        for tag, v, *rest in tags
    )
    head = struct.pack("<2sHI", b"II", 42, 8 + len(body))
    return head + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def noise(kind: str, high: float, *channels: int) -> np.ndarray:
    return (np.random.default_rng(0).random((40, 40, *channels)) * high).astype(kind)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (tiff(noise("<f4", 1.02)), "32 bits a channel, floating-point; save it as JPEG or PNG"),
        (tiff(noise("<u2", 4095)), "16 bits a channel; save it"),
        (tiff(noise("<u2", 4095, 3)), "16 bits a channel; save it"),
        (tiff(noise("<u2", 65535), white_is_zero=True), "16 bits a channel; save it"),
        (tiff(noise("<i4", 255)), "32 bits a channel; save it"),
        (tiff(noise("<f8", 1)), "a TIFF, damaged, or of an unusual depth; save it"),
        (tiff(noise("<f4", 1, 3)), "a TIFF, damaged, or of an unusual depth; save it"),
    ],
    ids=["float", "grey 12", "RGB 12", "white is 0", "int32", "float64", "RGB float"],
)
@pytest.mark.reliability("depths of an image, right or refused by name")
def test_a_depth_whose_white_is_unknown_is_refused_by_its_header(tmp_path, content, named):
    (tmp_path / "x.tif").write_bytes(content)
    with pytest.raises(InputError, match=rf"x\.tif: .*{named}"):
        check_header(tmp_path / "x.tif")


@pytest.mark.parametrize("brightest", [255, 4095, 65535])
@pytest.mark.reliability("depths of an image, right or refused by name")
def test_a_dark_png_stays_dark(tmp_path, brightest):
    values = np.linspace(0, brightest, 40, dtype=np.uint16)[None].repeat(40, 0)
    Image.fromarray(values).save(tmp_path / "x.png")
    grey = decode(tmp_path / "x.png", 40)[..., 0]
    np.testing.assert_array_equal(grey, values >> 8)


def test_eight_bits_whose_white_is_zero_are_turned(tmp_path):
    (tmp_path / "x.tif").write_bytes(tiff(noise("<u1", 1), white_is_zero=True))
    assert decode(tmp_path / "x.tif", 40).min() == 255


def test_a_phones_heic_and_a_giant_image_get_the_advice_that_helps(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(InputError, match=r"x\.heic: its content is HEIC; save it as"):
        check_header(tmp_path / "x.heic")
    save_image(tmp_path / "x.jpg", 0, 0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(InputError, match="million pixels; scale it down"):
        check_header(tmp_path / "x.jpg")


def test_palette_with_transparency_and_cmyk(tmp_path):
    palette = Image.new("RGB", (40, 40), (12, 200, 34)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "p.png")
    assert colour_of(tmp_path / "p.png") == [12, 200, 34]
    Image.new("CMYK", (40, 40), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=95)
    red, green, blue = colour_of(tmp_path / "c.jpg")
    assert red > 200 and green < 60 and blue < 60


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[:20] = 255  # white above, black below, but stored to be turned by 180°
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    image = decode(tmp_path / "turned.jpg", 40)
    assert image[:15].mean() < 20 and image[25:].mean() > 235


def test_aspect_ratio_is_kept_and_centre_taken(tmp_path):
    pixels = np.zeros((40, 120, 3), np.uint8)
    pixels[:, 40:80] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert decode(tmp_path / "wide.png", 40).min() > 250


def test_a_crop_keeps_the_centre_of_the_image(tmp_path):
    pixels = np.full((160, 240, 3), 255, np.uint8)
    pixels[10:-10, 50:-50] = 0  # of the square in the middle, all but a sixteenth at each side
    for name in ("framed.png", "framed.jpg"):
        Image.fromarray(pixels).save(tmp_path / name, quality=95)
        assert decode(tmp_path / name, 80).max() > 240
        assert decode(tmp_path / name, 80, crop=0.8).max() < 15


def test_array_holds_what_decode_gives_and_is_made_once(tmp_path):
    paths = [save_image(tmp_path / f"{i}.jpg", i, i) for i in range(5)]
    array = pixel_array(paths, 32, tmp_path / "cache" / "a.npy")
    assert array.dtype == np.uint8 and array.shape == (5, 32, 32, 3)
    np.testing.assert_array_equal(array, [decode(path, 32) for path in paths])
    for path in paths:
        path.unlink()
    np.testing.assert_array_equal(pixel_array(paths, 32, tmp_path / "cache" / "a.npy"), array)


def test_all_bad_files_are_named_at_once_and_nothing_is_left(tmp_path):
    paths = [save_image(tmp_path / f"{i}.jpg", i, i) for i in range(4)]
    for path in paths[1:3]:
        path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError) as caught:
        pixel_array(paths, 32, tmp_path / "cache" / "a.npy")
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(str(path) in line for path, line in zip(paths[1:3], lines, strict=True))
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [MARK]


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"this is text", "not an image"), ("GIF", "GIF")],
)
def test_bad_headers_give_one_line_with_the_fix(tmp_path, content, reason):
    file = tmp_path / "bad.jpg"
    if content == "GIF":
        Image.new("P", (9, 9)).save(file, format="GIF")
    else:
        file.write_bytes(content)
    with pytest.raises(InputError, match=reason) as caught:
        check_header(file)
    message = str(caught.value)
    assert str(file) in message and "delete" in message and "\n" not in message


@given(st.integers(0, 10**6), st.integers(0, 255))
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_never_gives_more_than_an_input_error(tmp_path_factory, where, value):
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48 * 40 * 3, dtype=np.uint8).reshape(40, 48, 3)).save(buffer, "JPEG")
    content = bytearray(buffer.getvalue())
    content[where % len(content)] = value
    file = tmp_path_factory.mktemp("fuzz") / "x.jpg"
    file.write_bytes(content)
    try:
        assert decode(file, 32).shape == (32, 32, 3)
    except InputError as error:
        assert str(file) in str(error)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
def test_every_format_is_read(tmp_path, kind):
    file = tmp_path / f"x.{kind.lower()}"
    Image.new("RGB", (50, 40), (200, 100, 50)).save(file, kind)
    assert np.abs(decode(file, 32).mean((0, 1)) - (200, 100, 50)).max() < 3
