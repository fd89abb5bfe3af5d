"""Drawing: networks out of a checkpoint or a folder, as files that load into the plain target."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from lightning_hypernet.cli.networks import networks_of
from lightning_hypernet.cli.problems import CommandError
from lightning_hypernet.cli.progress import stage, track
from lightning_hypernet.cli.sources import Source, add_data, add_source, is_timm
from lightning_hypernet.ensemble import Ensemble
from lightning_hypernet.hypernet import Hypernet
from lightning_hypernet.pair import save_tensors
from lightning_hypernet.values import whole

README = """# {count} networks of {kind}

Each file holds the state dict of one plain network; nothing of a hypernetwork is needed to use it.

    from safetensors.torch import load_file

    {built}
    network.load_state_dict(load_file("{first}"))

`members.json` tells of each network what it was generated from. Drawn from `{source}`{how}.
"""


def arguments(parser: Any) -> None:
    """The arguments of the command."""
    add_source(parser)
    add_data(parser, None)
    parser.add_argument("-n", "--count", type=int, metavar="N", help="How many networks; 10, or all of an ensemble.")
    parser.add_argument("--out", type=str, required=True, metavar="DIR", help="The folder; made if it does not exist.")
    parser.add_argument("--members", action="store_true", help="Take the members that validation measured, draw none anew.")
    parser.add_argument("--seed", type=int, help="Other numbers draw other networks; without one the checkpoint's are next.")
    parser.add_argument("--component", type=int, help="Draw from this component of the prior alone.")
    parser.add_argument("--context", type=list[float], metavar="NUMBERS", help="The condition of all networks, as [0.5, -1].")


def run(options: Any) -> None:
    """Draw, write, and print where."""
    folder = Path(options.out)
    if folder.exists() and (not folder.is_dir() or any(folder.glob("member_*.safetensors"))):
        raise CommandError(
            f"{folder} {'holds networks already' if folder.is_dir() else 'is a file'}: name another folder by --out"
        )
    source = Source(options)
    with stage("loading"):
        network = source.network()
    ensemble = drawn(network, source, options)
    write(ensemble, folder, options.source, options.seed, _building(options, source.part))
    print(f"{len(ensemble)} plain networks of {type(ensemble.target).__name__} in {folder}")


def drawn(network: Hypernet | Ensemble, source: Source, options: Any) -> Ensemble:
    """The networks that were asked for.

    Args:
        network: What they are drawn from.
        source: Gives the training data from which norm statistics are estimated.
        options: Those of the command.

    Raises:
        CommandError: If an ensemble has not as many.
    """
    count = None if options.count is None else whole("-n", options.count)
    if isinstance(network, Ensemble):
        if options.seed is not None or options.component is not None or options.context is not None:
            raise CommandError(
                "an ensemble holds networks that were drawn already: leave out --seed, --component and --context"
            )
        if count is not None and count > len(network):
            raise CommandError(f"the ensemble holds {len(network)} networks, not {count}: more come of a Hypernet alone")
        return network[: len(network) if count is None else count]
    if options.members:
        everyone = networks_of(network, source)
        return everyone if count is None else everyone[:count]
    return networks_of(network, source, 10 if count is None else count, options.seed, options.component, options.context)


def write(ensemble: Ensemble, folder: Path, source: str, seed: int | None = None, built: str | None = None) -> None:
    """Write every network of an ensemble as safetensors, with a page and a file about them.

    Args:
        ensemble: The networks.
        folder: Made if it does not exist.
        source: Where they come from, for the page.
        seed: What they were drawn with, for the page.
        built: The lines of Python that build a plain network, for the page.

    Raises:
        CommandError: If a state dict holds what is no tensor.
    """
    networks = ensemble.materialize()
    states = [_state(network) for network in networks]
    kind, latents = f"{type(ensemble.target).__module__}.{type(ensemble.target).__qualname__}", ensemble.latents
    folder.mkdir(parents=True, exist_ok=True)
    digits = max(2, len(str(len(states) - 1)))
    members = []
    for index, state in enumerate(track(states, "writing")):
        file = f"member_{index:0{digits}}.safetensors"
        save_tensors(folder / file, state, {"format": "pt"})
        context = None if latents.context is None else latents.context[index].tolist()
        members.append(
            {"file": file, "component": int(latents.component[index]), "context": context, "z": latents.z[index].tolist()}
        )
    about = {"target": kind, "source": source, "seed": seed, "tensors": _shapes(states[0]), "members": members}
    (folder / "members.json").write_text(_written(about))
    how = "" if seed is None else f" with the seed {seed}"
    page = README.format(
        count=len(states),
        kind=kind,
        first=members[0]["file"],
        source=source,
        how=how,
        built=built or f"network = ...  # a {kind}, built as for the training",
    )
    (folder / "README.md").write_text(page)


def _state(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    odd: Sequence[str] = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if odd:
        raise CommandError(f"{', '.join(odd)} of {type(network).__name__} is no tensor, and safetensors hold tensors alone")
    return {name: value.detach().clone().contiguous() for name, value in state.items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in state.items()}


def _written(about: Mapping[str, Any]) -> str:
    """JSON with a line for every entry, and for every network."""
    lines = [f"  {json.dumps(one)}" for one in about["members"]]
    entries = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in about.items() if key != "members"]
    return "{\n" + ",\n".join([*entries, ' "members": [\n' + ",\n".join(lines) + "\n ]"]) + "\n}\n"


def _building(options: Any, part: str) -> str | None:
    """How the network is built that was named on the command line; None where a YAML file names it."""
    if options.model is None:
        return None
    given = [f"{name}={value!r}" for name, value in (options.init_args or {}).items()]
    if is_timm(options.model):
        return f"import timm\n\n    network = timm.create_model({', '.join([repr(options.model), *given])})"
    module, _, name = options.model.partition(":") if ":" in options.model else options.model.rpartition(".")
    made = f"{module}.{name}({', '.join(given)})"
    return f"import {module}\n\n    network = {made}{part}"
