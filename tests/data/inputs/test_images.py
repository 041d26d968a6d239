"""Pictures in every mode and format people have, and the broken and hostile ones."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms
from skimage import data as photos

from rb_jax.data.inputs import images
from rb_jax.errors import InputError


@pytest.fixture(scope="module")
def photo():
    return np.array(Image.fromarray(photos.astronaut()).resize((120, 80), Image.Resampling.BOX))


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def close(a, b, tolerance):
    return float(np.abs(a.astype(float) - b.astype(float)).mean()) <= tolerance


@pytest.mark.parametrize(
    ("kind", "options", "tolerance"),
    [
        ("PNG", {}, 0),
        ("BMP", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("JPEG", {"quality": 95, "subsampling": 0}, 3),
        ("GIF", {}, 12),
    ],
)
def test_formats_decode_to_the_same_picture(photo, kind, options, tolerance):
    decoded = images.decode_image(encoded(Image.fromarray(photo), kind, **options), "x")
    assert decoded.dtype == np.uint8
    assert close(decoded, photo, tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(photo, kind, orientation):
    undo = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(undo(photo)))
    decoded = images.decode_image(encoded(stored, kind, exif=exif), "x")
    assert decoded.shape == photo.shape
    assert close(decoded, photo, 8)


def oriented(picture, kind, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(picture), kind, exif=exif, **options)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_resizing_while_decoding_is_resizing_afterwards(photo, kind, orientation):
    data = oriented(photo, kind, orientation)
    whole = images.decode_image(data, "x")
    assert images.picture_size(data, "x") == whole.shape[:2]
    for height, width in [(57, 61), (80, 120), (19, 130)]:
        expected = Image.fromarray(whole).resize((width, height), Image.Resampling.BICUBIC)
        resized = images.decode_resized(data, "x", height, width)
        assert resized.shape == (height, width, 3)
        assert close(resized, np.asarray(expected), 1)
    cropped = images.decode_resized(data, "x", 40, 20, keep=(0.5, 0.25))
    top, left = whole.shape[0] // 4, whole.shape[1] * 3 // 8
    middle = whole[top : whole.shape[0] - top, left : whole.shape[1] - left]
    expected = Image.fromarray(middle).resize((20, 40), Image.Resampling.BICUBIC)
    assert close(cropped, np.asarray(expected), 3)


def smooth(height, width, seed):
    """A photograph of nothing: blurred noise of many sizes, full range."""
    random = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3))
    for cells in (3, 7, 17):
        noise = random.integers(0, 256, (cells, cells + 2, 3)).astype(np.uint8)
        large = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        picture += np.asarray(large) / 3
    return picture.astype(np.uint8)


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(
    ("height", "width", "divisor"), [(512, 512, 2), (301, 455, 2), (1023, 517, 4), (513, 1031, 8)]
)
def test_scaled_decoding_is_close(monkeypatch, height, width, divisor, orientation):
    data = oriented(smooth(height, width, divisor), "JPEG", orientation, quality=92)
    scaled, draft = [], images.JpegImagePlugin.JpegImageFile.draft

    def watched(image, mode, size):
        scaled.append(draft(image, mode, size))
        return scaled[-1]

    monkeypatch.setattr(images.JpegImagePlugin.JpegImageFile, "draft", watched)
    shape = height // divisor, width // divisor
    shape = shape[::-1] if orientation == 6 else shape
    made = images.decode_resized(data, "x", *shape)
    assert scaled[0][1][2:] == (width / divisor, height / divisor)
    assert np.array_equal(made, images.decode_resized(data, "x", *shape))
    exact = Image.fromarray(images.decode_image(data, "x"))
    exact = np.asarray(exact.resize(shape[::-1], Image.Resampling.BICUBIC), float)
    assert 10 * np.log10(255**2 / np.mean((made - exact) ** 2)) > 42


def test_large_targets_are_decoded_in_full(photo):
    data = encoded(Image.fromarray(photo), "JPEG")
    whole = Image.fromarray(images.decode_image(data, "x"))
    for height, width in [(41, 60), (40, 61), (160, 240)]:
        expected = np.asarray(whole.resize((width, height), Image.Resampling.BICUBIC))
        assert np.array_equal(images.decode_resized(data, "x", height, width), expected)


def test_cmyk_jpeg(photo):
    data = encoded(Image.fromarray(photo).convert("CMYK"), "JPEG", quality=95)
    assert close(images.decode_image(data, "x"), photo, 4)
    expected = images.to_square(photo, 40)
    assert close(images.decode_resized(data, "x", 40, 40), expected, 4)


def test_grey_and_one_bit(photo):
    grey = Image.fromarray(photo).convert("L")
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=-1)
    assert np.array_equal(images.decode_image(encoded(grey, "PNG"), "x"), expected)
    bits = images.decode_image(encoded(grey.convert("1"), "PNG"), "x")
    assert set(np.unique(bits)) == {0, 255}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(photo, kind):
    grey = np.asarray(Image.fromarray(photo).convert("L"))
    wide = Image.fromarray(grey.astype(np.uint16) * 257)
    decoded = images.decode_image(encoded(wide, kind), "x")
    assert np.array_equal(decoded[..., 0], grey)


def test_sixteen_bit_that_is_dark_stays_dark(photo):
    dark = np.asarray(Image.fromarray(photo).convert("L")).astype(np.uint16) * 20
    decoded = images.decode_image(encoded(Image.fromarray(dark), "PNG"), "x")
    assert decoded.max() == round(int(dark.max()) / 257)


def test_thirty_two_bit_integers_and_floats(photo):
    grey = np.array(Image.fromarray(photo).convert("L"))
    grey[0, :2] = 0, 255
    for values in (
        grey.astype(np.int32) * 257,
        grey.astype(np.int32) * 1000 - 5000,
        grey.astype(np.float32) / 255,
        grey.astype(np.float32),
        grey.astype(np.float32) - 100,
    ):
        decoded = images.decode_image(encoded(Image.fromarray(values), "TIFF"), "x")
        assert np.abs(decoded[..., 0].astype(int) - grey).max() <= 1


def test_float_pictures_survive_not_a_number():
    values = np.full((4, 4), 0.5, np.float32)
    values[0, 0], values[1, 1] = np.nan, np.inf
    decoded = images.decode_image(encoded(Image.fromarray(values), "TIFF"), "x")
    assert decoded[2, 2, 0] == 128 and decoded[0, 0, 0] == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(photo, mode):
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:, :60] = 0
    picture = Image.fromarray(photo).convert(mode)
    picture.putalpha(Image.fromarray(alpha))
    decoded = images.decode_image(encoded(picture, "PNG"), "x")
    assert (decoded[:, :60] == 255).all()
    opaque = np.asarray(Image.fromarray(photo).convert(mode[:-1]).convert("RGB"))
    assert np.array_equal(decoded[:, 60:], opaque[:, 60:])


def test_half_transparent_black_is_grey():
    picture = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert images.decode_image(encoded(picture, "PNG"), "x")[0, 0, 0] == 127


def test_palette_with_and_without_transparency(photo):
    palette = Image.fromarray(photo).quantize(32)
    expected = np.asarray(palette.convert("RGB"))
    assert np.array_equal(images.decode_image(encoded(palette, "PNG"), "x"), expected)
    clear = images.decode_image(encoded(palette, "PNG", transparency=0), "x")
    holes = np.asarray(palette) == 0
    assert (clear[holes] == 255).all() and np.array_equal(clear[~holes], expected[~holes])


def test_first_frame_of_an_animation(photo):
    first, second = Image.fromarray(photo), Image.fromarray(255 - photo)
    data = encoded(first, "GIF", save_all=True, append_images=[second])
    assert close(images.decode_image(data, "x"), photo, 12)


def test_embedded_profile_is_applied(photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ"))
    odd = encoded(Image.fromarray(photo), "PNG", icc_profile=profile.tobytes())
    images.decode_image(odd, "x")  # a profile that does not fit is ignored
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    data = encoded(Image.fromarray(photo), "PNG", icc_profile=srgb.tobytes())
    assert np.array_equal(images.decode_image(data, "x"), photo)
    broken = encoded(Image.fromarray(photo), "PNG", icc_profile=b"not a profile")
    assert np.array_equal(images.decode_image(broken, "x"), photo)


def png_chunk(kind, data):
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def bomb(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    parts = [png_chunk(b"IHDR", header), png_chunk(b"IDAT", body), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(
    ("width", "height"), [(7000, 7000), (12000, 12000), (60000, 60000), (2**31 - 1, 3), (39000, 3)]
)
def test_a_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(InputError, match=r"bomb\.png: \d+ x \d+ pixels; the limit is 40 mega"):
        images.decode_image(bomb(width, height), "bomb.png")


def test_a_picture_without_pixels():
    with pytest.raises(InputError, match="x.png: "):
        images.decode_image(bomb(0, 5), "x.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_cut_off_files_are_refused(photo, kind):
    data = encoded(Image.fromarray(photo), kind)
    for size in (len(data) // 2, 40, 12, 3):
        with pytest.raises(InputError, match=r"^x: [^\n]*$"):
            images.decode_image(data[:size], "x")
        with pytest.raises(InputError, match=r"^x: [^\n]*$"):
            images.decode_resized(data[:size], "x", 9, 8)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_flipped_bytes_decode_or_are_refused(photo, kind):
    data = encoded(Image.fromarray(photo), kind)
    random = np.random.default_rng(0)
    for _ in range(40):
        damaged = bytearray(data)
        for place in random.integers(0, min(len(data), 400), 3):
            damaged[place] = random.integers(0, 256)
        try:
            pixels = images.decode_image(bytes(damaged), "x")
        except InputError as error:
            assert "\n" not in str(error)
        else:
            assert pixels.shape[-1] == 3


@pytest.mark.parametrize("data", [b"", b"hello", b"RIFF0000AVI ", b"%PDF-1.7", b"<svg></svg>"])
def test_other_content_is_refused(data):
    with pytest.raises(InputError, match="x: "):
        images.decode_image(data, "x")


def test_paths_without_a_picture(tmp_path):
    for path, why in [
        (tmp_path, "is a folder"),
        (tmp_path / "none.png", "no such file"),
        ("a\0b", "no such file|cannot be read"),
        ("x" * 5000, "cannot be read"),
    ]:
        with pytest.raises(InputError, match=why):
            images.open_image(path)


def test_resizing_there_and_back(photo):
    square = images.to_square(photo, 64)
    assert square.shape == (64, 64, 3)
    back = images.from_square(square, 80, 120)
    assert back.shape == photo.shape and close(back, photo, 15)
    same = images.to_square(square, 64)
    assert np.array_equal(same, square) and same is not square


def test_shrinking_is_antialiased():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(images.to_square(stripes, 32).astype(int) - 128).max() < 20


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp", ".bmp", ".tif", ".tiff"])
def test_saving_round_trips(photo, tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    images.save_image(path, photo)
    assert close(images.open_image(path), photo, 4)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_saving_where_it_cannot_be(photo, tmp_path):
    (tmp_path / "folder.png").mkdir()
    for name, why in [
        ("a.xyz", "unknown picture suffix"),
        ("a", "has no suffix"),
        ("none/a.png", "does not exist"),
        ("folder.png", "is a folder"),
        ("x" * 300 + ".png", "cannot be written"),
    ]:
        with pytest.raises(InputError, match=why):
            images.save_image(tmp_path / name, photo)
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_bigtiff():
    """TIFF of more than 4 GiB, which scanners write for smaller pictures too."""
    pixels = np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3)
    file, other = io.BytesIO(), io.BytesIO()
    tifffile.imwrite(file, pixels, bigtiff=True, byteorder="<", photometric="rgb")
    np.testing.assert_array_equal(images.decode_image(file.getvalue(), "x"), pixels)
    tifffile.imwrite(other, pixels, bigtiff=True, byteorder=">", photometric="rgb")
    with pytest.raises(InputError, match="x: a big-endian BigTIFF"):
        images.decode_image(other.getvalue(), "x")


def test_colours_as_floats_are_refused_for_what_they_are():
    file = io.BytesIO()
    tifffile.imwrite(file, np.zeros((5, 7, 3), np.float32), photometric="rgb")
    with pytest.raises(InputError, match="x: a TIFF with a kind of pixels .* floating-point"):
        images.decode_image(file.getvalue(), "x")
