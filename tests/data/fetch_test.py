"""The download cache: checksums, atomicity, and one-line errors."""

import hashlib
import threading

import pytest

from linear_transformer.data import fetch
from linear_transformer.data.errors import DataError, FetchError

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


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("LINEAR_TRANSFORMER_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetch.cache_dir() == tmp_path / ".cache" / "linear_transformer"


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
