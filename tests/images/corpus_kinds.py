"""The kinds of the corpus, by name; `corpus.py` has the parts that they are made of."""

from __future__ import annotations

import struct
import zlib

import numpy as np
from corpus import (
    BEGINS,
    LINEAR,
    LONG,
    OLD,
    SRGB,
    WIDE,
    Kind,
    chunk,
    clockwise,
    converted,
    cv2_encoded,
    encoded,
    frames,
    grey,
    half_white,
    heic,
    jpeg,
    netpbm,
    paletted,
    patched,
    png,
    riff,
    same,
    segment,
    sixteen,
    split_pixels,
    turned,
    two_levels,
    two_pages,
    vips_encoded,
    webp,
    with_alpha,
    with_broken_tag,
    with_chunks,
    with_segments,
    without_last_scan,
    zeroed,
)
from PIL import Image

TRUNCATED, DAMAGED = "truncated", "damaged"
VIDEO = np.random.Generator(np.random.PCG64(1)).bytes(60_000)

JPEGS: dict[str, Kind] = {
    "baseline": Kind(jpeg, same, 3),
    "progressive": Kind(lambda p: jpeg(p, progressive=True), same, 3),
    "colours at full size": Kind(lambda p: jpeg(p, subsampling=0), same, 3),
    "colours at half the width": Kind(lambda p: jpeg(p, subsampling=1), same, 3),
    "colours at half the height": Kind(cv2_encoded(".jpg", 7, 0x121111), same, 4, "cv2"),
    "colours at a quarter of the width": Kind(cv2_encoded(".jpg", 7, 0x411111), same, 4, "cv2"),
    "grey": Kind(lambda p: jpeg(grey(p)[..., 0]), grey, 2),
    "restart markers": Kind(lambda p: jpeg(p, restart_marker_blocks=3), same, 3),
    "optimised tables": Kind(lambda p: jpeg(p, optimize=True), same, 3),
    "stored as RGB": Kind(lambda p: jpeg(p, keep_rgb=True), same, 3),
    "CMYK, inverted as Adobe's": Kind(lambda p: jpeg(Image.fromarray(p).convert("CMYK")), same, 4),
    "turned by EXIF": Kind(lambda p: jpeg(p, exif=clockwise()), turned, 3),
    "turned, EXIF behind a profile that holds FF DA": Kind(
        lambda p: with_segments(
            jpeg(p), segment(0xE2, b"ICC_PROFILE\0\1\1" + b"\xff\xda" * 40), segment(0xE1, clockwise())
        ),
        turned,
        3,
    ),
    "turned, EXIF behind a thumbnail": Kind(
        lambda p: with_segments(jpeg(p), segment(0xE0, b"JFXX\0\x10" + jpeg(p[:40, :40])), segment(0xE1, clockwise())),
        turned,
        3,
    ),
    "a motion photo, with a video behind": Kind(lambda p: jpeg(p) + b"\0\0\0\x18ftypmp42" + VIDEO, same, 3),
    "two pictures in one (MPO)": Kind(lambda p: encoded(p, "MPO", quality=92, **frames(p)), same, 3),
    "without its end marker": Kind(lambda p: jpeg(p)[:-2], same, 3),
    "progressive, without its end marker": Kind(lambda p: jpeg(p, progressive=True)[:-2], same, 3),
    "zeros in front of the end marker": Kind(lambda p: jpeg(p)[:-2] + bytes(30) + b"\xff\xd9", same, 3),
    "fill bytes in front of the end marker": Kind(lambda p: jpeg(p)[:-2] + b"\xff" * 30 + b"\xff\xd9", same, 3),
    "rubbish between segments": Kind(lambda p: with_segments(jpeg(p), b"rubbish"), same, 3),
    "EXIF whose length is too short": Kind(
        lambda p: with_segments(jpeg(p), segment(0xE1, clockwise() + bytes(40), length=20)), same, 3
    ),
    "a comment that holds an end marker": Kind(lambda p: with_segments(jpeg(p), segment(0xFE, b"\xff\xd9")), same, 3),
    "broken EXIF": Kind(lambda p: with_segments(jpeg(p), segment(0xE1, b"Exif\0\0II*\0\xff\xff")), same, 3),
    "an sRGB profile": Kind(lambda p: jpeg(p, icc_profile=SRGB), same, 3),
    "a wide profile (Display P3)": Kind(lambda p: jpeg(converted(p, WIDE), icc_profile=WIDE), same, 4),
    "a wide profile (Adobe RGB)": Kind(lambda p: jpeg(converted(p, OLD), icc_profile=OLD), same, 4),
    "grey with a linear profile": Kind(lambda p: jpeg(converted(p, LINEAR), icc_profile=LINEAR), grey, 9),
    "a broken profile": Kind(lambda p: jpeg(p, icc_profile=b"no profile" * 20), same, 3),
    "cut at a quarter": Kind(lambda p: jpeg(p)[: len(jpeg(p)) // 4], TRUNCATED),
    "cut at a half, an end marker behind": Kind(lambda p: jpeg(p)[: len(jpeg(p)) // 2] + b"\xff\xd9", TRUNCATED),
    "progressive, cut, an end marker behind": Kind(
        lambda p: jpeg(p, progressive=True)[: len(jpeg(p)) // 2] + b"\xff\xd9", TRUNCATED
    ),
    "progressive, without its last scan": Kind(lambda p: without_last_scan(jpeg(p, progressive=True)), TRUNCATED),
    "zeros inside": Kind(lambda p: zeroed(jpeg(p, restart_marker_blocks=5)), DAMAGED),
    "without its tables": Kind(lambda p: jpeg(p)[:2] + jpeg(p)[jpeg(p).index(b"\xff\xc0") :], DAMAGED),
    "12 bits a sample": Kind(lambda p: patched(jpeg(p), jpeg(p).index(b"\xff\xc0") + 4, 12), "a JPEG of 12 bits"),
    "lossless": Kind(lambda p: jpeg(p).replace(b"\xff\xc0", b"\xff\xc3", 1), "a lossless JPEG"),
}
PNGS: dict[str, Kind] = {
    "RGB": Kind(png, same),
    "grey": Kind(lambda p: png(grey(p)[..., 0]), grey),
    "palette": Kind(lambda p: png(Image.fromarray(p).quantize(64)), paletted),
    "black and white": Kind(lambda p: png(Image.fromarray(p).convert("1")), two_levels),
    "interlaced": Kind(vips_encoded(".png", interlace=True), same, 0, "pyvips"),
    "alpha": Kind(lambda p: png(with_alpha(p)), half_white),
    "grey with alpha": Kind(lambda p: png(with_alpha(grey(p)).convert("LA")), lambda p: half_white(grey(p))),
    "16 bits, grey": Kind(lambda p: png(sixteen(p)), grey),
    "16 bits, RGB": Kind(lambda p: cv2_encoded(".png")(p.astype(np.uint16) * 257), same, 0, "cv2"),
    "3 MB of text": Kind(lambda p: with_chunks(png(p), chunk(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))), same),
    "3 MB of XMP": Kind(
        lambda p: with_chunks(
            png(p), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<x>" + LONG + b"</x>"))
        ),
        same,
    ),
    "broken EXIF": Kind(lambda p: with_chunks(png(p), chunk(b"eXIf", b"\1\0\6\0\0\0")), same),
    "turned by EXIF": Kind(lambda p: png(p, exif=clockwise()), turned),
    "a profile with a wrong checksum": Kind(
        lambda p: with_chunks(png(p), chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"a" * 500), crc=0)), same
    ),
    "text with a wrong checksum": Kind(lambda p: with_chunks(png(p), chunk(b"tEXt", b"a\0b", crc=7)), same),
    "text whose length is too long": Kind(lambda p: with_chunks(png(p), chunk(b"tEXt", b"a\0b", length=900)), same),
    "text whose length is too short": Kind(
        lambda p: with_chunks(png(p), chunk(b"tEXt", b"a\0" + b"b" * 50, length=9)), same
    ),
    "pixels in many chunks": Kind(lambda p: split_pixels(png(p)), same),
    "pixels with a wrong checksum, but whole": Kind(lambda p: split_pixels(png(p), crc=1), same),
    "bytes behind its end": Kind(lambda p: png(p) + VIDEO, same),
    "without its last chunk": Kind(lambda p: png(p)[:-12], same),
    "animated": Kind(lambda p: png(p, **frames(p)), same),
    "a wide profile (Display P3)": Kind(lambda p: png(converted(p, WIDE), icc_profile=WIDE), same, 3),
    "cut in half": Kind(lambda p: png(p)[: len(png(p)) // 2], TRUNCATED),
    "a byte of its pixels changed": Kind(
        lambda p: patched(png(p), len(png(p)) // 2, png(p)[len(png(p)) // 2] ^ 255), DAMAGED
    ),
    "a header with a wrong checksum": Kind(lambda p: patched(png(p), 30, png(p)[30] ^ 1), "damaged header"),
}
OTHERS: dict[str, Kind] = {
    "WebP": Kind(lambda p: encoded(p, "WEBP", quality=95), same, 3),
    "WebP, lossless": Kind(webp, same),
    "WebP, alpha": Kind(lambda p: webp(with_alpha(p), exact=True), half_white),
    "WebP, animated": Kind(lambda p: webp(p, **frames(p)), same),
    "WebP, turned by EXIF": Kind(lambda p: webp(p, exif=clockwise()), turned),
    "WebP, broken EXIF": Kind(lambda p: riff(webp(with_alpha(p), exact=True), b"EXIF", b"II*\0\xff"), half_white),
    "WebP, a wide profile (Display P3)": Kind(lambda p: webp(converted(p, WIDE), icc_profile=WIDE), same, 3),
    "WebP, cut in half": Kind(lambda p: webp(p)[: len(webp(p)) // 2], TRUNCATED),
    "GIF": Kind(lambda p: encoded(Image.fromarray(p).quantize(64), "GIF"), paletted),
    "GIF, animated": Kind(lambda p: encoded(p, "GIF", **frames(p)), same, 12),
    "GIF, cut in half": Kind(lambda p: encoded(p, "GIF")[: len(encoded(p, "GIF")) // 2], TRUNCATED),
    "BMP": Kind(lambda p: encoded(p, "BMP"), same),
    "BMP, palette": Kind(lambda p: encoded(Image.fromarray(p).quantize(64), "BMP"), paletted),
    "BMP, black and white": Kind(lambda p: encoded(Image.fromarray(p).convert("1"), "BMP"), two_levels),
    "BMP, cut in half": Kind(lambda p: encoded(p, "BMP")[: len(encoded(p, "BMP")) // 2], TRUNCATED),
    "TIFF": Kind(lambda p: encoded(p, "TIFF"), same),
    "TIFF, LZW": Kind(lambda p: encoded(p, "TIFF", compression="tiff_lzw"), same),
    "TIFF, deflated": Kind(lambda p: encoded(p, "TIFF", compression="tiff_adobe_deflate"), same),
    "TIFF, JPEG inside": Kind(lambda p: encoded(p, "TIFF", compression="jpeg", quality=92), same, 3),
    "TIFF, fax": Kind(lambda p: encoded(Image.fromarray(p).convert("1"), "TIFF", compression="group4"), two_levels),
    "TIFF, tiles": Kind(vips_encoded(".tif", tile=True, tile_width=64, tile_height=64), same, 0, "pyvips"),
    "TIFF, large file format": Kind(vips_encoded(".tif", bigtiff=True), same, 0, "pyvips"),
    "TIFF, 16 bits, grey": Kind(lambda p: encoded(sixteen(p), "TIFF"), grey),
    "TIFF, floats": Kind(lambda p: encoded(grey(p)[..., 0].astype(np.float32) / 255, "TIFF"), grey, 1),
    "TIFF, CMYK": Kind(lambda p: encoded(Image.fromarray(p).convert("CMYK"), "TIFF"), same, 2),
    "TIFF, turned": Kind(lambda p: encoded(p, "TIFF", exif=clockwise()), turned),
    "TIFF, two pages": Kind(two_pages, same),
    "TIFF, a broken directory of EXIF": Kind(with_broken_tag, same),
    "TIFF, cut in half": Kind(lambda p: encoded(p, "TIFF")[: len(encoded(p, "TIFF")) // 2], ""),
    "AVIF": Kind(lambda p: encoded(p, "AVIF", quality=95), same, 4),
    "AVIF, turned by EXIF": Kind(lambda p: encoded(p, "AVIF", quality=95, exif=clockwise()), turned, 4),
    "AVIF, cut in half": Kind(lambda p: encoded(p, "AVIF")[: len(encoded(p, "AVIF")) // 2], ""),
    "HEIC": Kind(heic, same, 4, "pillow_heif"),
    "JPEG 2000": Kind(lambda p: encoded(p, "JPEG2000"), same),
    "JPEG 2000, without boxes": Kind(lambda p: encoded(p, "JPEG2000", no_jp2=True), same),
    "PPM": Kind(lambda p: encoded(p, "PPM"), same),
    "PGM": Kind(lambda p: encoded(grey(p)[..., 0], "PPM"), grey),
    "PGM of 1,000 levels": Kind(lambda p: netpbm(p, 1000), grey, 1),
    "PBM": Kind(lambda p: encoded(Image.fromarray(p).convert("1"), "PPM"), two_levels),
    "ICO": Kind(lambda p: encoded(p, "ICO", sizes=[(p.shape[1], p.shape[0])]), same),
}
REFUSED: dict[str, Kind] = {
    "JPEG XL": Kind(lambda p: b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(200), "JPEG XL is not supported"),
    "PSD": Kind(lambda p: b"8BPS\0\1" + bytes(200), "PSD is not supported"),
    "DICOM": Kind(lambda p: bytes(128) + b"DICM" + bytes(200), "DICOM is not supported"),
    "DNG": Kind(
        lambda p: b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHI", 50706, 1, 4) + b"\1\4\0\0" + bytes(40), "DNG is a raw"
    ),
    "CR3": Kind(lambda p: BEGINS % (b"crx ", b"isom") + bytes(99), "CR3 is a raw photo"),
    "SVG": Kind(lambda p: b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG is not supported"),
    "PDF": Kind(lambda p: b"%PDF-1.7\n", "a PDF file"),
    "MP4": Kind(lambda p: BEGINS % (b"isom", b"mp42") + bytes(99), "a video"),
    "HTML": Kind(lambda p: b"<!DOCTYPE html><html>", "an HTML page"),
    "nothing": Kind(lambda p: b"", "empty file"),
}
KINDS = {
    **{f"JPEG, {name}": kind for name, kind in JPEGS.items()},
    **{f"PNG, {name}": kind for name, kind in PNGS.items()},
    **OTHERS,
    **REFUSED,
}
"""All kinds by name."""
