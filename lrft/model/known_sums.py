"""The sums of large models, kept in the user's cache so that a resume does not hash the same files again.

An entry counts only while every file of the model has the size, the times of change of its content and of its inode,
and the inode that it had: the time of the inode cannot be set back as the other can. Files that changed within the
last moments are not kept, since another change in the same tick of the clock would leave no trace. All of it is best
effort: a cache that cannot be read or written costs the hashing and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from lrft.files.failure import WriteError
from lrft.files.write import write_file
from lrft.model import gguf
from lrft.model.files import Where, resolve
from lrft.model.weight_sums import WeightSums, stored_tensors, sum_tensor
from lrft.recipe.sections import ModelSection

FORMAT = 1
WORTH = 64 * 2**20  # bytes of files; fewer are hashed sooner than they are looked up
SETTLED = 2 * 10**9  # nanoseconds since the last change, after which another one has another time
READ = (".safetensors", ".json", ".py")  # what decides the values that are loaded
DIGEST = 64  # digits of a sum

File = tuple[str, int, int, int, int, int]  # name, bytes, change of content and of inode in ns, inode, device


@dataclass(frozen=True)
class KnownSums:
    """Where the sums of one model in one precision are kept, and how its files stood when it was about to be loaded."""

    entry: Path
    folder: Path
    files: list[File]

    def get(self) -> WeightSums | None:
        """The sums of these files; None where they are not known."""
        try:
            kept = json.loads(self.entry.read_text(encoding="utf-8"))
            if kept["by"] != _by() or [tuple(file) for file in kept["files"]] != self.files:
                return None
            sums = WeightSums({str(name): str(found) for name, found in kept["each"].items()})
            return sums if sums.whole == kept["whole"] else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return None

    def keep(self, sums: WeightSums) -> None:
        """Keep what was hashed, unless a file changed meanwhile or only just before."""
        now = time.time_ns()
        if any(
            now - max(changed, inode_changed) < SETTLED for _, _, changed, inode_changed, _, _ in self.files
        ):
            return
        with suppress(OSError, WriteError):
            if _standing(self.folder) != self.files:
                return
            content = {"by": _by(), "files": self.files, "whole": sums.whole, "each": dict(sums.each)}
            write_file(self.entry, json.dumps(content))


class Summing:
    """The sums of a base while it is loaded: those that are known of its files, or hashed tensor by tensor.

    Args:
        section: the recipe's `model` section; nothing of it is loaded yet.
    """

    def __init__(self, section: ModelSection) -> None:
        self.known = look_up(section)
        self.found = None if self.known is None else self.known.get()
        self.hashed: dict[str, str] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Hash a tensor that was just read."""
        if self.found is None:
            self.hashed[name] = sum_tensor(name, tensor)

    def finish(self) -> WeightSums:
        """The sums, once every tensor was added."""
        if self.found is None:
            self.found = WeightSums(self.hashed)
            if self.known is not None:
                self.known.keep(self.found)
        return self.found

    def of(self, hf: nn.Module) -> WeightSums:
        """The sums of a model that has all its weights."""
        for name, tensor in stored_tensors(hf):
            self.add(name, tensor)
        return self.finish()


def look_up(section: ModelSection) -> KnownSums | None:
    """Where the sums of `model.name` are kept; None of weights that are drawn, and of models too small for it."""
    if section.weights != "pretrained":
        return None
    try:
        folder = _folder(*resolve(section.name, section.revision, section.dtype))
        files = [] if folder is None else _standing(folder)
    except OSError:  # the loading of it will say what is wrong
        return None
    if folder is None or sum(file[1] for file in files) < WORTH:
        return None
    apart = "" if section.experts == "whole" else f" {section.experts}"  # whose tensors have other names
    name = hashlib.sha256(f"{folder.resolve()} {section.dtype}{apart}".encode()).hexdigest()[:32]
    return KnownSums(gguf.cache_root().with_name("sums") / f"{name}.json", folder, files)


def _folder(name: str, options: Where) -> Path | None:
    """The folder of a model's files on this machine; None of one that was not downloaded yet."""
    from transformers.utils.hub import cached_file

    if Path(name).is_dir():
        return Path(name)
    quiet = dict.fromkeys(
        ("_raise_exceptions_for_missing_entries", "_raise_exceptions_for_connection_errors"), False
    )
    found: str | None = cached_file(name, "config.json", local_files_only=True, **quiet, **options)
    return None if found is None else Path(found).parent


def _standing(folder: Path) -> list[File]:
    """How the files that a model is loaded from stand now, in the order of their names."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.suffix in READ:
            at = path.stat()
            found.append((path.name, at.st_size, at.st_mtime_ns, at.st_ctime_ns, at.st_ino, at.st_dev))
    return found


def _by() -> list[str]:
    """What gives tensors their names and hashes them."""
    from transformers import __version__ as transformers

    from lrft import __version__ as lrft

    return [lrft, transformers]
