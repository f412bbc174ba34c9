"""How many bits of a level count: one number for a whole set, found from all its images or told, never from one alone.

Cameras of medicine and industry write 10, 12 or 14 bits into files of 16, whose upper bits are then nought; taken for
what they could hold, such pictures have 16 grey levels left. The files seldom say so. What a set uses, its images
together do tell; it is rounded up to an even number, as sensors have them. The number is part of the input
specification, so that it is in the key of every bottleneck and in the model, which reads new images by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from quickstudy.errors import UnusableImageError
from quickstudy.images.census import Census
from quickstudy.images.decoding import USUAL_BITS, bits_used
from quickstudy.images.identity import StatIndex, read_image_file
from quickstudy.images.kinds import first_bytes, format_of
from quickstudy.process import usable_cores


def significant_bits(census: Census, index: Path | None, *, told: int | None = None) -> int:
    """Find how many bits of the levels of a set's images count: 8, 10, 12, 14 or 16; or as many as was told.

    Args:
        census: the images, of which those that have a role are taken, or all where none has one.
        index: the stat index, which remembers what each content uses.
        told: the number that was given instead; found from the images if left out.
    """
    if told is not None:
        return told
    contents = census.contents.values()
    paths = {one.digest: one.path for one in contents if one.role is not None} or {
        one.digest: one.path for one in contents
    }
    known = (memory := StatIndex(index)).bits_used()
    try:
        with ThreadPoolExecutor(usable_cores()) as pool:
            missing = [digest for digest in paths if digest not in known]
            found = dict(zip(missing, pool.map(lambda digest: bits_of(paths[digest], digest), missing), strict=True))
        memory.remember_bits({digest: bits for digest, bits in found.items() if bits is not None})
    finally:
        memory.close()
    return rounded(found[digest] if digest in found else known[digest] for digest in paths)


def rounded(bits: Iterable[int | None]) -> int:
    """Round the most bits that any image uses up to those of a sensor; 16 where no image has more than 8 a level."""
    most = max((one for one in bits if one), default=USUAL_BITS)
    return max(8, min(most + most % 2, USUAL_BITS))


def bits_of(path: Path, digest: bytes) -> int | None:
    """Count the bits that an image uses; None where that cannot be found out."""
    try:
        if format_of(start := first_bytes(path)) not in ("PNG", "TIFF") or (
            start[:4] == b"\x89PNG" and start[24] != 16
        ):
            return 0
        data, found = read_image_file(path)
        return bits_used(data) if found == digest else None
    except (UnusableImageError, OSError, IndexError):
        return None
