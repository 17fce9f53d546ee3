"""Detection of truncated sound files, from the length in their headers.

libsndfile reads a truncated WAV file without an error, but its transcript would no longer match.
"""

import math
import os
import re
import struct
from typing import BinaryIO

from linear_transformer.data.errors import DataError

_UNKNOWN = 2**32 - 1  # marks a size that is unknown (output to a pipe) or stored in "ds64"
_OGG_PAGE = 27 + 255 + 255 * 255  # bytes of the longest page
_NIST_SIZE = re.compile(rb"NIST_1A\s+(\d+)")
_NIST = re.compile(rb"^(channel_count|sample_count|sample_n_bytes) -i (\d+)", re.MULTILINE)


def require_whole(file: BinaryIO, name: str) -> None:
    """Raises a DataError if a WAV, AIFF, Ogg or NIST SPHERE file is shorter than it should be.

    Other formats are checked when they are decoded.

    Args:
      file: open file at its start; the function returns to the start.
      name: name of the file, for the message.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(1024)
    expected = None
    if head[:4] in (b"RIFF", b"RF64", b"RIFX", b"FORM"):
        file.seek(0)
        expected = _end_of_sound(file, end)
    elif head.startswith(b"NIST_1A"):
        expected = _end_of_nist(head)
    elif head.startswith(b"OggS"):
        file.seek(max(end - _OGG_PAGE, 0))
        expected = _end_of_ogg(file.read(), end)
    file.seek(0)
    if expected is not None and expected > end:
        raise DataError(f"{name}: cut short ({end:,} bytes; it should have {expected:,} or more)")


def _end_of_sound(file: BinaryIO, end: int) -> int | None:
    """Returns the end of the samples from the chunk header; None if the header lacks the size."""
    kind = file.read(12)[:4]
    size_of = ">I" if kind in (b"RIFX", b"FORM") else "<I"
    wide = None  # size of the samples beyond 4 GiB
    while file.tell() + 8 <= end:
        name, size = struct.unpack(f"{size_of[0]}4sI", file.read(8))
        if name == b"ds64" and size >= 16:
            wide = struct.unpack("<QQ", file.read(16))[1]
            file.seek(size - 16, os.SEEK_CUR)
        elif name in (b"data", b"SSND"):
            size = wide if size == _UNKNOWN else size
            return None if size is None else file.tell() + size
        else:
            file.seek(size, os.SEEK_CUR)
        file.seek(size % 2, os.SEEK_CUR)  # chunks begin at even bytes
    return None  # libsndfile refuses a sound without samples


def _end_of_nist(head: bytes) -> int | None:
    """Returns the end of the samples; None if they are compressed."""
    values = {key: int(value) for key, value in _NIST.findall(head)}
    size = _NIST_SIZE.match(head)
    compressed = b"sample_coding -s" in head and b"pcm\n" not in head
    if size is None or compressed or len(values) < 3:
        return None
    return int(size[1]) + math.prod(values.values())


def _end_of_ogg(tail: bytes, end: int) -> int:
    """Returns the end of the last page; more than `end` if this page is cut or not marked last."""
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return end + 1
    segments = page[27 : 27 + page[26]]
    return end - len(page) + 27 + page[26] + sum(segments)
