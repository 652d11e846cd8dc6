import io

import numpy as np
import pytest
from conftest import save_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fruitveg_tl.data.images import check_header, decode, pixel_array
from fruitveg_tl.utils.errors import InputError


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


@pytest.mark.parametrize(
    ("values", "middle"),
    [
        (np.array([[0, 0.5, 1]], np.float32), 128),
        (np.array([[0, 128, 255]], np.float32), 128),
        (np.array([[0, 2048, 4095]], np.uint16), 128),  # 12 bits in 16
        (np.array([[0, 32768, 65535]], np.uint16), 128),
        (np.array([[0, 100, 255]], np.int32), 100),
        (np.array([[0, 32768, 65535]], np.int32), 128),
    ],
    ids=lambda value: str(getattr(value, "dtype", "")),
)
def test_every_depth_of_a_tiff_keeps_its_greys(tmp_path, values, middle):
    Image.fromarray(values.repeat(40, 0).repeat(40, 1)).save(tmp_path / "x.tif")
    image = decode(tmp_path / "x.tif", 40)
    assert abs(int(image[20, 20, 0]) - middle) <= 1


@pytest.mark.parametrize("values", [[-5, 9], [0, 70000], [0.0, np.nan], [0.0, 1e9]], ids=str)
def test_a_depth_that_cannot_be_told_is_refused_naming_it(tmp_path, values):
    kind = np.float32 if isinstance(values[0], float) else np.int32
    Image.fromarray(np.array([values], kind).repeat(40, 0).repeat(40, 1)).save(tmp_path / "x.tif")
    with pytest.raises(InputError, match=r"x\.tif: grey values from .*8 bits a channel"):
        decode(tmp_path / "x.tif", 40)


def test_a_phones_heic_and_a_giant_image_get_the_advice_that_helps(tmp_path, monkeypatch):
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(InputError, match=r"x\.heic: its content is HEIC; convert it"):
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
    assert not list((tmp_path / "cache").iterdir())


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
