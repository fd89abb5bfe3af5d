"""Pretrained: Hypernets and ensembles as folders, which a hub may keep."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from lightning_hypernet import bundle, checkpoint
from lightning_hypernet import folder as files
from lightning_hypernet import recipe as recipes
from lightning_hypernet.archive import ArchiveError, Stored, refuse
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hub.card import card, figures_of
from lightning_hypernet.hub.client import fetch, send
from lightning_hypernet.hub.pictures import FOLDER, Report, pictures_of
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.pair import path_of, temporary
from lightning_hypernet.values import instance, shown, switch

_KINDS = {Ensemble: files.PAIR, Hypernet: bundle.PAIR}
_FILES = [name for pair in _KINDS.values() for name in (pair.recipe, pair.tensors)]
_CARD = "README.md"
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


def save_pretrained(
    what: Hypernet | Ensemble,
    folder: str | Path,
    *,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    report: Report | None = None,
) -> Path:
    """Store a Hypernet or an ensemble with a model card: tensors in safetensors, the rest in JSON, nothing pickled.

    Args:
        what: Either; diversity losses of a Hypernet are left out.
        folder: Made if it does not exist. Older files of the same kind, and the card, are replaced.
        recipe: How to build the target: ``{"class_path": "timm.create_model", "init_args": {...}}``, whose arguments fetch
            nothing; None: whoever loads it gives one.
        metrics: For the card: names and numbers, as `metrics.population_metrics` computes them.
        report: For the card: a folder of ``.png`` and ``.svg`` files, or names and pictures, each bytes, the text of an SVG or
            a path.

    Returns:
        The folder.

    Raises:
        TypeError: If it is neither, or something is no plain value.
        ValueError: If something has no name to be found by again, tensors hold NaN or infinite numbers, the folder holds the
            other kind, or a picture is none; the folder stays as it was.

    Example:
        >>> hypernet = Hypernet(nn.Linear(4, 2), members=3, execution="loop")
        >>> linear = {"class_path": "torch.nn.Linear", "init_args": {"in_features": 4, "out_features": 2}}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     at = save_pretrained(hypernet, folder, recipe=linear, metrics={"member_nll": 0.4, "ensemble_nll": 0.3})
        ...     print(sorted(path.name for path in at.iterdir()), type(from_pretrained(at)).__name__)
        ['README.md', 'hypernet.json', 'hypernet.safetensors'] Hypernet
    """
    at = path_of(folder)
    return _save(what, at, at.resolve().name, recipe, metrics, report)


def from_pretrained(
    name_or_folder: str | Path,
    *,
    target: nn.Module | None = None,
    plugins: Sequence[object] = (),
    trust: bool = False,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
) -> Hypernet | Ensemble:
    """Load what `save_pretrained` stored, or `ensemble.save`, from a folder or from a repo on a hub.

    It may be a stranger's: names, shapes, types and numbers are looked at before anything is built, nothing is imported on a
    file's word, and of a repo those files alone are fetched.

    Args:
        name_or_folder: A folder that is there, or the name of a repo, as ``"someone/digits"``, for which the extra ``hub`` is
            needed.
        target: A module built like the target; its weights do not matter. None: it is built from the recipe, which may name
            `timm.create_model`, with plain arguments that lead to no file, or a class of modules that is loaded already.
        plugins: Plug-ins beside the installed ones, as in `Ensemble.load` and `Hypernet.from_checkpoint`.
        trust: Import whatever the recipe names, and let timm read what it names: for files of your own alone.
        revision: A branch, a tag or a commit of the repo; None: its main branch.
        token: For private repos; None: the one that ``hf auth login`` stored.
        cache_dir: Where fetched files are kept; None: the cache of huggingface_hub.
        endpoint: Address of the hub; None: that of the environment, ``HF_ENDPOINT``.

    Returns:
        What was stored, in evaluation mode.

    Raises:
        ValueError: If there is no such folder or repo, it is not whole or does not fit the target, the hub is not reached, or
            huggingface_hub is needed and not installed.
    """
    at = _local(name_or_folder)
    if at is not None and revision is not None:
        raise ValueError(f"{at} is a folder, which has no revision {shown(revision)}: leave revision= out")
    at = at or fetch(str(name_or_folder), _FILES, revision, token, cache_dir, endpoint)
    found = [kind for kind, pair in _KINDS.items() if (at / pair.recipe).exists()]
    if len(found) != 1:
        names = [pair.recipe for pair in _KINDS.values()]
        told = f"both {' and '.join(names)}" if found else f"neither {' nor '.join(names)}"
        raise ArchiveError(f"{name_or_folder} can't be loaded: it holds {told}, of which save_pretrained writes one")
    if found[0] is Ensemble:
        return Ensemble.load(at, target, plugins, trust)
    return Hypernet.from_checkpoint(at, _built(at, trust) if target is None else target, plugins=plugins, trust=trust)


def push_to_hub(
    what: Hypernet | Ensemble,
    repo_id: str,
    *,
    recipe: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    report: Report | None = None,
    private: bool | None = None,
    exist_ok: bool = True,
    revision: str | None = None,
    message: str | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> str:
    """Store a Hypernet or an ensemble as a repo on a hub, in one commit; the extra ``hub`` is needed.

    What an earlier push left, the card among it, is replaced; the history of the repo keeps it.

    Args:
        what: As in `save_pretrained`.
        repo_id: Name of the repo, as ``"someone/digits"``; it is made if it is not there.
        recipe: As in `save_pretrained`.
        metrics: As in `save_pretrained`.
        report: As in `save_pretrained`.
        private: Whether a new repo is private; None: as its owner's settings have it.
        exist_ok: Whether the repo may exist already.
        revision: The branch, made if it is not there; None: the main one.
        message: Of the commit; None: what it holds.
        token: One that may write; None: the one that ``hf auth login`` stored.
        endpoint: As in `from_pretrained`.

    Returns:
        Address of the commit.

    Raises:
        TypeError: As `save_pretrained`.
        ValueError: As `save_pretrained`, and if the repo exists or may not be written to, or the hub is not reached.
    """
    instance("repo_id", repo_id, str, "the name of a repo, as 'someone/digits'")
    exist_ok = switch("exist_ok", exist_ok)
    with tempfile.TemporaryDirectory() as at:
        _save(what, Path(at), repo_id, recipe, metrics, report)
        told = message or f"{type(what).__name__} of {type(what.target).__name__}"
        return send(at, repo_id, [*_FILES, f"{FOLDER}/*"], told, revision, private, exist_ok, token, endpoint)


def _save(
    what: Hypernet | Ensemble,
    at: Path,
    name: str,
    built: Mapping[str, Any] | None,
    metrics: Mapping[str, Any] | None,
    report: Report | None,
) -> Path:
    instance("what", what, (Hypernet, Ensemble), "a Hypernet or an Ensemble, as callback.hypernet or hypernet.ensemble(10)")
    recipes.check(built)
    figures, pictures = figures_of(metrics), pictures_of(report)
    for kind, pair in _KINDS.items():
        if not isinstance(what, kind) and (at / pair.recipe).exists():
            raise ValueError(f"{at} holds {pair.what} already, and a folder holds one thing: name another")
    text = card(what, name, built, figures, {title: path for title, (path, _) in pictures.items()})
    if isinstance(what, Ensemble):
        what.save(at, built)
    else:
        what.settle_statistics()
        checkpoint.write_folder(at, what, what.options, what.needs, built)
    for path, content in [*pictures.values(), (_CARD, text.encode())]:
        (at / path).parent.mkdir(exist_ok=True)
        with temporary((at / path).parent, Path(path).name) as whole:
            whole.write_bytes(content)
            os.replace(whole, at / path)
    return at


def _local(name: str | Path) -> Path | None:
    """The folder that is there; None: it is the name of a repo."""
    instance("name_or_folder", name, (str, os.PathLike), "a folder or the name of a repo")
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists():
        raise ValueError(
            f"{path} is a file: name the folder that save_pretrained wrote (checkpoints: Hypernet.from_checkpoint)"
        )
    if not isinstance(name, str) or not _REPO.fullmatch(name):
        raise ValueError(f"{str(name)!r} is neither a folder that is there nor the name of a repo, as 'someone/digits'")
    return None


def _built(at: Path, trust: bool) -> nn.Module:
    """The target of a Hypernet, from its recipe, in the type of what is generated."""
    kept, state = bundle.read(at)
    if kept["target"] is None:
        refuse(at, ["it has no recipe of the target: pass target=..., a module built like it"])
    tensors = {name: one for name, one in state.items() if isinstance(one, Stored)}
    return recipes.build_for(at, kept["target"], tensors, "generator.", trust)
