"""A written folder on the hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lrft.core import stop
from lrft.registry.errors import LrftError, UsageError, first_line

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def check_repository(name: str) -> None:
    """Refuse what is no name on the hub, before anything is written.

    Raises:
        UsageError: says how a name looks.
    """
    if not REPOSITORY.fullmatch(name):
        raise UsageError(f"--push {name}: is no name on the hub; write OWNER/NAME")


def push(folder: Path, name: str, public: bool, message: str) -> str:
    """Upload the folder as one commit, to a repository that is made where there is none; returns the commit's address.

    Args:
        public: a new repository can be read by all; by default it is private. One that is there stays what it is.

    Raises:
        LrftError: the hub refused, or could not be reached; the folder is there all the same.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    try:
        with stop.at_once():
            api.create_repo(name, private=not public, exist_ok=True)
            done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except OfflineModeIsEnabled:
        remedy = "unset HF_HUB_OFFLINE, or try again where the hub can be reached"
        raise LrftError(f"--push {name}: the hub libraries are in offline mode; {remedy}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        hint = "; `hf auth login`, or HF_TOKEN, says who you are" if status in (401, 403) else ""
        raise LrftError(
            f"--push {name}: the hub refused ({first_line(error)}){hint}; {folder} is written"
        ) from None
    except Exception as error:  # of a connection that broke, in whatever library
        raise LrftError(f"--push {name}: not uploaded ({first_line(error)}); {folder} is written") from error
    return str(done.commit_url)
