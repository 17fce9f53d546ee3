"""Tokenizers from text to ids and back: bytes, words, or any Hugging Face tokenizer.json.

Every tokenizer has one additional id, the beginning-of-sequence token (BOS). A model predicts the
first token of a document from BOS; `encode` never produces BOS, and `decode` drops it.
"""

import codecs
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, SupportsIndex, runtime_checkable

import numpy as np
import tokenizers
from etils import epath
from tokenizers import decoders

from linear_transformer.data.errors import DataError
from linear_transformer.data.io.reading import decode_utf8, read_file

EOS_WORD = "<eos>"
UNKNOWN_WORD = "<unk>"
_MISSING = "\ue000missing\ue000"  # word for characters without a token
# Names of BOS in published tokenizers; GPT-2 uses its separator of documents as BOS.
_BOS_NAMES = ("<s>", "<bos>", "[BOS]", "<|bos|>", "<|begin_of_text|>", "<|startoftext|>")
_BOS_NAMES += ("<|endoftext|>",)


@runtime_checkable
class StreamDecoder(Protocol):
    """Decoder of single ids that holds back incomplete characters."""

    def push(self, token_id: SupportsIndex) -> str:
        """Takes one id; returns the newly completed text, possibly empty."""
        ...

    def finish(self) -> str:
        """Ends the stream; returns the text held back, with U+FFFD for incomplete characters."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """Interface of a tokenizer for the pipelines and the decoding loop.

    Attributes:
      vocab_size: number of ids, including BOS.
      bos_id: id of the beginning-of-sequence token.
    """

    vocab_size: int
    bos_id: int

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, shape (T,), smallest unsigned dtype, without BOS."""
        ...

    def encode_utf8(self, data: bytes) -> np.ndarray:
        """Encodes UTF-8 bytes; only the byte tokenizer keeps invalid UTF-8 unchanged."""
        ...

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of `ids`, without BOS and with U+FFFD for invalid UTF-8."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Returns a decoder for a sequence of ids that are given one by one."""
        ...


class _Utf8StreamDecoder:
    """Stream decoder for tokenizers with a fixed byte string per id."""

    def __init__(self, token_bytes: Callable[[SupportsIndex], bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: SupportsIndex) -> str:
        return self._decoder.decode(self._token_bytes(int(token_id)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """Tokenizer of UTF-8 bytes: ids 0..255 are the bytes, 256 is BOS."""

    vocab_size = 257
    bos_id = 256

    def encode(self, text: str) -> np.ndarray:
        return self.encode_utf8(text.encode("utf-8"))

    def encode_utf8(self, data: bytes) -> np.ndarray:
        return np.frombuffer(data, np.uint8)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return b"".join(map(self._token_bytes, ids)).decode("utf-8", errors="replace")

    def stream_decoder(self) -> StreamDecoder:
        return _Utf8StreamDecoder(self._token_bytes)

    def _token_bytes(self, token_id: SupportsIndex) -> bytes:
        return b"" if token_id == self.bos_id else bytes([token_id])


class WordTokenizer:
    """Tokenizer of words between white space; a newline is the word `<eos>`, BOS the last id."""

    def __init__(self, words: Sequence[str]):
        """Makes a tokenizer in which `words[i]` has id i.

        Args:
          words: distinct words. If `<unk>` is one of them, unknown words are encoded as `<unk>`;
            otherwise `encode` raises a DataError.
        """
        self.vocab_size = len(words) + 1
        self.bos_id = len(words)
        self._words = list(words)
        self._ids = {word: i for i, word in enumerate(words)}
        self._dtype = np.min_scalar_type(max(len(words) - 1, 0))

    @staticmethod
    def split(text: str) -> list[str]:
        """Returns the words of a text, one `<eos>` for each newline."""
        return text.replace("\n", f" {EOS_WORD} ").split()

    def encode(self, text: str) -> np.ndarray:
        words = self.split(text)
        unknown = self._ids.get(UNKNOWN_WORD)
        if unknown is not None:
            ids = (self._ids.get(word, unknown) for word in words)
        else:
            missing = next((word for word in words if word not in self._ids), None)
            if missing is not None:
                raise DataError(f"word {missing!r} is not in the vocabulary, nor is {UNKNOWN_WORD}")
            ids = (self._ids[word] for word in words)
        return np.fromiter(ids, self._dtype, count=len(words))

    def encode_utf8(self, data: bytes) -> np.ndarray:
        return self.encode(data.decode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return b"".join(map(self._token_bytes, ids)).decode("utf-8")

    def stream_decoder(self) -> StreamDecoder:
        return _Utf8StreamDecoder(self._token_bytes)

    def _token_bytes(self, token_id: SupportsIndex) -> bytes:
        if token_id == self.bos_id:
            return b""
        word = self._words[token_id]
        return b"\n" if word == EOS_WORD else f"{word} ".encode()


class HuggingFaceTokenizer:
    """Tokenizer of a tokenizer.json file of the `tokenizers` library.

    Special tokens in the text are encoded as ordinary text, and the file's template of added tokens
    is not applied. BOS is the BOS of the file (`<s>`, `<bos>`, `<|endoftext|>`, ...) if there is
    one, else an additional id after the last id.
    """

    def __init__(self, path: str):
        """Reads the file; raises a DataError if the file is not a tokenizer."""
        self._path = path
        text = decode_utf8(read_file(epath.Path(path).expanduser()), path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not a tokenizer.json ({reason})") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Ids can have gaps, so the vocabulary size follows from the largest id.
        ids = self._tokenizer.get_vocab(with_added_tokens=True).values()
        if not ids:
            raise DataError(f"{path}: the tokenizer has no token")
        size = max(ids) + 1
        known = (self._tokenizer.token_to_id(name) for name in _BOS_NAMES)
        bos = next((i for i in known if i is not None), None)
        self.bos_id: int = size if bos is None else bos
        self.vocab_size: int = size + (bos is None)
        self._dtype = np.min_scalar_type(size - 1)
        self._missing = size
        self._tokenizer = _exact(self._tokenizer, size)
        self._tokenizer.encode_special_tokens = True

    def encode(self, text: str) -> np.ndarray:
        # Only the batch function avoids computing character offsets.
        try:
            encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        except Exception as error:  # for example, a vocabulary without its own unknown token
            reason = " ".join(str(error).split())
            raise DataError(f"{self._path}: the tokenizer cannot encode ({reason})") from error
        if self._missing in encoding.ids:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
            start, end = encoding.offsets[encoding.ids.index(self._missing)]
            raise DataError(
                f"{self._path}: has no token for {text[start:end]!r}, and no unknown token"
            )
        return np.array(encoding.ids, self._dtype)

    def encode_utf8(self, data: bytes) -> np.ndarray:
        return self.encode(data.decode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        kept = [int(i) for i in ids if i != self.bos_id]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def stream_decoder(self) -> StreamDecoder:
        return _HuggingFaceStreamDecoder(self._tokenizer, self.bos_id)


def _exact(tokenizer: tokenizers.Tokenizer, missing: int) -> tokenizers.Tokenizer:
    """Returns a tokenizer without dropout of merges, which would give a text other ids every time.

    It encodes as the id `missing` what byte pairs would drop silently.
    """
    values = json.loads(tokenizer.to_str())
    model = values["model"]
    if model["type"] != "BPE" or (model["unk_token"] is not None and model["dropout"] is None):
        return tokenizer
    model["dropout"] = None
    if model["unk_token"] is None:
        model["unk_token"] = _MISSING
        model["vocab"][_MISSING] = missing
    return tokenizers.Tokenizer.from_str(json.dumps(values))


class _HuggingFaceStreamDecoder:
    def __init__(self, tokenizer: tokenizers.Tokenizer, bos_id: int):
        self._tokenizer = tokenizer
        self._bos_id = bos_id
        self._stream = decoders.DecodeStream(skip_special_tokens=False)
        self._pending: list[int] = []

    def push(self, token_id: SupportsIndex) -> str:
        if token_id == self._bos_id:
            return ""
        self._pending.append(int(token_id))
        text = self._stream.step(self._tokenizer, int(token_id)) or ""
        if text:
            self._pending.clear()
        return text

    def finish(self) -> str:
        return self._tokenizer.decode(self._pending, skip_special_tokens=False)


def load_tokenizer(name: str) -> Tokenizer:
    """Returns the tokenizer that `config.data.tokenizer` names.

    Args:
      name: "bytes" or the path of a tokenizer.json.

    Raises:
      DataError: the name has another form, or the file is not a tokenizer.
    """
    if name == "bytes":
        return ByteTokenizer()
    if not name.endswith(".json"):
        raise DataError(
            f'config.data.tokenizer = "{name}": must be "bytes" or the path of a tokenizer.json'
        )
    return HuggingFaceTokenizer(name)
