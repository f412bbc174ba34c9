"""Every kind of image file that photo folders hold, decoded and compared with values worked out by hand."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickstudy.errors import UnusableImageError
from quickstudy.images.decoding import InputSpec, decode, to_pixels

# pytest switches off the filter that quickstudy sets; a test below shows that users see none of these.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")

SPEC = InputSpec(size=256)
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    found = decode(data, SPEC)
    assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)
    return found


def noise(width: int, height: int) -> Image.Image:
    """Values without any order: only an exact copy is equal."""
    return Image.fromarray(np.random.Generator(np.random.PCG64(1)).integers(0, 256, (height, width, 3), np.uint8))


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards: survives lossy compression, and no two corners are alike."""
    rows, columns = np.mgrid[0:height, 0:width]
    values = [columns * 255 / max(width - 1, 1), rows * 255 / max(height - 1, 1), np.full((height, width), 90)]
    return Image.fromarray(np.stack(values, axis=-1).astype(np.uint8))


def png(
    width: int, height: int, rows: bytes, *, depth: int = 8, kind: int = 2, transparent: bytes | None = None
) -> bytes:
    """A PNG written chunk by chunk: `kind` is its colour type, `rows` has a filter byte before each row."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    extra = b"" if transparent is None else chunk(b"tRNS", transparent)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("PNG", {"optimize": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_files_give_their_pixels_back(kind: str, options: dict[str, Any]) -> None:
    image = noise(37, 23)
    np.testing.assert_array_equal(pixels(encode(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("JPEG", {"quality": 95, "progressive": True}),
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("JPEG", {"quality": 95, "restart_marker_blocks": 4}),
        ("WEBP", {"quality": 95}),
        ("TIFF", {"compression": "jpeg", "quality": 95}),
    ],
)
def test_lossy_files_come_close_to_their_pixels(kind: str, options: dict[str, Any]) -> None:
    image = gradient(200, 120)
    difference = pixels(encode(image, kind, **options)).astype(int) - np.asarray(image)
    assert abs(difference).mean() < 1.5


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("red", "lime", "blue")]
    for kind, options in [("GIF", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("PNG", {})]:
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
        np.testing.assert_array_equal(pixels(data), np.full((6, 8, 3), (255, 0, 0)), err_msg=kind)


def test_a_gif_keeps_its_palette_and_shows_white_where_it_is_transparent() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putdata([0, 1])
    np.testing.assert_array_equal(pixels(encode(image, "GIF")), [[(10, 20, 30), (200, 100, 50)]])
    np.testing.assert_array_equal(pixels(encode(image, "GIF", transparency=1)), [[(10, 20, 30), (255, 255, 255)]])


def test_two_pictures_in_one_file_as_phones_write_them() -> None:
    first, second = gradient(64, 48), gradient(64, 48).rotate(180)
    data = encode(first, "MPO", save_all=True, append_images=[second], quality=95)
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert abs(pixels(data).astype(int) - np.asarray(first)).mean() < 2


UPRIGHT_BY_HAND = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}
"""From the stored array to the upright one, from the EXIF standard's table: which side row 0 and column 0 are."""


@pytest.mark.parametrize("orientation", UPRIGHT_BY_HAND)
@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("WEBP", {"lossless": True}), ("JPEG", {})],
)
def test_images_come_out_upright(orientation: int, kind: str, options: dict[str, Any]) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = gradient(64, 40)
    upright = UPRIGHT_BY_HAND[orientation](np.asarray(stored))
    found = pixels(encode(stored, kind, exif=exif, **options))
    assert found.shape == upright.shape
    assert abs(found.astype(int) - upright).mean() < (2 if kind == "JPEG" else 1e-9)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"quality": 90}),
        ("RGB", {"quality": 60, "progressive": True}),
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
@pytest.mark.parametrize("side", [40, 300, 700])
def test_jpegs_with_and_without_exif_data_give_pillows_pixels(mode: str, options: dict[str, Any], side: int) -> None:
    """They take ways of their own through the same library."""
    stored = gradient(side + 33, side).convert(mode)
    plain = encode(stored, "JPEG", **options)
    exif = Image.Exif()
    exif[ORIENTATION] = 1
    np.testing.assert_array_equal(pixels(plain), pixels(encode(stored, "JPEG", exif=exif, **options)))
    image = Image.open(io.BytesIO(plain))
    image.draft(None, ((side + 33) // 2, side // 2) if side >= 2 * SPEC.size else image.size)
    np.testing.assert_array_equal(pixels(plain), np.asarray(image.convert("RGB")))


def test_too_large_a_jpeg_is_refused_by_its_header() -> None:
    data = encode(gradient(64, 48), "JPEG")
    assert decode(data, SPEC, most_pixels=64 * 48).shape == (48, 64, 3)
    with pytest.raises(UnusableImageError, match=r"too many pixels \(64x48; the limit is 0.003071 million\)"):
        decode(data, SPEC, most_pixels=64 * 48 - 1)


def test_a_photo_taken_with_the_phone_on_its_side() -> None:
    """Orientation 6 means: turn clockwise. The stored picture's left lower corner is the upright one's left upper."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.new("RGB", (3, 2), "black")
    stored.putpixel((0, 1), (255, 255, 255))
    found = pixels(encode(stored, "PNG", exif=exif))
    assert found.shape == (3, 2, 3)
    assert found[0, 0].tolist() == [255, 255, 255]
    assert found.sum() == 3 * 255


def with_exif(tiff: bytes) -> bytes:
    """A JPEG of 40×30 pixels whose EXIF block holds these bytes."""
    data = encode(gradient(40, 30), "JPEG")
    block = b"Exif\0\0" + tiff
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + data[2:]


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"neither byte order",
        b"II*\0",
        b"II*\0\xff\xff\xff\x7f",
        b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0",
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, ORIENTATION, 3, 1, 9, 0),
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, ORIENTATION, 3, 1, 0, 0),
        b"II*\0\x08\0\0\0" + struct.pack("<HHHI4sI", 1, ORIENTATION, 2, 4, b"top\0", 0),
        b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, ORIENTATION, 5, 1, 0xFFFFFF, 0),
    ],
    ids=["empty", "text", "no IFD", "IFD far away", "IFD cut off", "nine", "zero", "text value", "rational far away"],
)
def test_a_broken_exif_block_does_not_cost_the_photo(tiff: bytes) -> None:
    assert pixels(with_exif(tiff)).shape == (30, 40, 3)


def test_grey_stays_grey() -> None:
    image = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    for kind in ("PNG", "BMP", "TIFF"):
        expected = np.repeat(np.asarray(image)[..., None], 3, axis=-1)
        np.testing.assert_array_equal(pixels(encode(image, kind)), expected, err_msg=kind)


def over_white(value: int, alpha: int) -> int:
    return round((value * alpha + 255 * (255 - alpha)) / 255)


def test_alpha_is_laid_over_white() -> None:
    values, alphas = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.stack([values, 255 - values, np.full_like(values, 77), alphas], axis=-1)
    expected = np.vectorize(over_white)(rgba[..., :3].astype(int), alphas[..., None].astype(int))
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(encode(Image.fromarray(rgba), kind)), expected, err_msg=kind)


def test_alpha_by_hand() -> None:
    rgba = Image.new("RGBA", (3, 1))
    rgba.putdata([(255, 0, 0, 128), (10, 20, 30, 0), (10, 20, 30, 255)])
    expected = [[(255, 127, 127), (255, 255, 255), (10, 20, 30)]]
    for kind, options in [("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})]:
        np.testing.assert_array_equal(pixels(encode(rgba, kind, **options)), expected, err_msg=kind)


def test_grey_with_alpha_is_laid_over_white() -> None:
    image = Image.new("LA", (3, 1))
    image.putdata([(0, 0), (0, 128), (100, 255)])
    np.testing.assert_array_equal(pixels(encode(image, "PNG")), [[(255,) * 3, (127,) * 3, (100,) * 3]])


def test_a_palette_is_looked_up() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 128])
    image.putdata([2, 0, 1])
    expected = [[(255, 0, 128), (1, 2, 3), (40, 50, 60)]]
    for kind in ("PNG", "BMP", "TIFF", "GIF"):
        np.testing.assert_array_equal(pixels(encode(image, kind)), expected, err_msg=kind)


def test_a_palette_with_transparency_is_laid_over_white() -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([1, 2, 3, 40, 50, 60, 255, 0, 128])
    image.putdata([2, 0, 1])
    half_seen = tuple(over_white(value, 128) for value in (255, 0, 128))
    by_entry = pixels(encode(image, "PNG", transparency=bytes([255, 0, 128])))
    np.testing.assert_array_equal(by_entry, [[half_seen, (1, 2, 3), (255, 255, 255)]])
    one_entry = pixels(encode(image, "PNG", transparency=0))
    np.testing.assert_array_equal(one_entry, [[(255, 0, 128), (255, 255, 255), (40, 50, 60)]])


def test_the_colour_that_a_png_names_as_transparent_is_white() -> None:
    white, kept = [255, 255, 255], [9, 8, 7]
    rgb = png(2, 1, b"\0" + bytes([1, 2, 3, 9, 8, 7]), transparent=struct.pack(">HHH", 1, 2, 3))
    grey = png(2, 1, b"\0" + bytes([5, 6]), kind=0, transparent=struct.pack(">H", 5))
    bits = png(2, 1, b"\0" + bytes([0b01000000]), depth=1, kind=0, transparent=struct.pack(">H", 0))
    assert pixels(rgb).tolist() == [[white, kept]]
    assert pixels(grey).tolist() == [[white, [6, 6, 6]]]
    assert pixels(bits).tolist() == [[white, white]]


def test_cmyk_becomes_rgb() -> None:
    image = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 0, 16, 16))
    for kind, options in [("TIFF", {}), ("JPEG", {"quality": 100, "subsampling": 0})]:
        found = pixels(encode(image, kind, **options)).astype(int)
        assert abs(found[:, :8] - (0, 255, 255)).max() <= 2, kind
        assert abs(found[:, 8:] - (0, 0, 0)).max() <= 2, kind


def test_sixteen_bits_become_eight() -> None:
    levels = np.array([[0, 255, 256, 257, 32767, 32768, 65279, 65535]], np.uint16)
    expected = [[(level >> 8,) * 3 for level in levels[0].tolist()]]
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(pixels(encode(Image.fromarray(levels), kind)), expected, err_msg=kind)
    big_endian = levels.astype(">u2").tobytes()
    np.testing.assert_array_equal(pixels(png(8, 1, b"\0" + big_endian, depth=16, kind=0)), expected)
    header = struct.pack(">2sHI", b"MM", 42, 8 + len(big_endian)) + big_endian
    fields = [(256, 8), (257, 1), (258, 16), (259, 1), (262, 1), (273, 8), (278, 1), (279, len(big_endian))]
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in fields)
    np.testing.assert_array_equal(
        pixels(header + struct.pack(">H", len(fields)) + entries + bytes(4)), expected, err_msg="big-endian TIFF"
    )


def test_sixteen_bit_colour_becomes_eight() -> None:
    colours = struct.pack(">HHHHHH", 65535, 32768, 0, 256, 511, 40000)
    assert pixels(png(2, 1, b"\0" + colours, depth=16)).tolist() == [[[255, 128, 0], [1, 1, 156]]]


def test_thirty_two_bit_levels_are_taken_as_the_set_was_said_to_have_them() -> None:
    def decoded(levels: list[int], bits: int = 16) -> list[int]:
        data = encode(Image.fromarray(np.array([levels], np.int32)), "TIFF")
        return decode(data, InputSpec(size=256, bits=bits))[0, :, 0].tolist()

    assert decoded([0, 25600, 65535]) == [0, 100, 255]
    assert decoded([0, 25600]) == [0, 100]  # whatever else is in the image
    assert decoded([0, 100, 255], bits=8) == [0, 100, 255]
    assert decoded([-5, 100, 2_000_000]) == [0, 0, 255]


def test_one_bit_becomes_black_and_white() -> None:
    image = Image.fromarray(np.array([[True, False, True]]))
    assert image.mode == "1"
    for kind, options in [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "group4"})]:
        assert pixels(encode(image, kind, **options))[0, :, 0].tolist() == [255, 0, 255], kind


def test_floats_run_from_nought_to_one() -> None:
    def decoded(values: list[float]) -> list[int]:
        return pixels(encode(Image.fromarray(np.array([values], np.float32)), "TIFF"))[0, :, 0].tolist()

    assert decoded([0, 0.2, 1]) == [0, 51, 255]
    assert decoded([0, 0.2, 1.02]) == [0, 51, 255]
    assert decoded([0, 0.2, 300, -7]) == [0, 51, 255, 0]
    assert decoded([float("nan"), float("inf"), float("-inf"), 0.4]) == [0, 255, 0, 102]


@pytest.mark.parametrize("size", [(1, 1), (1, 1000), (1000, 1), (2, 3), (255, 256), (256, 255), (513, 511)])
def test_any_size_decodes(size: tuple[int, int]) -> None:
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        assert decode(encode(gradient(*size), kind), InputSpec(size=2000)).shape == (size[1], size[0], 3), kind


def test_images_in_memory_become_upright_rgb_in_the_same_way() -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 8
    image = Image.open(io.BytesIO(encode(noise(5, 4), "PNG", exif=exif)))
    np.testing.assert_array_equal(to_pixels(image), pixels(encode(noise(5, 4), "PNG", exif=exif)))
    assert to_pixels(Image.new("LA", (2, 1), (0, 0))).tolist() == [[[255, 255, 255]] * 2]


def test_the_specification_survives_its_values_and_refuses_others() -> None:
    spec = InputSpec(size=299, crop=0.875)
    assert InputSpec.from_dict(spec.to_dict()) == spec
    with pytest.raises(ValueError, match="antialiased-7"):
        InputSpec.from_dict({**spec.to_dict(), "resize": "antialiased-7"})
    with pytest.raises(ValueError, match="mean"):
        InputSpec.from_dict({**spec.to_dict(), "mean": 127})


def decode_in_a_fresh_process(data: bytes) -> tuple[str, str]:
    """What a new process, such as the command line, says about these bytes: the shape, and what it prints besides."""
    code = (
        "import sys; from quickstudy.process import settle_own_process; settle_own_process(); "
        "from quickstudy.images.decoding import InputSpec, decode; "
        "print(decode(sys.stdin.buffer.read(), InputSpec(size=256)).shape)"
    )
    run = subprocess.run([sys.executable, "-c", code], input=data, capture_output=True)
    return run.stdout.decode().strip(), run.stderr.decode()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_the_first_image_of_a_process_decodes(kind: str) -> None:
    """Pillow loads its decoders one by one as they are needed; the right one must be found whatever came before."""
    assert decode_in_a_fresh_process(encode(noise(9, 7), kind)) == ("(7, 9, 3)", "")


def test_odd_metadata_prints_no_warnings() -> None:
    assert decode_in_a_fresh_process(with_exif(b"II*\0\x08\0\0\0\x05\0\x12\x01\x03\0")) == ("(30, 40, 3)", "")


def test_threads_decode_the_same() -> None:
    files = [encode(noise(30 + number, 20), kind) for number, kind in enumerate(["PNG", "WEBP", "TIFF", "BMP"] * 3)]
    expected = [pixels(data) for data in files]
    found: dict[int, list[np.ndarray]] = {}
    threads = [
        threading.Thread(target=lambda n=number: found.update({n: [pixels(data) for data in files]}))
        for number in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        for one, other in zip(found[number], expected, strict=True):
            np.testing.assert_array_equal(one, other)


SAMPLES = {kind: encode(gradient(24, 20), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP")} | {
    "progressive": encode(gradient(24, 20), "JPEG", progressive=True)
}


def decodes_or_says_why(data: bytes) -> None:
    try:
        found = decode(data, SPEC)
    except UnusableImageError as error:
        assert str(error)
        assert "\n" not in str(error)
    else:
        assert (found.dtype, found.ndim, found.shape[2]) == (np.uint8, 3, 3)
        assert found.size > 0


@given(st.binary(max_size=300))
def test_any_bytes_decode_or_say_why(data: bytes) -> None:
    decodes_or_says_why(data)


@given(
    st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0*", b"RIFF1234WEBPVP8 "]),
    st.binary(max_size=200),
)
def test_any_bytes_behind_a_signature_decode_or_say_why(signature: bytes, data: bytes) -> None:
    decodes_or_says_why(signature + data)


@given(st.sampled_from(sorted(SAMPLES)), st.data())
def test_any_damage_to_a_file_decodes_or_says_why(kind: str, choose: st.DataObject) -> None:
    data = bytearray(SAMPLES[kind])
    for _ in range(choose.draw(st.integers(1, 4))):
        data[choose.draw(st.integers(0, len(data) - 1))] = choose.draw(st.integers(0, 255))
    decodes_or_says_why(bytes(data[: choose.draw(st.integers(0, len(data)))]))
