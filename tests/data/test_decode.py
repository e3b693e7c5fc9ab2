"""Every kind of image file that real folders hold, and every way in which one can be bad."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from conftest import memory_taken, picture
from shvit.data import image_file, reduced, rgb
from shvit.data.decode import MAX_PIXELS, BadImage, decode
from shvit.data.reduced import open_small

RED, GREEN = (250, 10, 10), (10, 250, 10)


def halves(mode="RGB", left=RED, right=GREEN) -> Image.Image:
    """32 wide, 16 high, two colours: which way is up and which colour is which can be seen."""
    image = Image.new("RGB", (32, 16), right)
    image.paste(left, (0, 0, 16, 16))
    return image.convert(mode)


def decode_small(source, least_side, max_pixels=MAX_PIXELS):
    """At a part of its size, as long as the shorter side keeps so many pixels."""
    image = open_small(source, max_pixels)
    return image.decode(min(image.height, image.width) / least_side)


def data_of(image, kind, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_colour(image, position, colour, tolerance=12):
    assert image.mode == "RGB"
    assert np.abs(np.array(image.getpixel(position)) - colour).max() <= tolerance


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"])
def test_formats(kind, tmp_path):
    path = tmp_path / f"a.{kind.lower()}"
    path.write_bytes(data_of(halves(), kind, **({"quality": 95} if kind in ("JPEG", "WEBP") else {})))
    image = decode(path)
    assert image.size == (32, 16)
    assert_colour(image, (4, 8), RED)
    assert_colour(image, (28, 8), GREEN)


@pytest.mark.parametrize(
    ("orientation", "size", "red"),
    [(1, (32, 16), (4, 8)), (2, (32, 16), (28, 8)), (3, (32, 16), (28, 8)), (4, (32, 16), (4, 8)),
     (5, (16, 32), (8, 4)), (6, (16, 32), (8, 4)), (7, (16, 32), (8, 28)), (8, (16, 32), (8, 28))],
)  # fmt: skip
def test_exif_orientation(orientation, size, red):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(data_of(halves(), "JPEG", exif=exif, quality=95))
    assert image.size == size
    assert_colour(image, red, RED)


def test_greyscale():
    assert_colour(decode(data_of(Image.new("L", (8, 8), 77), "PNG")), (4, 4), (77, 77, 77), 0)
    assert_colour(decode(data_of(Image.new("1", (8, 8), 1), "PNG")), (4, 4), (255, 255, 255), 0)


def test_cmyk_jpeg():
    assert_colour(decode(data_of(halves("CMYK"), "JPEG", quality=95)), (4, 8), RED, 20)


def test_sixteen_bit_png_keeps_the_upper_eight():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16)[None].repeat(4, 0)
    pixels = np.asarray(decode(data_of(Image.fromarray(ramp), "PNG")))
    assert pixels.shape == (4, 64, 3)
    np.testing.assert_array_equal(pixels[..., 0], ramp >> 8)


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def raw_png(kind, bits, row, width=2, key=None):
    """A PNG of one row, by its colour type and bits a sample, perhaps with a transparent colour."""
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, kind, 0, 0, 0))
    png += b"" if key is None else chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
    return png + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def test_sixteen_bit_rgb_png():
    row = struct.pack(">3H", 0xFFFF, 0x8000, 0x0000) * 2
    assert decode(raw_png(2, 16, row)).getpixel((0, 0)) == (255, 128, 0)


@pytest.mark.parametrize(
    ("kind", "bits", "row", "key", "expected"),
    [
        (2, 8, bytes([10, 20, 30, 40, 50, 60]), (10, 20, 30), [(255, 255, 255), (40, 50, 60)]),
        (2, 16, struct.pack(">6H", 2560, 5120, 7680, 65535, 0, 0), (2560, 5120, 7680), [(255, 255, 255), (255, 0, 0)]),
        (0, 8, bytes([7, 90]), (7,), [(255, 255, 255), (90, 90, 90)]),
        (0, 16, struct.pack(">2H", 4000, 65535 - 255), (4000,), [(255, 255, 255), (255, 255, 255)]),
        (0, 4, bytes([0x3A]), (3,), [(255, 255, 255), (170, 170, 170)]),
        (0, 2, bytes([0x40]), (0,), [(85, 85, 85), (255, 255, 255)]),
        (0, 1, bytes([0x80]), (0,), [(255, 255, 255), (255, 255, 255)]),
    ],
    ids=str,
)
def test_a_transparent_colour_shows_white(kind, bits, row, key, expected):
    image = decode(raw_png(kind, bits, row, key=key))
    assert [image.getpixel((x, 0)) for x in range(2)] == expected
    small = decode_small(raw_png(kind, bits, row, key=key), 1).values
    assert [tuple(pixel) for pixel in small[0].tolist()] == expected


def grey_of(data):
    """The values of a decoded image of one row, which is grey."""
    pixels = np.asarray(decode(data))
    assert (pixels == pixels[..., :1]).all()
    np.testing.assert_array_equal(decode_small(data, 1).values, pixels)
    return pixels[0, :, 0].tolist()


@pytest.mark.parametrize(
    ("top", "dtype", "kind"),
    [
        (255, np.int32, "TIFF"),
        (255, np.uint16, "TIFF"),
        (255, np.uint16, "PNG"),
        (1023, np.uint16, "PNG"),
        (4095, np.uint16, "PNG"),
        (4095, np.uint16, "TIFF"),
        (4095, np.int32, "TIFF"),
        (65535, np.int32, "TIFF"),
        (2**31 - 1, np.int32, "TIFF"),
    ],
    ids=str,
)
def test_deep_grey_is_scaled_by_the_range_that_holds_it(top, dtype, kind):
    ramp = np.array([[0, top // 4 + 1, top // 2 + 1, top]], dtype)
    assert grey_of(data_of(Image.fromarray(ramp), kind)) == [0, 64, 128, 255]


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_a_declared_range_is_kept(dtype):
    """Of a dark image, too."""
    ramp = np.array([[0, 100, 200, 400]], dtype)
    assert grey_of(data_of(Image.fromarray(ramp), "TIFF", tiffinfo={341: 799.0})) == [0, 32, 64, 128]
    black = {340: 100.0, 341: 400.0}
    assert grey_of(data_of(Image.fromarray(ramp), "TIFF", tiffinfo=black))[1::2] == [0, 255]


def test_pgm_is_scaled_by_its_own_maximum():
    dark = np.array([[0, 256, 512, 4095]], ">u2")
    assert grey_of(b"P5 4 1 65535\n" + dark.tobytes()) == [0, 1, 2, 15]
    assert grey_of(b"P5 4 1 4095\n" + dark.tobytes()) == [0, 16, 32, 255]


def test_a_tiff_whose_zero_is_white():
    ramp = np.array([[0, 65535]], np.uint16)
    assert grey_of(data_of(Image.fromarray(ramp), "TIFF", tiffinfo={262: 0})) == [255, 0]


def test_what_has_no_range_is_refused():
    assert "below zero" in bad(data_of(Image.fromarray(np.array([[-5, 9]], np.int32)), "TIFF"))
    assert "floating-point" in bad(
        data_of(Image.fromarray(np.array([[np.nan]], np.float32)), "TIFF", tiffinfo={341: 1.0})
    )
    for kind, values in ((2, (4095, 100, 7) * 2), (6, (4095, 100, 7, 65535) * 2), (4, (4095, 65535) * 2)):
        assert "only the lowest 12 bits" in bad(raw_png(kind, 16, struct.pack(f">{len(values)}H", *values)))


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_shows_white(mode):
    image = Image.new("RGBA", (8, 8), (200, 200, 200, 0)).convert(mode)
    assert_colour(decode(data_of(image, "PNG")), (4, 4), (255, 255, 255), 0)


def test_palette_with_transparency():
    image = halves("P")
    transparent = image.getpixel((4, 8))
    decoded = decode(data_of(image, "PNG", transparency=transparent))
    assert_colour(decoded, (4, 8), (255, 255, 255), 0)
    assert_colour(decoded, (28, 8), GREEN, 30)
    per_entry = decode(data_of(image, "PNG", transparency=bytes(255 if i != transparent else 0 for i in range(256))))
    assert_colour(per_entry, (4, 8), (255, 255, 255), 0)


def test_animated_gif_gives_the_first_frame():
    data = data_of(halves(), "GIF", save_all=True, append_images=[Image.new("RGB", (32, 16), (0, 0, 255))] * 2)
    assert_colour(decode(data), (4, 8), RED)


def test_unicode_names(tmp_path):
    path = tmp_path / "Käfer 甲虫 🐞.jpg"
    halves().save(path)
    assert decode(path).size == (32, 16)
    assert decode(str(path)).size == (32, 16)


def test_arrays_and_opened_images():
    array = np.asarray(picture(99))
    np.testing.assert_array_equal(np.asarray(decode(array)), array)
    assert decode(array[..., 0]).mode == "RGB"
    assert decode(Image.new("L", (5, 5), 3)).getpixel((0, 0)) == (3, 3, 3)


def bad(source, **options):
    with pytest.raises(BadImage) as caught:
        decode(source, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(BadImage) as small:
        decode_small(source, 1, **options)
    assert str(small.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated(kind, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    data = data_of(noise, kind)
    assert bad(data[: int(len(data) * share)])


def outcome(decoder, data):
    try:
        return decoder(data).tobytes()
    except BadImage as error:
        return str(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow on damaged metadata
def test_flipped_bytes_never_crash():
    rng = np.random.default_rng(0)
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        whole = data_of(picture(120), kind)
        for _ in range(60):
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 8):
                data[place] = rng.integers(256)
            one = outcome(lambda data: decode(data, 1_000_000), bytes(data))
            other = outcome(lambda data: decode_small(data, 1000, 1_000_000).values, bytes(data))
            assert one == other


def test_empty(tmp_path):
    (tmp_path / "a.jpg").touch()
    assert bad(tmp_path / "a.jpg") == "file is empty"


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def test_no_program_is_started(tmp_path, monkeypatch):
    """Pillow has Ghostscript draw PostScript, whatever the file is called."""
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    assert bad(POSTSCRIPT) == "not an image in a known format"
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "EPS"])
def test_formats_that_unpack_before_their_size_is_known_are_not_read(kind):
    assert bad(data_of(Image.new("RGB", (128, 128)), kind)) == "not an image in a known format"


def with_scans(data, copies):
    """A JPEG whose last scan comes so many times more."""
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + copies * data[start:end] + data[end:]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_of_too_many_scans_is_refused(decoders, progressive):
    whole = data_of(halves(), "JPEG", progressive=progressive)
    assert bad(with_scans(whole, 300)).endswith(" scans, more than the limit of 100 for an image of this size")
    if progressive:
        assert decode(with_scans(whole, 50)).size == (32, 16)


def test_scans_of_a_large_jpeg_count_for_more(decoders):
    data = data_of(Image.new("L", (9400, 9400)), "JPEG", progressive=True)
    assert bad(with_scans(data, 16)).endswith("more than the limit of 16 for an image of this size")


def test_scans_of_previews_and_bytes_after_the_image_do_not_count(decoders):
    data = data_of(halves(), "JPEG", progressive=True)
    preview = b"\xff\xed" + struct.pack(">H", 2 + 2 * 400) + 400 * b"\xff\xda"
    assert decode(data[:2] + preview + data[2:] + 500 * b"\xff\xda").size == (32, 16)
    assert len(open_small(data[:2] + preview + data[2:] + 500 * b"\xff\xda").decode(1).values) == 16


@pytest.mark.usefixtures("at_most_ten_seconds")
def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "device.jpg").symlink_to("/dev/zero")
    assert bad(tmp_path / "pipe.jpg") == "not a regular file"
    assert bad(tmp_path / "device.jpg") == "not a regular file"


@pytest.mark.parametrize(
    ("begin", "reason"),
    [
        (b"", "not an image in a known format"),
        (data_of(halves(), "JPEG"), "more than 32x16 pixels can need"),
        (data_of(halves(), "WEBP"), "more than the limit of 67,108,864 for WebP"),
    ],
)
def test_a_file_of_forty_gigabytes_is_not_read(tmp_path, begin, reason):
    path = tmp_path / "sparse.jpg"
    path.write_bytes(begin)
    os.truncate(path, 40 * 10**9)
    assert reason in bad(path)


def test_a_large_file_of_many_pixels_is_read(tmp_path):
    path = tmp_path / "large.bmp"
    Image.new("RGB", (5000, 5000), RED).save(path)
    assert path.stat().st_size > image_file.SMALL_FILE
    assert_colour(decode(path), (4, 4), RED, 0)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "I;16"])
def test_strips_are_the_whole(monkeypatch, mode):
    """Large images are converted strip by strip."""
    image = picture(100, size=(37, 53))
    image = image.convert("L").convert("I;16") if mode == "I;16" else image.convert(mode)
    if mode == "RGBA":
        image.putalpha(picture(90, 1, size=(37, 53)).convert("L"))
    options = {"transparency": 7} if mode == "P" else {}
    data = data_of(image, "PNG", **options)
    whole = np.asarray(decode(data))
    monkeypatch.setattr(rgb, "STRIP", 200)
    np.testing.assert_array_equal(np.asarray(decode(data)), whole)
    np.testing.assert_array_equal(open_small(data).decode(1).values, whole)


@pytest.mark.parametrize("mode", ["P", "RGBA", "L"])
def test_large_images_are_reduced_as_they_are_converted(monkeypatch, mode):
    """Each pixel is the mean of those it stands for; the last row and column show less of the image."""
    image = picture(100, size=(37, 85)).convert(mode)
    data = data_of(image, "PNG")
    whole = open_small(data).decode(4)
    assert whole.values.shape == (37, 85, 3)
    monkeypatch.setattr(reduced, "LARGE", 37 * 85)
    monkeypatch.setattr(rgb, "STRIP", 400)
    small = open_small(data).decode(4)
    assert (small.height, small.width, small.values.shape) == (37 / 4, 85 / 4, (10, 22, 3))
    np.testing.assert_array_equal(small.values, np.asarray(decode(data).reduce(4)))
    assert open_small(data).decode(1.9).values.shape == (37, 85, 3)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the memory in use is not known here")
def test_a_lack_of_memory_is_a_bad_image(tmp_path):
    """In Pillow, in numpy and in torch."""
    Image.new("L", (9000, 9000)).save(tmp_path / "large.png")
    Image.new("L", (9000, 9000)).save(tmp_path / "large.jpg")
    _, printed = memory_taken(
        """
import resource
from shvit.data.decode import BadImage
from shvit.data.augmentation import TrainReader
from shvit.data.transforms import EvalReader, Preprocess, fast_eval_decoder
size = Preprocess(32)
readers = [EvalReader(size), fast_eval_decoder(size), TrainReader(32, crop_scale=(1, 1))]
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**26, used + 2**26))
def reason(read, path):
    try:
        return tuple(read(path).shape)
    except BadImage as error:
        return str(error)
print([reason(read, path) for path in sys.argv[1:] for read in readers])
""",
        tmp_path / "large.png",
        tmp_path / "large.jpg",
    )
    assert printed.count("not enough memory to decode it") == 4  # a JPEG is decoded at an eighth of its size
    assert printed.count("(3, 32, 32)") == 2


def test_missing_and_folders(tmp_path):
    assert bad(tmp_path / "a.jpg") == "no such file"
    assert bad(tmp_path) == "no such file"


@pytest.mark.parametrize("data", [b"hello", b"\0" * 1000, b"<html></html>", b"%PDF-1.4"])
def test_not_an_image(data):
    assert bad(data) == "not an image in a known format"


def test_a_jpeg_of_twelve_bits(decoders):
    data = bytearray(data_of(halves(), "JPEG"))
    data[data.index(b"\xff\xc0") + 4] = 12
    for read in (decode, lambda data: open_small(data).decode(2)):
        with pytest.raises(BadImage):
            read(bytes(data))


def test_more_pixels_than_the_limit():
    assert bad(data_of(halves(), "PNG"), max_pixels=500) == "32x16 is more than the limit of 500 pixels"
    assert decode(data_of(halves(), "PNG"), max_pixels=512)


@pytest.mark.parametrize("side", [12_000, 40_000])
def test_decompression_bombs_are_refused_before_they_are_decoded(side):
    data = data_of(Image.new("1", (16, 16)), "PNG")
    header = struct.pack(">II", side, side) + data[24:29]
    data = data[:16] + header + struct.pack(">I", zlib.crc32(b"IHDR" + header)) + data[33:]
    assert "limit" in bad(data)


def test_pixels_without_eight_bit_meaning():
    assert "floating-point" in bad(data_of(Image.new("F", (4, 4), 0.5), "TIFF"))
    assert bad(np.zeros((4, 4, 3), np.float32)) == "arrays must hold uint8 values from 0 to 255, got float32"
    assert "(height, width, 3), got (4, 4, 4)" in bad(np.zeros((4, 4, 4), np.uint8))
    assert "got (3,)" in bad(np.zeros(3, np.uint8))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5, 3), (5, 0, 3)])
def test_images_without_pixels(shape):
    assert "image without pixels" in bad(np.zeros(shape, np.uint8))
    assert "image without pixels" in bad(Image.new("RGB", (shape[1], shape[0])))


@pytest.fixture(params=["with simplejpeg", "Pillow alone"])
def decoders(request, monkeypatch):
    """Runs a test with both decoders of JPEG files."""
    if request.param == "Pillow alone":
        monkeypatch.setattr(reduced, "SIMPLEJPEG", False)
    else:
        pytest.importorskip("simplejpeg")


def kinds_of_jpeg():
    image = picture(130, size=(52, 75))
    turned = [Image.Exif() for _ in range(8)]
    for orientation, exif in enumerate(turned, 1):
        exif[0x0112] = orientation
    options = {
        "4:2:0": {"subsampling": 2},
        "4:4:4": {"subsampling": 0, "quality": 95},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_rows": 1},
        "RGB": {"keep_rgb": True},
        **{f"turned {orientation}": {"exif": exif} for orientation, exif in enumerate(turned, 1)},
    }
    kinds = {name: data_of(image, "JPEG", **chosen) for name, chosen in options.items()}
    return kinds | {mode: data_of(image.convert(mode), "JPEG") for mode in ("L", "CMYK")}


@pytest.mark.parametrize(("name", "data"), kinds_of_jpeg().items(), ids=kinds_of_jpeg().keys())
def test_small_images_are_decoded_as_ever(decoders, name, data):
    whole, small = np.asarray(decode(data)), decode_small(data, 27)
    np.testing.assert_array_equal(small.values, whole)
    assert (small.height, small.width) == whole.shape[:2]


@pytest.mark.parametrize(("name", "data"), kinds_of_jpeg().items(), ids=kinds_of_jpeg().keys())
def test_large_jpegs_are_decoded_at_a_part_of_their_size(decoders, name, data):
    whole, small = np.asarray(decode(data)), decode_small(data, 13)  # 52 x 75 pixels, at a quarter
    height, width = (side / 4 for side in whole.shape[:2])
    assert (small.height, small.width) == (height, width)
    assert small.values.shape == (-(-whole.shape[0] // 4), -(-whole.shape[1] // 4), 3)
    means = np.asarray(Image.fromarray(whole).reduce(4)).astype(int)
    assert np.abs(small.values - means).mean() < 3


def test_other_formats_keep_their_size():
    for source in (data_of(halves(), "PNG"), halves(), np.asarray(halves())):
        small = decode_small(source, 1)
        assert (small.height, small.width) == small.values.shape[:2] == (16, 32)
        np.testing.assert_array_equal(small.values, np.asarray(halves()))


@pytest.mark.parametrize("at_most", [1, 2.5])
@pytest.mark.parametrize("rows", [1, 40, 77, 120, 190, 200])
@pytest.mark.parametrize(
    "options",
    [{}, {"subsampling": 0}, {"subsampling": 1}, {"restart_marker_blocks": 3}, {"progressive": True}],
    ids=str,
)
def test_the_upper_rows_are_those_of_the_whole(decoders, rows, at_most, options):
    data = data_of(picture(110, size=(200, 144)), "JPEG", quality=90, **options)
    whole, top = open_small(data).decode(at_most), open_small(data).decode(at_most, rows)
    assert (top.height, top.width) == (whole.height, whole.width)
    wanted = -(-rows * len(whole.values) // 200)
    assert len(top.values) >= wanted
    assert np.array_equal(top.values[:wanted], whole.values[:wanted])


def test_decoding_ends_after_the_rows_that_are_wanted():
    pytest.importorskip("simplejpeg")
    data = data_of(picture(110, size=(400, 144)), "JPEG", quality=90)
    assert 100 <= len(open_small(data).decode(1, 100).values) < 150
    for share in (0.125, 0.75):  # before and after what is wanted
        with pytest.raises(BadImage, match="truncated"):
            open_small(data[: int(share * len(data))]).decode(1, 100)
