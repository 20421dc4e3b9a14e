"""Text to train on: the bytes of files, split by file into training and validation.

Every Python installation carries several megabytes of its standard library's sources,
so the example needs no download. Any folder of text files can be used in their place.
"""

import dataclasses
import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from usage import UsageError

# Tests and encoding tables repeat themselves, not every Python has idlelib and lib2to3,
# and installed packages differ from machine to machine.
LEFT_OUT = {
    "__pycache__",
    "dist-packages",
    "encodings",
    "idlelib",
    "lib2to3",
    "site-packages",
    "test",
    "tests",
}
# Written when Python was built, and full of that machine's paths.
BUILD_OUTPUT = ("_sysconfigdata", "config-")

VALIDATION_SHARE = 0.1
# A byte no text holds marks where one file ends and the next begins.
FILE_END = b"\0"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Bytes to learn from, and bytes of other files to be judged on."""

    name: str
    train: np.ndarray
    validation: np.ndarray

    def batch(self, seed: int, step: int, size: int, context: int) -> np.ndarray:
        """Random training windows, each one byte longer than the context.

        They depend on the seed and the step alone, never on earlier calls, so a run
        resumed at some step sees what an uninterrupted run sees there.
        """
        starts = np.random.default_rng([seed, step]).integers(
            len(self.train) - context, size=size
        )
        return _windows(self.train, starts, context)

    def validation_windows(self, count: int, context: int) -> np.ndarray:
        """Windows spread evenly over the validation text: the same ones every time."""
        starts = np.linspace(0, len(self.validation) - context - 1, count).astype(int)
        return _windows(self.validation, starts, context)

    def fingerprint(self) -> str:
        """Tells whether two runs read the same text."""
        digest = hashlib.sha256(self.train)
        digest.update(self.validation)
        return digest.hexdigest()[:16]

    def require(self, size: int, context: int) -> None:
        """Refuse a text too short to fill one batch from either split."""
        needed = size * (context + 1)
        for split in ("train", "validation"):
            found = len(getattr(self, split))
            if found < needed:
                raise UsageError(
                    "--data",
                    self.name,
                    f"its {split} split has {found} bytes, and a batch of {size} "
                    f"windows of {context + 1} bytes needs {needed}",
                    "Add text files, or cut one into several (about one file in ten "
                    "goes to validation), or lower --batch or --context",
                )


def load(folder: str | None = None) -> Corpus:
    """The text files below `folder`, or the standard library's sources without one.

    The end of a lone file is the validation text.
    """
    if folder is None:
        root = Path(sysconfig.get_paths()["stdlib"])
        name = f"the standard library of Python {platform.python_version()}"
        paths = _library_sources(root)
    else:
        root = Path(folder)
        name = folder
        paths = _visible_files(root)
    if not root.is_dir():
        raise UsageError(
            "--data", name, "there is no such folder", "Name a folder of text files"
        )
    texts = {}
    for path in sorted(paths):
        text = path.read_bytes()
        if _is_text(text):
            texts[path.relative_to(root).as_posix()] = text + FILE_END
    if not texts:
        raise UsageError(
            "--data",
            name,
            "the folder holds no text files (UTF-8)",
            "Name a folder of text files",
        )
    if len(texts) == 1:
        (text,) = texts.values()
        cut = int(len(text) * (1 - VALIDATION_SHARE))
        splits = {"train": [text[:cut]], "validation": [text[cut:]]}
    else:
        splits = {"train": [], "validation": []}
        for relative, text in texts.items():
            splits[split_of(relative)].append(text)
    joined = {
        split: np.frombuffer(b"".join(parts), np.uint8)
        for split, parts in splits.items()
    }
    return Corpus(name, **joined)


def split_of(relative_path: str) -> str:
    """The split of a file, by a hash of its name.

    Whole files are held back, so no validation text continues a training text, and a
    file keeps its split when others come or go.
    """
    digest = hashlib.sha256(relative_path.encode()).digest()
    share = int.from_bytes(digest[:4], "big") / 2**32
    return "validation" if share < VALIDATION_SHARE else "train"


def _library_sources(root: Path) -> Iterator[Path]:
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        if not LEFT_OUT.intersection(parts) and not parts[0].startswith(BUILD_OUTPUT):
            yield path


def _visible_files(root: Path) -> Iterator[Path]:
    """Files outside hidden folders, which hold bookkeeping such as `.git`."""
    for path in root.rglob("*"):
        parts = path.relative_to(root).parts
        if path.is_file() and not any(part.startswith(".") for part in parts):
            yield path


def _is_text(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return FILE_END not in content


def _windows(text: np.ndarray, starts: np.ndarray, context: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(context + 1)].astype(np.int32)
