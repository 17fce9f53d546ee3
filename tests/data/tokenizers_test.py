"""Tokenizers: ids, round trips, streams of multi-byte characters, and what users get wrong."""

import numpy as np
import pytest
import tokenizers

from linear_transformer.data.errors import DataError
from linear_transformer.data.text.tokenizers import (
    ByteTokenizer,
    HuggingFaceTokenizer,
    WordTokenizer,
    load_tokenizer,
)

TEXT = "naïve café — 数学 🤖 and\nplain ASCII"


def _byte_level_file(path, special_tokens):
    tokenizer = tokenizers.Tokenizer(tokenizers.tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=special_tokens,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the cat and the other cat"] * 5, trainer)
    tokenizer.save(str(path))
    return str(path)


@pytest.fixture(params=["bytes", "byte_level_bpe", "byte_level_bpe_with_bos"])
def lossless(request, tmp_path):
    if request.param == "bytes":
        return ByteTokenizer()
    special_tokens = ["<unk>", "<s>"] if request.param.endswith("bos") else []
    return HuggingFaceTokenizer(_byte_level_file(tmp_path / "t.json", special_tokens))


def test_round_trip_drops_bos(lossless):
    ids = lossless.encode(TEXT)
    assert ids.dtype == np.min_scalar_type(int(lossless.vocab_size) - 2)
    assert lossless.bos_id not in ids
    assert lossless.decode([lossless.bos_id, *ids]) == TEXT
    np.testing.assert_array_equal(lossless.encode_utf8(TEXT.encode()), ids)


def test_stream_emits_only_whole_characters(lossless):
    decoder = lossless.stream_decoder()
    chunks = [decoder.push(i) for i in [lossless.bos_id, *lossless.encode(TEXT).tolist()]]
    assert not any("\ufffd" in chunk for chunk in chunks)
    assert "" in chunks
    assert "".join(chunks) + decoder.finish() == TEXT


def test_stream_ends_inside_a_character(lossless):
    ids = lossless.encode("a🤖").tolist()[:-1]
    decoder = lossless.stream_decoder()
    chunks = [decoder.push(i) for i in ids]
    assert "".join(chunks) == "a"
    assert decoder.finish().strip("\ufffd") == ""
    assert "\ufffd" in lossless.decode(ids)


def test_byte_ids_are_the_bytes():
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (257, 256)
    assert tokenizer.encode("é").tolist() == [0xC3, 0xA9]
    assert tokenizer.decode([0xFF, 65]) == "\ufffdA"


def test_bos_of_the_file_or_one_more_id(tmp_path):
    with_bos = HuggingFaceTokenizer(_byte_level_file(tmp_path / "a.json", ["<unk>", "<s>"]))
    without = HuggingFaceTokenizer(_byte_level_file(tmp_path / "b.json", []))
    assert with_bos.bos_id == 1
    assert without.bos_id == without.vocab_size - 1
    # Written in a text it is text, else a document could fake its own beginning.
    assert with_bos.bos_id not in with_bos.encode("see <s> here")
    assert with_bos.decode(with_bos.encode("see <s> here")) == "see <s> here"


def test_words():
    tokenizer = WordTokenizer(["the", "<eos>", "<unk>", "cat"])
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (5, 4)
    ids = tokenizer.encode("the  dog\nthe cat\n")
    assert ids.tolist() == [0, 2, 1, 0, 3, 1]
    assert ids.dtype == np.uint8
    assert tokenizer.decode([4, *ids]) == "the <unk> \nthe cat \n"
    decoder = tokenizer.stream_decoder()
    assert "".join(map(decoder.push, ids)) + decoder.finish() == tokenizer.decode(ids)


def test_unknown_word_without_unk():
    with pytest.raises(DataError, match="'dog' is not in the vocabulary"):
        WordTokenizer(["the", "<eos>"]).encode("the dog")


@pytest.mark.parametrize("alphabet", ["Whitespace", "ByteLevel"])
def test_a_character_without_a_token_is_not_dropped(tmp_path, alphabet):
    """Byte pairs without an unknown token leave out what they do not know."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = getattr(tokenizers.pre_tokenizers, alphabet)()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=40, show_progress=False)
    tokenizer.train_from_iterator(["the cat and the other cat"] * 5, trainer)
    tokenizer.save(str(tmp_path / "pairs.json"))
    loaded = load_tokenizer(str(tmp_path / "pairs.json"))
    text = "the other cat and the cat"
    assert loaded.encode(text).tolist() == tokenizer.encode(text).ids
    assert loaded.vocab_size == tokenizer.get_vocab_size() + 1
    with pytest.raises(DataError, match=r"pairs\.json: has no token for 'é'"):
        loaded.encode("the caé")


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_dropout_of_merges_is_left_out(tmp_path, unknown):
    path = _byte_level_file(tmp_path / "pairs.json", ["<unk>"])
    tokenizer = tokenizers.Tokenizer.from_file(path)
    expected = tokenizer.encode("the other cat").ids
    tokenizer.model.unk_token, tokenizer.model.dropout = unknown, 1.0
    tokenizer.save(path)
    assert load_tokenizer(path).encode("the other cat").tolist() == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        (b"", "the file is empty"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b'{"a": 1}', "not a tokenizer.json"),
        (tokenizers.Tokenizer(tokenizers.models.BPE()).to_str().encode(), "has no token"),
    ],
)
def test_bad_file_is_one_line_with_its_name(tmp_path, content, message):
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=message) as raised:
        load_tokenizer(str(path))
    assert "broken.json" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_unknown_name():
    with pytest.raises(DataError, match=r'config.data.tokenizer = "gpt"'):
        load_tokenizer("gpt")
