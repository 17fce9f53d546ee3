"""Functions that read files of the user; every failure is a DataError that names the file.

Paths are `epath.Path`, so folders in cloud storage (gs://) work like local folders.
"""

import collections
import hashlib
import io
import math
import os
import zipfile
import zlib
from collections.abc import Hashable, Iterable, Iterator, Mapping

import numpy as np
from etils import epath

from linear_transformer.data.errors import DataError
from linear_transformer.runtime import environment

# Limit of the size of an inflated file; the largest one in use, of WikiText-103, has 0.5 GB.
MOST_BYTES = 2**31


def read_file(path: epath.Path) -> bytes:
    """Reads a file; raises a DataError if the file is missing, special or empty."""
    require_regular(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def pieces(path: epath.Path) -> Iterator[bytes]:
    """Yields the content of a file of any size in pieces of 16 MiB, for a hash.

    Raises:
      DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                yield piece
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason})") from error


def require_regular(path: epath.Path) -> None:
    """Raises a DataError for a pipe, a device or a socket, which may be read without an end."""
    # Not `is_file` of etils, which is true for a pipe.
    if path.exists() and not ("://" in str(path) or os.path.isfile(path) or path.is_dir()):
        raise DataError(f"{path}: not a regular file; a pipe or a device cannot be read twice")


def read_zip_member(path: epath.Path, member: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Reads one file of a zip archive and verifies its CRC.

    Args:
      path: path of the archive.
      member: name of the file without its folder.
      most_bytes: limit of the file's size; a larger file is refused before it is inflated.

    Raises:
      DataError: the archive is missing, damaged or encrypted, lacks the member, or the member is
        too large.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
            infos = [info for info in archive.infolist() if info.filename.split("/")[-1] == member]
            if len(infos) != 1:
                raise DataError(f"{path}: expected one member {member}, found {len(infos)}")
            return unzip(archive, infos[0], str(path), most_bytes)
    except zipfile.BadZipFile as error:
        raise DataError(f"{path}: damaged zip archive ({error}); download it again") from error


def unzip(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, most_bytes: int = MOST_BYTES
) -> bytes:
    """Inflates a member of an open archive.

    Args:
      archive: open archive with the member.
      member: entry of the archive's directory.
      name: name of the archive, for messages.
      most_bytes: limit of the member's size; a larger member is refused before it is inflated.

    Raises:
      DataError: the member is damaged, encrypted, empty or too large.
    """
    shown = f"{name}: member {member.filename.split('/')[-1]}"
    _check_size(member.file_size, most_bytes, shown)
    if member.flag_bits & 1:
        raise DataError(f"{shown} is encrypted")
    try:
        data = archive.read(member)  # zipfile inflates no more than the size
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{name}: damaged zip archive ({error}); download it again") from error
    except NotImplementedError as error:  # unsupported compression method
        raise DataError(f"{shown} cannot be unpacked ({error})") from error
    if not data:
        raise DataError(f"{shown} is empty")
    return data


def gunzip(data: bytes, name: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Inflates a gzip file.

    Args:
      data: content of the file.
      name: name of the file, for messages.
      most_bytes: limit of the inflated size.

    Raises:
      DataError: the file is damaged or too large.
    """
    parts, size = [], 0
    try:
        while data:
            stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
            parts.append(stream.decompress(data, most_bytes - size + 1))
            size += len(parts[-1])
            _check_size(size, most_bytes, name)
            if not stream.eof:
                raise DataError(f"{name}: cannot be unzipped (it ends too early)")
            data = stream.unused_data
    except zlib.error as error:
        raise DataError(f"{name}: cannot be unzipped ({error})") from error
    return b"".join(parts)


def parse_npy(data: bytes, name: str) -> np.ndarray:
    """Parses a .npy file without Python objects.

    The shape in the header is compared with the size of the file before anything is allocated.

    Raises:
      DataError: the file is damaged.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read_header(file)
        expected, found = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
        if expected != found and not dtype.hasobject:
            raise DataError(
                f"{name}: a damaged array ({found} bytes of data, and its header says {expected})"
            )
        return np.load(io.BytesIO(data), allow_pickle=False)
    except DataError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TypeError) as error:
        raise DataError(f"{name}: a damaged array ({' '.join(str(error).split())})") from error


def _check_size(size: int, most_bytes: int, name: str) -> None:
    if size > most_bytes:
        raise DataError(f"{name} has {size:,} bytes or more; at most {most_bytes:,} are inflated")


def decode_utf8(data: bytes, name: str) -> str:
    """Decodes strictly; a DataError names the file and the offset of the first invalid byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: not UTF-8 at byte {error.start}; convert the file or take it out"
        ) from error


def existing_path(path: str, dataset: str, needs: str) -> epath.Path:
    """Returns `config.data.path` as a path that exists.

    Args:
      path: value of the key.
      dataset: name of the data set, for the message.
      needs: description of the expected path, for the message.

    Raises:
      DataError: the value is empty, or the path does not exist.
    """
    if not path:
        raise DataError(f"config.data.path is empty: {dataset} needs {needs}")
    try:
        found = epath.Path(path).expanduser()
        exists = found.exists()
    except (OSError, ValueError, ImportError, KeyError) as error:  # the last two: other systems
        raise DataError(f"{path}: cannot be read ({error})") from error
    if not exists:
        raise DataError(f"{path}: no such file or folder; config.data.path must be {needs}")
    require_regular(found)
    return found


def entries(folder: epath.Path) -> list[epath.Path]:
    """Returns the entries of a folder, sorted by name.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{folder}: the folder cannot be read ({reason})") from error


def identity(path: epath.Path) -> Hashable:
    """Returns a key that is equal for all paths of one file or folder, also through links."""
    if "://" in str(path):  # cloud storage has no links
        return str(path)
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return status.st_dev, status.st_ino


def distinct(paths: Iterable[epath.Path], seen: set[Hashable] | None = None) -> list[epath.Path]:
    """Returns the first path of each file or folder not in `seen`, and adds them to `seen`."""
    seen = set() if seen is None else seen
    kept = []
    for path in paths:
        if os.path.islink(path) and not path.exists():  # dangling link
            continue
        found = identity(path)
        if found not in seen:
            seen.add(found)
            kept.append(path)
    return kept


def files_below(folder: epath.Path, *, hidden: bool = True) -> Iterator[epath.Path]:
    """Yields the files of a folder and its subfolders, each file once even with links to it.

    Symbolic links are followed last, so that a file is listed by its own path and not by a link.

    Args:
      folder: top of the search.
      hidden: whether to list files and folders whose names begin with a dot.

    Raises:
      DataError: a folder cannot be read.
    """
    seen: set[Hashable] = set()
    found, links = [folder], []
    while found or links:
        for path in distinct([(found or links).pop(0)], seen):
            if path.is_dir():  # not `walk` of etils: it drops the gs:// of a bucket
                for entry in entries(path):
                    if hidden or not entry.name.startswith("."):
                        (links if os.path.islink(entry) else found).append(entry)
            elif "://" in str(path) or os.path.isfile(path):
                yield path


def data_files(folder: epath.Path) -> list[epath.Path]:
    """Returns the files of a data set, sorted by path.

    Names that begin with a dot are left out, and so are run folders, which may be beside the data.
    """
    files = {path.relative_to(folder): path for path in files_below(folder, hidden=False)}
    made = [name for name in files if name.name == environment.FILE]
    runs = {name.parent for name in made if name.with_name("config.json") in files}
    kept = (name for name in files if runs.isdisjoint(name.parents))
    return [files[name] for name in sorted(kept, key=lambda name: name.as_posix())]


def distinct_contents(contents: Iterable[bytes]) -> list[bytes]:
    """Returns the contents without repetitions, in the order of their first occurrences."""
    kept: dict[bytes, bytes] = {}
    for content in contents:
        kept.setdefault(hashlib.sha256(content).digest(), content)
    return list(kept.values())


def require_distinct(files: Mapping[str, Iterable[epath.Path]], *, contents: bool = True) -> None:
    """Raises a DataError if two splits have the same file, also as a link or a copy, or for a pipe.

    Args:
      files: paths by split; missing files are ignored, because reading them raises an error.
      contents: whether copies are found; files of equal size are read for this.
    """
    first: dict[Hashable, tuple[str, epath.Path]] = {}
    for split, paths in files.items():
        for path in (path for path in paths if path.exists()):
            require_regular(path)
            other, known = first.setdefault(identity(path), (split, path))
            if other != split:
                raise DataError(f"{path} of the {split} split is {known} of the {other} split")
    if contents:
        _require_no_copies(first.values())


def _require_no_copies(files: Iterable[tuple[str, epath.Path]]) -> None:
    """Raises a DataError if files of two splits have the same content."""
    by_size: dict[int, list[tuple[str, epath.Path]]] = collections.defaultdict(list)
    for split, path in files:
        by_size[path.stat().length].append((split, path))
    for same_size in by_size.values():
        if len({split for split, _ in same_size}) == 1:
            continue
        first: dict[bytes, tuple[str, epath.Path]] = {}
        for split, path in same_size:
            digest = hashlib.sha256()
            for piece in pieces(path):
                digest.update(piece)
            other, known = first.setdefault(digest.digest(), (split, path))
            if other != split:
                raise DataError(
                    f"{path} of the {split} split is a copy of {known} of the {other} split"
                )
