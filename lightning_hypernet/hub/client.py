"""Client: what is fetched from a hub and sent to it, and what is said when that fails."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_LIBRARY = "lightning_hypernet"


def fetch(
    repo: str, files: Sequence[str], revision: str | None, token: str | None, cache: str | Path | None, endpoint: str | None
) -> Path:
    """The folder, in a cache, of some files of a repo; no other file is fetched.

    Args:
        repo: Its name, as ``"someone/digits"``.
        files: Names of files; those that are not there are left out.
        revision: A branch, a tag or a commit; None: the main branch.
        token: For private repos; None: the one that ``hf auth login`` stored.
        cache: The cache; None: that of huggingface_hub.
        endpoint: Address of the hub; None: that of the environment.

    Raises:
        ValueError: If huggingface_hub is not installed, the repo or the revision is not there, or the hub is not reached.
    """
    hub = _hub(f"there is no folder {repo!r}, and repos are fetched")
    with _told(repo, revision, endpoint):
        found = hub.snapshot_download(
            repo, revision=revision, token=token, cache_dir=cache, endpoint=endpoint, allow_patterns=list(files),
            library_name=_LIBRARY,
        )  # fmt: skip
    return Path(found)


def send(
    folder: str | Path,
    repo: str,
    files: Sequence[str],
    message: str,
    revision: str | None,
    private: bool | None,
    exist_ok: bool,
    token: str | None,
    endpoint: str | None,
) -> str:
    """Make a repo of a folder, or a further commit in it.

    Args:
        folder: The folder.
        repo: Name of the repo.
        files: Patterns of files of the repo that go if the folder has them not.
        message: Of the commit.
        revision: The branch, which is made if it is not there; None: the main one.
        private: Whether a new repo is private; None: as the owner's settings have it.
        exist_ok: Whether the repo may exist.
        token: As in `fetch`.
        endpoint: As in `fetch`.

    Returns:
        Address of the commit.

    Raises:
        ValueError: If huggingface_hub is not installed, the repo exists or may not be written to, or the hub is not reached.
    """
    api = _hub("repos are written").HfApi(endpoint=endpoint, token=token, library_name=_LIBRARY)
    with _told(repo, revision, endpoint):
        api.create_repo(repo, private=private, exist_ok=exist_ok)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        sent = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, revision=revision, delete_patterns=list(files)
        )
    return str(sent.commit_url)


def _hub(what: str) -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ValueError(f"{what} by huggingface_hub: pip install 'lightning_hypernet[hub]'") from error
    return huggingface_hub


@contextmanager
def _told(repo: str, revision: str | None, endpoint: str | None) -> Iterator[None]:
    """Say in a sentence what goes wrong between here and a hub."""
    from huggingface_hub import constants, errors

    place = endpoint or constants.ENDPOINT
    try:
        yield
    except errors.HFValidationError as error:
        raise ValueError(f"{repo!r} is neither a folder that is there nor the name of a repo, as 'someone/digits'") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{repo} has no revision {revision!r}: name a branch, a tag or a commit of it") from error
    except Exception as error:  # of whatever carries the requests, which is another package from version to version
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
            raise ValueError(
                f"there is no {repo} at {place}, or none that this token may use: check its name, log in by `hf auth login`, "
                "or pass token=..."
            ) from error
        if status == 409:
            raise ValueError(f"{repo} exists already at {place}: pass exist_ok=True for a further commit") from error
        reason = " ".join(str(error.__cause__ or error).split()) or type(error).__name__
        raise ValueError(f"{place} was not reached, or failed ({reason[:200]}): try again, or pass a folder") from error
