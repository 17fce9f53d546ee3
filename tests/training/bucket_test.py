"""A run's files in a bucket: objects that are written whole, and never appended to.

The bucket lies in memory, behind the file system that etils asks for gs://. Orbax and TensorBoard
bring their own access to buckets, which is not tested here.
"""

import json

import fsspec
import matplotlib.pyplot as plt
import pytest
from etils import epath
from fsspec.implementations.memory import MemoryFileSystem

from linear_transformer.config import configuration
from linear_transformer.data.io.reading import files_below
from linear_transformer.errors import ConfigError
from linear_transformer.training import checkpoints, config_file, experiment, metrics
from linear_transformer.training.build import make_task
from linear_transformer.training.lock import FolderLock
from linear_transformer.training.tracer import Tracer
from tests.training import runs


class Bucket(MemoryFileSystem):
    """As gcsfs, in what matters here."""

    protocol = ("gs", "gcs")
    store = {}  # noqa: RUF012
    pseudo_dirs = [""]  # noqa: RUF012
    cachable = False

    def __init__(self, finalize_on_close=False):
        super().__init__()

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.removeprefix("gs://"))

    def _open(self, path, mode="rb", **options):
        if "a" in mode:
            raise NotImplementedError("an object can't be appended to")
        return super()._open(path, mode, **options)


fsspec.register_implementation("gcs", Bucket, clobber=True)


@pytest.fixture
def workdir(monkeypatch):
    monkeypatch.setattr(Bucket, "store", {})
    monkeypatch.setattr(Bucket, "pseudo_dirs", [""])
    monkeypatch.setattr(metrics, "EventsWriter", NoTensorBoard)
    return epath.Path("gs://bucket/run")


class NoTensorBoard:
    def __init__(self, *_, **__): ...

    def write_event(self, event): ...

    def flush(self): ...

    def close(self): ...


def test_appending_is_refused(workdir):
    """Negative control of the bucket."""
    with pytest.raises(NotImplementedError), (workdir / "x").open("a") as file:
        file.write("y")


def test_config(workdir):
    config = runs.make_config("text")
    FolderLock(workdir).acquire()
    config_file.save(config, workdir)
    config_file.save(config, workdir)
    resolved = configuration.plain(experiment.resolve(config))
    assert configuration.plain(config_file.load(workdir)) == resolved
    with pytest.raises(ConfigError, match="gs://bucket/run holds a run with another config"):
        config_file.save(runs.make_config("text", seed=3), workdir)


def test_metrics_and_picture(workdir):
    writer = metrics.MetricWriter(workdir, 0)
    for step in (1, 2):
        writer.write(step, "train", {"loss": 1.0 / step})
    writer.close()
    writer = metrics.MetricWriter(workdir, 1)
    writer.write(2, "train", {"loss": 0.25})
    writer.close()
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 0.25]
    metrics.plot_loss(workdir, "loss")
    assert (workdir / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not plt.get_fignums()


def test_checksums_of_a_checkpoint(workdir):
    folder = workdir / "checkpoints" / "3"
    for name in ("a", "state/b", "state/deep/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    checkpoints._commit(folder)
    checkpoints._verify(folder)
    (folder / "state/deep/c").write_text("d")
    with pytest.raises(ValueError, match=r"gs://bucket/run/checkpoints/3/state/deep/c is damaged"):
        checkpoints._verify(folder)


def test_trace(workdir):
    tracer = Tracer(workdir, 2, 1)
    for step in (1, 2, 3):
        tracer.at(step, None)
    assert [path.name[-10:] for path in files_below(workdir)].count(".xplane.pb") == 1


def test_data(workdir, text):
    """A language model's texts, read where they lie."""
    for path in text.iterdir():
        (workdir / "text").mkdir(parents=True, exist_ok=True)
        (workdir / "text" / path.name).write_bytes(path.read_bytes())
    batches = [
        next(iter(make_task(runs.make_config(folder)).training_data(0, 1)))
        for folder in (text, f"{workdir}/text")
    ]
    assert (batches[0]["inputs"] == batches[1]["inputs"]).all()
