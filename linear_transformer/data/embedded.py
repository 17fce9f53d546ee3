"""The default corpus: documentation and sources that come with every CPython. No network.

Its documents are the topics of Python's own help (`pydoc_data.topics`) and the sources of some
pure-Python modules of the standard library. The text is a little different in each Python
version, so numbers compare only between runs on the same one (`Corpus.fingerprint`).
"""

import pathlib
import sysconfig
from pydoc_data import topics
from typing import Any

from linear_transformer.data.corpus import Corpus, split_documents, tokenize_splits
from linear_transformer.data.errors import DataError
from linear_transformer.data.tokenizers import load_tokenizer

NAME = "embedded"
LICENCE = "PSF-2.0"

_MODULE_NAMES = """
abc argparse ast base64 bdb bz2 calendar cmd code codecs compileall configparser contextlib copy
copyreg csv dataclasses difflib dis doctest enum filecmp fileinput fnmatch fractions ftplib
functools getopt getpass gettext glob graphlib gzip hashlib heapq hmac imaplib inspect ipaddress
linecache locale lzma mailbox mimetypes modulefinder netrc ntpath operator optparse os pdb pickle
pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr
pydoc queue quopri random reprlib runpy sched selectors shelve shlex shutil smtplib socket
socketserver ssl statistics string stringprep subprocess symtable tabnanny tarfile tempfile
textwrap threading timeit tokenize trace traceback tracemalloc types typing uuid warnings wave
weakref webbrowser zipapp zipimport
"""
MODULES = tuple(_MODULE_NAMES.split())


def load(config: Any) -> Corpus:
    """Returns the corpus; `config.tokenizer` is the only field used.

    Raises:
      DataError: this Python lacks the source of a module, or the tokenizer cannot be loaded.
    """
    documents = {f"topics/{name}": text.encode() for name, text in topics.topics.items()}
    folder = pathlib.Path(sysconfig.get_path("stdlib"))
    for module in MODULES:
        path = folder / f"{module}.py"
        try:
            documents[f"modules/{module}"] = path.read_bytes()
        except OSError as error:
            raise DataError(
                f"{path}: this Python has no source of module {module}; "
                "use a full installation of CPython, or another config.data.dataset"
            ) from error
    ordered = [documents[name] for name in sorted(documents)]
    return tokenize_splits(
        NAME, LICENCE, load_tokenizer(config.tokenizer), split_documents(ordered)
    )
