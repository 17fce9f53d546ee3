"""The list of mechanisms: a line for each name, with the state that it decodes from."""

from configs import mechanisms as table
from linear_transformer.cli import mechanisms


def test_a_line_for_each_name(capsys, monkeypatch):
    monkeypatch.setattr(mechanisms, "state_of", lambda name: f"S of {name}")
    mechanisms.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(table.TABLE)
    (gla,) = (line for line in lines if line.startswith("gla "))
    assert "forget gate" in gla and "arXiv:2312.06635" in gla and gla.endswith("S of gla")


def test_states():
    """Four layers of width 128, four heads, in fp32."""
    sums, segment, position = 4 * 32 * (32 + 1), 1, 1
    assert (
        mechanisms.state_of("katharopoulos") == f"{4 * (4 * (sums + segment) + position):,} bytes"
    )
    assert mechanisms.state_of("softmax").endswith(" bytes, for 1,024 tokens")
    assert mechanisms.state_of("linformer") == "none"
