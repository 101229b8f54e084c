"""An adapter on the hub that a training begins with: its two files, and no other."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

from lrft.build.earlier_peft import CONFIG, FILE
from lrft.model.take_over import KEY
from lrft.registry.errors import RecipeError, first_line

NAMED = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", re.ASCII)


class OnHub(NamedTuple):
    """An adapter of the hub, and where its files are here.

    Attributes:
        revision: the commit that it was read at.
    """

    folder: Path
    name: str
    revision: str


def fetch(asked: str) -> OnHub | None:
    """The files of `OWNER/NAME`, or `OWNER/NAME@REVISION`; None of what is a path.

    Tensors are read from safetensors alone, so nothing that is downloaded can run.

    Raises:
        RecipeError: the hub does not give them, or it is no adapter.
    """
    named = NAMED.fullmatch(asked)
    if named is None or os.path.isabs(asked) or Path(asked).is_dir():
        return None
    name, revision = named.groups()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        found = snapshot_download(
            name, revision=revision, allow_patterns=[CONFIG, FILE], endpoint=os.environ.get("HF_ENDPOINT")
        )
    except RevisionNotFoundError:
        raise RecipeError(f"{name} has no revision {revision}; give one that it has, or none", KEY) from None
    except RepositoryNotFoundError:
        login = "`hf auth login`, or HF_TOKEN, says who you are if it is private"
        raise RecipeError(f"there is no folder {asked} here and no {name} on the hub; {login}", KEY) from None
    except LocalEntryNotFoundError:
        remedy = "try again where the hub can be reached, or name a folder"
        raise RecipeError(f"{name} is not here, and the hub was not reached; {remedy}", KEY) from None
    except Exception as error:  # of a connection that broke, or an answer that is none, in whatever library
        said = first_line(error)
        raise RecipeError(f"the hub did not give {name} ({said}); try again, or name a folder", KEY) from None
    folder = Path(found)
    for file, remedy in (
        (CONFIG, "name the repository of an adapter"),
        (FILE, "save the adapter with safetensors"),
    ):
        if not (folder / file).is_file():
            raise RecipeError(f"{name} on the hub has no {file}; {remedy}", KEY)
    return OnHub(folder, name, folder.name)
