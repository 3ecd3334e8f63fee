"""Everything a suite needs of the hub, from the local cache where it is there; one error for all that is missing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fusionlib.core import CheckpointError, FusionError
from fusionlib.zoo.hub import repos
from fusionlib.zoo.hub.repos import Repo
from fusionlib.zoo.hub.retrying import reason_of
from fusionlib.zoo.hub.table import DataSet, Family


def repos_of(family: Family | None, data: Sequence[DataSet], tuning: str) -> list[Repo]:
    """The repositories of a suite: the pretrained model, one fine-tune per task, and the data sets.

    Raises: ParameterError, if no such fine-tune was published.
    """
    models = [family.pretrained] if family else []
    if family and tuning != "none":
        models += [family.finetuned(each.name, tuning) for each in data]
    return [Repo(name) for name in models] + [data_repo(each) for each in data]


def data_repo(data: DataSet) -> Repo:
    """The repository of a data set, with the two splits that a task is made from."""
    return Repo(data.id, "dataset", data.config, ("train", data.test))


def require(needed: Sequence[Repo], *, command: str = "", progress: bool = True) -> dict[Repo, Path]:
    """Repository -> folder, downloading what is not there.

    Args:
        needed: repositories.
        command: what fetches all of them, for the message.
        progress: show the hub's progress bars.

    Raises: CheckpointError, which lists all that is missing, if the hub can't be reached or must not be.
    """
    from huggingface_hub import constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    found = {repo: repos.cached(repo) for repo in dict.fromkeys(needed)}
    missing = [repo for repo, folder in found.items() if folder is None]
    if missing and constants.HF_HUB_OFFLINE:
        raise unreachable(missing, len(found), "HF_HUB_OFFLINE is set", command)
    with _bars(progress):
        for repo in missing:
            try:
                found[repo] = repos.download(repo)
            except FusionError:
                raise
            except (OSError, HfHubHTTPError, HFValidationError) as error:
                left = [each for each in missing if found[each] is None]
                raise unreachable(
                    left, len(found), f"{repo.id} can't be fetched ({reason_of(error)})", command
                ) from error
    return {repo: folder for repo, folder in found.items() if folder is not None}


def unreachable(missing: Sequence[Repo], total: int, why: str, command: str) -> CheckpointError:
    """The error that lists all that is missing, and what fetches it."""
    from huggingface_hub import constants

    listed = []
    for kind, title in (("model", "models"), ("dataset", "data sets")):
        names = [f"{repo.id} ({repo.config})" if repo.config else repo.id for repo in missing if repo.kind == kind]
        if names:
            listed.append(f"{title}: {', '.join(names)}")
    remedy = f"Where there is a network, this fetches them all: HF_HUB_OFFLINE=0 {command}" if command else ""
    return CheckpointError(
        f"{len(missing)} of {total} repositories are not complete in {constants.HF_HUB_CACHE}, and {why}. Missing "
        f"{'; '.join(listed)}. {remedy}".strip()
    )


@contextmanager
def _bars(shown: bool) -> Iterator[None]:
    """Without the progress bars of huggingface_hub, unless they are wanted; the user's choice comes back."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not shown and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()
