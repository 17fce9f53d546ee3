"""Reading files that users supply; every failure is a DataError that names the file.

Paths are `epath.Path`, so folders in cloud storage (gs://) work like local ones.
"""

import io
import zipfile
import zlib
from collections.abc import Iterator

from etils import epath

from linear_transformer.data.errors import DataError


def read_file(path: epath.Path) -> bytes:
    """Returns the content of a file that must exist and must not be empty."""
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error
    if not data:
        raise DataError(f"{path}: the file is empty")
    return data


def read_zip_member(path: epath.Path, member: str) -> bytes:
    """Returns one file out of a zip archive, its CRC verified.

    Args:
      path: the archive.
      member: the file's name without its folder.

    Raises:
      DataError: the archive is missing, damaged, or has no such member.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(read_file(path))) as archive:
            names = [name for name in archive.namelist() if name.split("/")[-1] == member]
            if len(names) != 1:
                raise DataError(f"{path}: expected one member {member}, found {len(names)}")
            data = archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DataError(f"{path}: damaged zip archive ({error}); download it again") from error
    if not data:
        raise DataError(f"{path}: member {member} is empty")
    return data


def decode_utf8(data: bytes, name: str) -> str:
    """Decodes strictly; the DataError names the file and the offset of the first bad byte."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name}: not UTF-8 at byte {error.start}; convert the file or take it out"
        ) from error


def existing_path(path: str, dataset: str, needs: str) -> epath.Path:
    """Returns `config.data.path` as a path that exists.

    Args:
      path: the configured value.
      dataset: the data set's name, for the message.
      needs: what the path should be, for the message.

    Raises:
      DataError: the value is empty, or nothing is there.
    """
    if not path:
        raise DataError(f"config.data.path is empty: {dataset} needs {needs}")
    found = epath.Path(path).expanduser()
    if not found.exists():
        raise DataError(f"{path}: no such file or folder; config.data.path must be {needs}")
    return found


def files_below(folder: epath.Path) -> Iterator[epath.Path]:
    """The files of a folder and of all folders in it."""
    for path in sorted(folder.iterdir()):  # etils' `walk` loses the gs:// of a bucket
        if path.is_dir():
            yield from files_below(path)
        elif path.is_file():
            yield path
