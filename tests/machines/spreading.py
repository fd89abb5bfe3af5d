"""Two ranks hold the members of one ensemble together, and share out many networks."""

import sys
from pathlib import Path

import torch
from torch import distributed, nn

from lightning_hypernet import Ensemble, Hypernet
from lightning_hypernet.spread import Spread

REDUCTIONS = ("mean", "log_mean_prob", "majority", None)


def target():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


def images(seed, count=8):
    return torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hypernet_of(reduce="mean", state=None):
    torch.manual_seed(0)
    hypernet = Hypernet(target().double(), samples=2, members=3, reduce=reduce).eval()
    hypernet.load_state_dict(hypernet.state_dict() if state is None else state)
    return hypernet


def refused(run):
    try:
        run()
    except ValueError as error:
        return str(error)
    return "nothing"


def main(folder):
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    x, told, state = images(1), {}, torch.load(folder / "state.pt", weights_only=False)
    spread = Spread(Ensemble.load(folder / "ensemble", target().double()))
    assert len(spread) == 5 and len(spread.share) == 3 - rank
    told["loaded"], told["members"] = spread(x), spread.members(x)
    for reduce in REDUCTIONS:
        drawn = Spread.draw(hypernet_of(reduce, state), 5, loader=[images(2)])
        assert len(drawn.share) == 3 - rank
        told[reduce] = drawn(x)
    told["inputs"] = refused(lambda: Spread.draw(hypernet_of(state=state), 4, loader=[images(2)])(images(rank)))
    told["few"] = refused(lambda: Spread.draw(hypernet_of(), 1))
    apart = hypernet_of(state=state)  # its ranks draw different networks
    told["ensembles"] = refused(lambda: Spread(apart.ensemble(4, loader=[images(2)])))
    told["hypernets"] = refused(lambda: Spread.draw(hypernet_of(), 4))
    torch.save(told, folder / f"told{rank}.pt")
    print("done", rank)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
