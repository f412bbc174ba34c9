"""The structure of image files: what their parts are, read by the rules of the format and never by looking for bytes.

A JPEG is a chain of segments, each of which says how long it is, up to the header of a scan; coded data follow, in
which FF 00 is a byte of value FF and FF D0 to FF D7 are restarts, up to the next marker. So the two bytes FF DA in a
profile or a thumbnail are no scan, and what is behind the end of the image, such as a phone's video, is nobody's
business.

The parts that make pixels decide; all others may be broken or missing. Where a segment's length leads nowhere, the
chain is taken up again at the place from which it leads to a scan. Everything is linear in the size of the file and
bounded, and nothing but `UnusableImageError` is raised, whose message is in the words of the format.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from quickstudy.errors import UnusableImageError
from quickstudy.images.tags import exif_orientation

MOST_SCANS = 100
"""The most scans of a JPEG that is decoded. A JPEG announces its pixels once, but may go over them again and again:
megabytes of empty scans keep libjpeg busy for hours. Encoders write one to a dozen."""
MOST_PROFILE = 4 << 20
"""The largest colour profile that is taken, in bytes; those of printers have about two million."""

_SOF = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ARITHMETIC = frozenset({0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_LOSSLESS = frozenset({0xC3, 0xC7, 0xCB, 0xCF})
_HIERARCHICAL = frozenset({0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF})
_SOI, _EOI, _SOS, _DHT, _DQT, _DNL, _DRI, _APP0, _APP14 = 0xD8, 0xD9, 0xDA, 0xC4, 0xDB, 0xDC, 0xDD, 0xE0, 0xEE
_TABLES = frozenset({_DHT, _DQT, _DRI, 0xCC})
# In coded data, a marker is an FF with none of FF, which fills up, 00 and the restarts behind it.
_END_OF_CODED = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]", re.DOTALL)
_FILL = re.compile(rb"\xff+(?=\xff)")
_MARKER = re.compile(rb"\xff[\xc0-\xcf\xda-\xfe]", re.DOTALL)
_ATTEMPTS = 256
"""The most places at which a broken chain of segments is taken up again."""
_FEW_ATTEMPTS = 16
"""The same between two scans, of which there may be many."""
_MOST_SEGMENTS = 10_000
"""The most segments in a row: profiles and depth maps of phones have some hundreds."""
_MOST_FOLLOWED = 400
"""The most segments that are followed from each of the places at which a broken chain is taken up."""


def require_few_pixels(size: tuple[int, int], most_pixels: int) -> None:
    """Refuse an image whose header announces more than `most_pixels`.

    Raises:
        UnusableImageError: it does.
    """
    if size[0] * size[1] > most_pixels:
        raise UnusableImageError(f"too many pixels ({size[0]}x{size[1]}; the limit is {most_pixels / 1e6:g} million)")


class Segment(NamedTuple):
    """One segment of a JPEG."""

    marker: int
    """Second byte of its marker."""
    start: int
    """Place of its marker."""
    end: int
    """Place behind it."""


class Frame(NamedTuple):
    """What the header of a JPEG's frame says."""

    marker: int
    """Marker, which says how the frame is coded."""
    precision: int
    """Number of bits a sample."""
    height: int
    """Height in pixels, as stored; 0 where it is said behind the first scan."""
    width: int
    """Width in pixels, as stored."""
    components: tuple[int, ...]
    """Identifiers of the components."""


@dataclass(kw_only=True)
class Jpeg:
    """A JPEG is known as far as the header of its first scan, and the scans once they are asked for."""

    data: bytes
    """The whole file."""
    frame: Frame
    """Frame that is decoded."""
    segments: list[Segment]
    """Segments in front of the first scan."""
    scan: Segment
    """Header of the first scan."""
    orientation: int
    """Orientation that EXIF data give, 1 to 8."""
    adobe: int | None
    """Transform that Adobe's marker names (0 none, 1 YCbCr, 2 YCCK); None where there is no such marker."""
    profile: bytes
    """Colour profile; empty where there is none, or only a part of one."""
    mended: bool
    """Whether the segments lead to the scan only where they are taken up again, or the height stands elsewhere."""
    _scans: Scans | None = field(default=None, repr=False)

    @property
    def progressive(self) -> bool:
        """Whether the image comes in scans that refine each other."""
        return self.frame.marker in _PROGRESSIVE

    @property
    def one_scan(self) -> bool:
        """Whether the first scan is all of the image."""
        return not self.progressive and self.data[self.scan.start + 4] == len(self.frame.components)

    def scans(self) -> Scans:
        """Walk through all scans, once.

        Raises:
            UnusableImageError: there are more than `MOST_SCANS`.
        """
        if self._scans is None:
            self._scans = _walk_scans(self)
        return self._scans


@dataclass(frozen=True, kw_only=True)
class Scans:
    """The scans of a JPEG."""

    segments: tuple[Segment, ...]
    """Segments from the first scan's header on, that and those of other scans among them."""
    coded: tuple[tuple[int, int], ...]
    """Begin and end of each scan's coded data, up to the scan that completes the image; others are spare."""
    end: int
    """Place behind the image: behind its end marker, where there is one."""
    has_end: bool
    """Whether the image has an end marker."""
    missing: str
    """What of the image no scan brings, in words; empty where all of it comes."""
    height: int
    """Height that is said behind the first scan; 0 where it is not."""


def read_jpeg(data: bytes) -> Jpeg:
    """Read a JPEG up to the header of its first scan.

    Raises:
        UnusableImageError: it has no frame or no scan, or its frame is of a kind that nobody decodes.
    """
    plain = _chain(data, 2, [])
    chain = plain or _mended_chain(data)
    *segments, scan = chain
    frame, orientation, adobe = _frame_of(data, chain), 1, None
    assert frame is not None  # noqa: S101 (a chain has one)
    profile: dict[int, bytes] = {}
    parts = 0
    for marker, start, end in segments:
        if marker == 0xE1 and orientation == 1 and data.startswith(b"Exif\x00\x00", start + 4):
            orientation = exif_orientation(memoryview(data)[start + 10 : end])
        elif marker == 0xE2 and data.startswith(b"ICC_PROFILE\x00", start + 4) and end - start > 18:
            profile[data[start + 16]], parts = data[start + 18 : end], data[start + 17]
        elif marker == _APP14 and data.startswith(b"Adobe", start + 4) and end - start >= 16:
            adobe = data[start + 15]
    whole = parts and len(profile) == parts and sum(map(len, profile.values())) <= MOST_PROFILE
    jpeg = Jpeg(
        data=data,
        frame=frame,
        segments=segments,
        scan=scan,
        orientation=orientation,
        adobe=adobe,
        profile=b"".join(profile[number] for number in sorted(profile)) if whole else b"",
        mended=plain is None,
    )
    return _checked(jpeg)


def _checked(jpeg: Jpeg) -> Jpeg:
    """Refuse frames of a kind that is not decoded; take the height from behind the first scan where it stands there."""
    frame = jpeg.frame
    if frame.marker in _HIERARCHICAL:
        raise UnusableImageError("a hierarchical JPEG, which is not supported; convert it to an ordinary JPEG or PNG")
    if frame.marker in _LOSSLESS:
        raise UnusableImageError("a lossless JPEG, which is not supported; convert it to an ordinary JPEG or PNG")
    if frame.precision != 8:
        raise UnusableImageError(
            f"a JPEG of {frame.precision} bits a sample, which is not supported; convert it to an 8-bit JPEG or PNG"
        )
    if frame.height == 0:
        height = jpeg.scans().height
        if not height:
            raise UnusableImageError("damaged (the frame's header says that the image has no rows)")
        jpeg.frame, jpeg.mended = frame._replace(height=height), True
    if not frame.width:
        raise UnusableImageError("damaged (the frame's header says that the image has no columns)")
    return jpeg


def _segments(data: bytes, place: int, most: int = _MOST_SEGMENTS) -> Iterator[Segment | None]:
    """Yield segments as their lengths lead from one to the next; None where they lead nowhere."""
    size = len(data)
    for _ in range(most):
        if fill := _FILL.match(data, place):
            place = fill.end()
        if place + 4 > size or data[place] != 0xFF:
            yield None
            return
        marker = data[place + 1]
        if marker in (_SOI, 0x01) or 0xD0 <= marker <= 0xD7:
            place += 2
            continue
        length = data[place + 2] << 8 | data[place + 3]
        end = place + 2 + length
        if marker < 0xC0 or marker == _EOI or length < 2 or end > size:
            yield None
            return
        yield Segment(marker, place, end)
        place = end
    yield None


def _chain(data: bytes, place: int, kept: list[Segment], most: int = _MOST_SEGMENTS) -> list[Segment] | None:
    """Follow the segments to the first scan of a frame that comes before it; None where they do not lead there."""
    chain = list(kept)
    for segment in _segments(data, place, most):
        if segment is None:
            return None
        chain.append(segment)
        if segment.marker == _SOS:
            frame = _frame_of(data, chain)
            return chain if frame is not None and _is_scan(data, segment, frame) else None
    return None


def _is_scan(data: bytes, segment: Segment, frame: Frame) -> bool:
    count = data[segment.start + 4] if segment.end - segment.start > 4 else 0
    header = data[segment.start + 5 : segment.end]
    return 1 <= count <= 4 and len(header) == 2 * count + 3 and set(header[: 2 * count : 2]) <= set(frame.components)


def _mended_chain(data: bytes) -> list[Segment]:
    """Take a broken chain up again where it leads to the largest frame, and to most of the tables.

    The last good segment may be the one whose length is wrong, so that it is looked into, too.
    """
    good: list[Segment] = []
    for segment in _segments(data, 2):
        if segment is None or segment.marker == _SOS:
            break
        good.append(segment)
    best: tuple[tuple[int, int], list[Segment]] | None = None
    for kept in (good, good[:-1]):
        place = kept[-1].end if kept else 2
        for attempt, found in enumerate(_MARKER.finditer(data, place)):
            if attempt >= _ATTEMPTS:
                break
            chain = _chain(data, found.start(), kept, _MOST_FOLLOWED)
            frame = _frame_of(data, chain) if chain else None
            if chain is None or frame is None:
                continue
            score = frame.width * frame.height, sum(one.marker in _TABLES for one in chain)
            if best is None or score > best[0]:
                best = score, chain
    if best is None:
        raise UnusableImageError(_why_no_chain(data, good))
    return best[1]


def _why_no_chain(data: bytes, good: list[Segment]) -> str:
    if _frame_of(data, good) is not None:
        end = good[-1].end
        if end + 4 > len(data) or _MARKER.search(data, end) is None:
            return "truncated (the file ends in front of its first scan)"
        return "damaged (no scan follows the frame's header)"
    if good or data[2:4] in (b"\xff\xe0", b"\xff\xe1", b"\xff\xdb"):
        return "damaged header (the file has no frame)"
    return "not an image, or damaged from its first bytes on"


def _frame_of(data: bytes, chain: list[Segment]) -> Frame | None:
    """Read the last frame's header of a chain; None where there is none, or one that makes no sense."""
    for marker, start, end in reversed(chain):
        if marker in _SOF and end - start >= 10:
            count = data[start + 9]
            if not 1 <= count <= 4 or end - start < 10 + 3 * count:
                return None
            return Frame(
                marker,
                data[start + 4],
                data[start + 5] << 8 | data[start + 6],
                data[start + 7] << 8 | data[start + 8],
                tuple(data[start + 10 : start + 10 + 3 * count : 3]),
            )
    return None


def _walk_scans(jpeg: Jpeg) -> Scans:
    """Walk from the first scan's header to the end of the image, or of what there is of it."""
    data, segment = jpeg.data, jpeg.scan
    segments, coded, progress = [segment], [], _Progress(jpeg.frame)
    height, has_end, count = 0, False, 0
    while True:
        found = _END_OF_CODED.search(data, segment.end)
        place = found.start() if found else len(data)
        if progress.missing():
            progress.add(data[segment.start + 4 : segment.end])
            coded.append((segment.end, place))
        if (count := count + 1) > MOST_SCANS:
            raise UnusableImageError(f"a JPEG of more than {MOST_SCANS} scans")
        between, place = _between_scans(data, place, jpeg.frame)
        segments += between
        for one in between:
            if one.marker == _DNL and one.end - one.start >= 6 and not height:
                height = data[one.start + 4] << 8 | data[one.start + 5]
        following = between[-1] if between and between[-1].marker == _SOS else None
        if following is None or not _is_scan(data, following, jpeg.frame):
            if fill := _FILL.match(data, place):
                place = fill.end()
            has_end = data.startswith(b"\xff\xd9", place)
            place += 2 if has_end else 0
            break
        segment = following
    return Scans(
        segments=tuple(segments),
        coded=tuple(coded),
        end=place,
        has_end=has_end,
        missing=progress.missing(),
        height=height,
    )


def _between_scans(data: bytes, place: int, frame: Frame) -> tuple[list[Segment], int]:
    """Follow the segments behind a scan to the next one's header, or to where they end."""
    found: list[Segment] = []
    for one in _segments(data, place):
        if one is None or one.marker in _SOF:
            break
        found.append(one)
        if one.marker == _SOS:
            return found, place
        place = one.end
    if not found or found[-1].marker < _APP0 or data.startswith(b"\xff", place):
        return found, place
    # The length of the last one, which makes no pixels, is wrong.
    for attempt, again in enumerate(_MARKER.finditer(data, found[-1].start + 4)):
        if attempt >= _FEW_ATTEMPTS:
            break
        rest: list[Segment] = []
        for one in _segments(data, again.start(), _MOST_FOLLOWED):
            if one is None or one.marker in _SOF:
                break
            rest.append(one)
            if one.marker == _SOS:
                if _is_scan(data, one, frame):
                    return found + rest, one.start
                break
    return found, place


class _Progress:
    """Keeps account of the coefficients that scans bring, and how many of their low bits are still to come."""

    def __init__(self, frame: Frame) -> None:
        self._progressive = frame.marker in _PROGRESSIVE
        self._low = {component: [-1] * 64 for component in frame.components}

    def add(self, header: bytes) -> None:
        """Add a scan by its header, from the number of its components on."""
        count = header[0]
        first, last, bits = header[2 * count + 1 :]
        if not self._progressive:
            first, last, bits = 0, 63, 0
        for component in header[1 : 2 * count : 2]:
            self._low[component][first : min(last, 63) + 1] = [bits & 15] * (min(last, 63) + 1 - first)

    def missing(self) -> str:
        """Say what is missing."""
        for number, low in enumerate(self._low.values(), start=1):
            if low[0] < 0:
                return f"component {number} of {len(self._low)} is in no scan"
            if min(low) < 0:
                return f"the scans of component {number}'s finer parts are missing"
            if max(low) > 0:
                return f"the last scans, which refine component {number}, are missing"
        return ""


def essential(jpeg: Jpeg, *, cut: dict[int, int] | None = None) -> bytes:
    """Write the image anew from the parts that make its pixels, with an end marker.

    Args:
        jpeg: the image.
        cut: number of bytes to leave out at the end of a scan's coded data, by the scan's number from 0.
    """
    data, scans, cut = jpeg.data, jpeg.scans(), cut or {}
    parts = [b"\xff\xd8"]
    for marker, start, end in jpeg.segments:
        if marker in _SOF:
            height = jpeg.frame.height.to_bytes(2, "big")
            parts.append(data[start : start + 5] + height + data[start + 7 : end])
        elif marker in _TABLES or (marker == _APP14 and jpeg.adobe is not None) or _is_jfif(data, marker, start):
            parts.append(data[start:end])
    number = 0
    for marker, start, end in scans.segments:
        if marker == _SOS:
            if number == len(scans.coded):
                break
            begin, stop = scans.coded[number]
            parts += [data[start:end], data[begin : stop - cut.get(number, 0)]]
            number += 1
        elif marker in _TABLES:
            parts.append(data[start:end])
    return b"".join([*parts, b"\xff\xd9"])


def _is_jfif(data: bytes, marker: int, start: int) -> bool:
    return marker == _APP0 and data.startswith(b"JFIF\x00", start + 4)
