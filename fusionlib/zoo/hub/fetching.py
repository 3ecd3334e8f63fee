"""``fusionlib fetch``: all that configurations need of the hub, after its size was said; resumed, and verified."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusionlib.core import CheckpointError
from fusionlib.zoo.hub import repos
from fusionlib.zoo.hub.loading import asked
from fusionlib.zoo.hub.needing import repos_of, unreachable
from fusionlib.zoo.hub.repos import Repo
from fusionlib.zoo.hub.retrying import patiently, reason_of
from fusionlib.zoo.hub.table import datasets
from fusionlib.zoo.names import EMBEDDED_BACKBONES


def needed_by(configurations: Iterable[Mapping[str, Any]]) -> list[Repo]:
    """The repositories that configurations name, each once; none for embedded suites and local folders.

    Raises: UnknownName, ParameterError.
    """
    found: dict[Repo, None] = {}
    for values in configurations:
        backbone, tuning = values.get("backbone", EMBEDDED_BACKBONES[0]), values.get("tuning", "full")
        wanted = asked(backbone, values.get("tasks", ()))
        data = [datasets()[name] for name in wanted.names]
        found |= dict.fromkeys(repos_of(wanted.family, data, tuning if wanted.family and data else "none"))
        if wanted.family is None and "/" in backbone and not Path(backbone).expanduser().exists():
            found[Repo(backbone.removeprefix("hf-hub:"))] = None
    return list(found)


def fetch(needed: Sequence[Repo], say: Callable[[str], object] = print) -> None:
    """Say how much there is, see whether it fits, download what is not there, and compare checksums.

    What is there already is not downloaded again, and a file that was broken off is continued.

    Args:
        needed: repositories.
        say: takes a line for the user.

    Raises: CheckpointError, if the hub can't be reached or lacks something, the disk is too full, or a file is not
        what the hub says it is; such a file is deleted.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        missing = [repo for repo in needed if repos.cached(repo) is None]
        raise unreachable(missing, len(needed), "HF_HUB_OFFLINE is set: set it to 0 for this command", "")
    cache = Path(constants.HF_HUB_CACHE)
    found = {repo: _asking(repo, lambda repo=repo: repos.ask(repo)) for repo in needed}
    absent = {repo: repos.absent(repo, found[repo]) for repo in needed}
    files = sum(len(each.sizes) for each in found.values())
    whole = sum(sum(each.sizes.values()) for each in found.values())
    ahead = sum(sum(sizes.values()) for sizes in absent.values())
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.is_dir())).free
    say(
        f"{len(needed)} repositories, {files} files, {_size(whole)} in all; {_size(ahead)} of it to download into "
        f"{cache}, where {_size(free)} are free."
    )
    if ahead > free:
        raise CheckpointError(
            f"{_size(ahead)} don't fit into {cache}, where {_size(free)} are free. Make room, or set HF_HOME to a "
            "folder on a larger disk."
        )
    for number, repo in enumerate(needed, start=1):
        if absent[repo]:
            say(f"[{number}/{len(needed)}] {repo.id}: {_size(sum(absent[repo].values()))}")
            _asking(repo, lambda repo=repo: repos.download(repo, found[repo]))
    checked = sum(_verify(repo, found[repo].commit) for repo in {each.name: each for each in needed}.values())
    say(f"All is there; the checksums of {checked} files are right.")


def _asking(repo: Repo, call: Callable[[], Any]) -> Any:
    """The result of a call to the hub, its errors as ours."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return call()
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"{repo.kind} {repo.id} can't be fetched ({reason_of(error)}). Check its name, the "
            "network and HF_ENDPOINT, then run the same command again: it goes on where it stopped."
        ) from error


def _verify(repo: Repo, commit: str) -> int:
    """How many files of the local copy were compared with the hub's checksums."""
    from huggingface_hub import HfApi

    def compare() -> Any:
        return HfApi().verify_repo_checksums(repo.name, repo_type=repo.kind, revision=commit)

    compared = _asking(repo, lambda: patiently(compare, repo.id))
    for wrong in compared.mismatches:
        path = compared.verified_path / wrong["path"]
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if compared.mismatches:
        wrong = compared.mismatches[0]
        raise CheckpointError(
            f"{wrong['path']} of {repo.id} is not what the hub says: expected {wrong['algorithm']} "
            f"{wrong['expected']}, found {wrong['actual']}. It was deleted; run the same command again."
        )
    return compared.checked_count


def _size(number: float) -> str:
    """Bytes for people: "3.4 GB"."""
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"
