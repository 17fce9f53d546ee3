"""Where the user's cache is."""

from linear_transformer.runtime import user_cache


def test_cache_dir(monkeypatch, tmp_path):
    monkeypatch.delenv("LINEAR_TRANSFORMER_CACHE", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for base in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", base)
        assert user_cache.cache_dir() == tmp_path / ".cache" / "linear_transformer"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache.cache_dir() == tmp_path / "xdg" / "linear_transformer"
    monkeypatch.setenv("LINEAR_TRANSFORMER_CACHE", "~/mine")
    assert user_cache.cache_dir() == tmp_path / "mine"
