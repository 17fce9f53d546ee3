"""Text to token ids and back: bytes, words, or any Hugging Face tokenizer.json.

Every tokenizer has one id more than its text needs, the beginning-of-sequence token (BOS), which
`encode` never produces and `decode` drops: a model predicts the first token of a document from it.
"""

import codecs
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
# Names of the first token in published tokenizers; GPT-2 starts with its separator.
_BOS_NAMES = ("<s>", "<bos>", "[BOS]", "<|bos|>", "<|begin_of_text|>", "<|startoftext|>")
_BOS_NAMES += ("<|endoftext|>",)


@runtime_checkable
class StreamDecoder(Protocol):
    """Decodes ids one by one and holds back text whose last character is incomplete."""

    def push(self, token_id: SupportsIndex) -> str:
        """Takes one id and returns the text that is now certain, possibly none."""
        ...

    def finish(self) -> str:
        """Returns what was held back, incomplete characters as U+FFFD; ends the stream."""
        ...


@runtime_checkable
class Tokenizer(Protocol):
    """The interface of a tokenizer that the pipelines and the decoding loop use.

    Attributes:
      vocab_size: number of ids, BOS included.
      bos_id: the id of the beginning-of-sequence token.
    """

    vocab_size: int
    bos_id: int

    def encode(self, text: str) -> np.ndarray:
        """Returns the ids of `text`, shape (T,), smallest unsigned dtype, without BOS."""
        ...

    def encode_utf8(self, data: bytes) -> np.ndarray:
        """Like `encode` for UTF-8 bytes; only the byte tokenizer keeps invalid UTF-8 as it is."""
        ...

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        """Returns the text of `ids`; BOS is dropped and invalid UTF-8 becomes U+FFFD."""
        ...

    def stream_decoder(self) -> StreamDecoder:
        """Returns a decoder for a sequence that arrives id by id."""
        ...


class _Utf8StreamDecoder:
    """Stream decoder of tokenizers in which an id stands for fixed bytes."""

    def __init__(self, token_bytes: Callable[[SupportsIndex], bytes]):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: SupportsIndex) -> str:
        return self._decoder.decode(self._token_bytes(int(token_id)))

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)


class ByteTokenizer:
    """UTF-8 bytes: ids 0..255 are the bytes, 256 is BOS."""

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
    """Words separated by white space; a newline is the word `<eos>`; BOS is the last id."""

    def __init__(self, words: Sequence[str]):
        """Makes a tokenizer in which `words[i]` has id i.

        Args:
          words: distinct words. With `<unk>` among them, unknown words are encoded as that;
            without it they are a DataError.
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
    """A tokenizer.json of the `tokenizers` library.

    Special tokens written in the text are ordinary text, and the file's template of added tokens
    is not applied. BOS is the file's own (`<s>`, `<bos>`, `<|endoftext|>`, ...) if it has one,
    else an id of its own after the last one.
    """

    def __init__(self, path: str):
        """Reads the file; a file that is no tokenizer is a DataError."""
        self._path = path
        text = decode_utf8(read_file(epath.Path(path).expanduser()), path)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except Exception as error:  # the library raises bare Exception
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not a tokenizer.json ({reason})") from error
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        # Ids can have gaps, so the largest one decides and not their number.
        size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        known = (self._tokenizer.token_to_id(name) for name in _BOS_NAMES)
        bos = next((i for i in known if i is not None), None)
        self.bos_id: int = size if bos is None else bos
        self.vocab_size: int = size + (bos is None)
        self._dtype = np.min_scalar_type(size - 1)

    def encode(self, text: str) -> np.ndarray:
        # The batch call is the one that does not compute character offsets.
        try:
            encoding = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        except Exception as error:  # for example, a vocabulary without its own unknown token
            reason = " ".join(str(error).split())
            raise DataError(f"{self._path}: the tokenizer cannot encode ({reason})") from error
        return np.array(encoding.ids, self._dtype)

    def encode_utf8(self, data: bytes) -> np.ndarray:
        return self.encode(data.decode("utf-8", errors="replace"))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        kept = [int(i) for i in ids if i != self.bos_id]
        return self._tokenizer.decode(kept, skip_special_tokens=False)

    def stream_decoder(self) -> StreamDecoder:
        return _HuggingFaceStreamDecoder(self._tokenizer, self.bos_id)


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
      DataError: neither, or the file is not a tokenizer.
    """
    if name == "bytes":
        return ByteTokenizer()
    if not name.endswith(".json"):
        raise DataError(
            f'config.data.tokenizer = "{name}": must be "bytes" or the path of a tokenizer.json'
        )
    return HuggingFaceTokenizer(name)
