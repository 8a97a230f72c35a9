"""Uploads an exported folder to the Hugging Face hub, when a person asks for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from goat_jax.errors import RunFailed, UserError, first_line


def check_push(repo: str) -> None:
    """Checks the name of a repository and that somebody is logged in, before anything is made.

    The token is the one of `hf auth login` or HF_TOKEN; it is read by huggingface_hub alone.

    Raises:
        UserError: a name that is not USER/NAME, or nobody is logged in.
        RunFailed: the hub did not answer.
    """
    from huggingface_hub.errors import LocalTokenNotFoundError

    if not is_repo_id(repo):
        raise UserError(f"--push {repo!r} is not a repository: give USER/NAME")
    try:
        _api().whoami()
    except LocalTokenNotFoundError:
        raise UserError(
            "--push needs an account of the Hugging Face hub: run `hf auth login`, or set HF_TOKEN"
        ) from None
    except _refusals() as error:
        raise RunFailed(f"--push: the hub did not accept the login: {first_line(error)}") from None


def push(folder: Path, repo: str, *, public: bool, message: str) -> str:
    """Uploads a folder; returns the repository's address.

    A repository that does not exist is created, private unless `public`; one that exists keeps its
    visibility, and files of the same names are replaced.

    Args:
        folder: the exported folder.
        repo: the repository, ``USER/NAME``.
        public: whether anybody may see a new repository.
        message: the message of the commit.

    Raises:
        RunFailed: the hub refused it or did not answer; the folder is kept.
    """
    api = _api()
    try:
        address = api.create_repo(repo, private=not public, exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except _refusals() as error:
        raise RunFailed(
            f"{folder} is complete but was not uploaded to {repo}: {first_line(error)}; try again "
            f"with `hf upload {repo} {folder}`"
        ) from None
    return str(address)


def is_repo_id(name: str) -> bool:
    """True if a name can be that of a repository, with its owner.

    >>> is_repo_id("FacebookAI/roberta-base"), is_repo_id("/models/roberta"), is_repo_id("mine")
    (True, False, False)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.count("/") == 1


def _api() -> Any:
    import huggingface_hub

    return huggingface_hub.HfApi()


def _refusals() -> tuple[type[Exception], ...]:
    """Returns the errors of a hub that refuses or does not answer.

    The HTTP library differs by version of huggingface_hub; its errors are bases of this one.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError)
