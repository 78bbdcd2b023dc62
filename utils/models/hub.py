"""Whether the Hugging Face hub can give what a profile needs, and what to do where it cannot."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from utils.errors import CourseError
from utils.models.profiles import Profile


def check_hub(profile: Profile) -> None:
    """Find out, before anything heavy starts, whether the hub can give what the profile needs.

    Raises:
        CourseError: no token for a gated model, or no answer from the hub, and no copy in the hub's cache
    """
    from huggingface_hub import get_token, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(profile.model_id, "config.json"), str):
        return
    if profile.gated and not get_token():
        raise CourseError(_token_missing(profile))
    trouble = hub_trouble()
    if trouble:
        raise CourseError(_unreachable(profile, trouble))


def hub_trouble(timeout: float = 5.0) -> str | None:
    """Why the hub (or what HF_ENDPOINT names in its place) does not answer; None if it does."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=timeout)
    except Exception as error:
        return str(error) or type(error).__name__
    return None


@contextlib.contextmanager
def explained(profile: Profile) -> Iterator[None]:
    """Say what to do about what the hub and its clients raise."""
    try:
        yield
    except Exception as error:
        # While the message "Loading ..." stands there unfinished.
        sys.stdout.flush()
        if not profile.on_hub:
            raise
        names = {type(link).__name__ for link in _chain(error)}
        if "GatedRepoError" in names:
            raise CourseError(_token_missing(profile)) from error
        if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "ConnectTimeout", "ReadTimeout"}:
            raise CourseError(_unreachable(profile, str(error).splitlines()[0])) from error
        if names & {"EntryNotFoundError", "RemoteEntryNotFoundError", "RepositoryNotFoundError"}:
            raise CourseError(
                f"The Hugging Face hub answers but does not have what profile {profile.name} asks for, or does not "
                f"show it to this account: {str(error).splitlines()[0]} It may have been moved; please report it."
            ) from error
        if names & {"OutOfMemoryError", "MemoryError"}:
            raise CourseError(
                f"There is not enough memory for profile {profile.name}, which needs {profile.needs}. "
                "Restart the kernel and close other notebooks, or stay with the default profile: load()"
            ) from error
        raise


def _chain(error: BaseException) -> Iterator[BaseException]:
    passed: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in passed:
        passed.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _token_missing(profile: Profile) -> str:
    return (
        f"{profile.model_id} is gated: accept its licence on the model's page on the Hugging Face hub, make an access "
        "token there (reading is enough), and run `hf auth login` or set HF_TOKEN before starting Jupyter. Everything "
        "in the course can be done without it, on the default profile: load()"
    )


def _unreachable(profile: Profile, reason: str) -> str:
    return (
        f"Profile {profile.name} comes from the Hugging Face hub, which does not answer ({reason}). Check the network "
        "connection, and HF_ENDPOINT and HF_HUB_OFFLINE if they are set. The default profile needs no hub: load()"
    )
