"""The named data sets: their files, official addresses and published hashes; nothing here does anything.

The hashes are those that TensorFlow Datasets publishes beside its builders; for the same files torchvision and the data
sets' own pages publish MD5 sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from quickstudy.images.readers import CIFAR10_FILES, CIFAR100_FILES, IDX_STEMS, SVHN_FILES


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file as it is published."""

    urls: tuple[str, ...]
    """Addresses where it is served, the preferred one first."""
    size: int
    """Size of the file in bytes."""
    sha256: str
    """SHA-256 of the file, 64 hexadecimal digits."""

    @property
    def name(self) -> str:
        """The file's name."""
        return self.urls[0].rpartition("/")[2]


@dataclass(frozen=True, kw_only=True)
class NamedDataSet:
    """A published data set."""

    name: str
    """Name by which it is asked for, and of its folder in the data folder."""
    title: str
    """Name and content, for people."""
    images: int
    """How many images it has, in all splits."""
    files: tuple[RemoteFile, ...]
    """The files to download; none where a dependency brings the data set."""
    folder: str = ""
    """The folder that its archive unpacks to; empty where its files are used as they come."""
    needs: tuple[str, ...]
    """Files or folders that must be there, idx files plain or as .gz."""
    aliases: tuple[str, ...] = ()
    """Folders other than the data set's name in which other tools keep it."""

    @property
    def download_bytes(self) -> int:
        """Size of all files to download, in bytes."""
        return sum(file.size for file in self.files)


def _idx_files(addresses: tuple[str, ...], sizes_and_hashes: tuple[tuple[int, str], ...]) -> tuple[RemoteFile, ...]:
    return tuple(
        RemoteFile(urls=tuple(f"{address}/{stem}.gz" for address in addresses), size=size, sha256=sha256)
        for stem, (size, sha256) in zip(IDX_STEMS, sizes_and_hashes, strict=True)
    )


_ALL = (
    NamedDataSet(
        name="cifar10",
        title="CIFAR-10: 32×32 colour photos of 10 kinds of things",
        images=60_000,
        files=(
            RemoteFile(
                urls=("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                size=170_052_171,
                sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
            ),
        ),
        folder="cifar-10-batches-bin",
        needs=CIFAR10_FILES,
    ),
    NamedDataSet(
        name="cifar100",
        title="CIFAR-100: 32×32 colour photos of 100 kinds of things",
        images=60_000,
        files=(
            RemoteFile(
                urls=("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",),
                size=168_513_733,
                sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
            ),
        ),
        folder="cifar-100-binary",
        needs=CIFAR100_FILES,
    ),
    NamedDataSet(
        name="mnist",
        title="MNIST: 28×28 handwritten digits",
        images=70_000,
        files=_idx_files(  # the original host serves them no longer
            ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
            (
                (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
                (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
                (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
                (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
            ),
        ),
        needs=IDX_STEMS,
        aliases=("MNIST/raw",),
    ),
    NamedDataSet(
        name="fashion_mnist",
        title="Fashion-MNIST: 28×28 grey photos of 10 kinds of clothing",
        images=70_000,
        files=_idx_files(
            (
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
                "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion",
            ),
            (
                (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
                (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
                (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
                (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
            ),
        ),
        needs=IDX_STEMS,
        aliases=("FashionMNIST/raw", "fashion-mnist", "fashion"),
    ),
    NamedDataSet(
        name="svhn",
        title="SVHN: 32×32 colour house numbers, cropped to one digit",
        images=99_289,
        files=(
            RemoteFile(
                urls=("http://ufldl.stanford.edu/housenumbers/train_32x32.mat",),
                size=182_040_794,
                sha256="435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
            ),
            RemoteFile(
                urls=("http://ufldl.stanford.edu/housenumbers/test_32x32.mat",),
                size=64_275_384,
                sha256="cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
            ),
        ),
        needs=SVHN_FILES,
    ),
    NamedDataSet(
        name="flowers",
        title="Flowers: photos of 5 kinds of flowers, in class folders",
        images=3_670,
        files=(
            RemoteFile(
                urls=(
                    "https://storage.googleapis.com/download.tensorflow.org/example_images/flower_photos.tgz",
                    "http://download.tensorflow.org/example_images/flower_photos.tgz",
                ),
                size=228_813_984,
                sha256="4c54ace7911aaffe13a365c34f650e71dd5bf1be0a58b464e5a7183e3e595d9c",
            ),
        ),
        folder="flower_photos",
        needs=("daisy", "dandelion", "roses", "sunflowers", "tulips"),
    ),
    NamedDataSet(
        name="digits",
        title="Digits: 8×8 handwritten digits that come with scikit-learn",
        images=1_797,
        files=(),
        needs=(),
    ),
)

NAMED: Mapping[str, NamedDataSet] = MappingProxyType({entry.name: entry for entry in _ALL})
"""The named data sets by name."""
