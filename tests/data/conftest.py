"""Folders of images for the tests of data sets and of batches."""

import gzip

import numpy as np
import pytest
from PIL import Image

from tests.data.image_files import idx


@pytest.fixture
def mnist(tmp_path):
    """30 + 8 images of 5 x 4 pixels, number n filled with n, its label n mod 10."""
    for prefix, count, suffix in (("train", 30, ".gz"), ("t10k", 8, "")):
        numbers = np.arange(count, dtype=np.uint8)
        pixels = np.broadcast_to(numbers[:, None, None], (count, 5, 4))
        for name, array in (("images-idx3", pixels), ("labels-idx1", numbers % 10)):
            data = idx(array)
            path = tmp_path / f"{prefix}-{name}-ubyte{suffix}"
            path.write_bytes(gzip.compress(data) if suffix else data)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """Two classes of one colour each; 3 + 2 images of 40 x 30 pixels."""
    for part, count in (("train", 3), ("val", 2)):
        for label, name in enumerate(("ant", "bee")):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                colour = (200 * label, 100, 10 * number)
                path = tmp_path / part / name / f"{number}.JPEG"
                Image.new("RGB", (40, 30), colour).save(path, quality=95)
    return tmp_path
