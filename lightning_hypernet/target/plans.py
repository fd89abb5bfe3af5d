"""Plans: how a kind of call is dealt out and joined, decided once, from how shapes follow the batch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_hypernet.target.arguments import ENTRIES, Arguments, usual_axes
from lightning_hypernet.target.joining import BATCH, PLAIN, Following, Path, place_of, walk
from lightning_hypernet.target.layout import BatchDim, laid_out, parameters_of
from lightning_hypernet.target.networks import Networks
from lightning_hypernet.target.trial import Aside

Joint = tuple[dict[Path, Following | None], set[Path]]
WAYS = 32
"""Seatings of the batch that are tried at most."""
Seats = tuple[bool, list[int | None]]
"""Whether lists hold examples, and where the batch lies in every leaf."""


class Plans:
    """How calls are dealt out and joined; every kind of call is decided once, whatever sizes come later.

    A second batch size shows which parts of an output follow the batch. It is run by the first network, aside.

    Args:
        batch_dim: Where the user says that the batch lies; None: nothing is said.
    """

    def __init__(self, batch_dim: BatchDim = None) -> None:
        self.batch_dim = batch_dim
        self._inputs: dict[Any, Seats] = {}
        self._outputs: dict[Any, Joint] = {}
        self._checked: set[Any] = set()

    def arguments(
        self, template: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], method: str = "forward"
    ) -> Arguments:
        """The arguments of a call that is not dealt out.

        Raises:
            ValueError: If the batch can't lie where the user says.
        """
        if self.batch_dim is None:
            return Arguments(args, kwargs)
        return laid_out(args, kwargs, self.batch_dim, _called(template, method))

    def deal(
        self,
        networks: Networks,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str = "forward",
        smallest: int = 1,
    ) -> Arguments:
        """The arguments of a call, the batch dealt out to networks.

        Args:
            networks: The networks.
            args: Positional arguments.
            kwargs: Keyword arguments.
            method: What is called.
            smallest: Examples that a network needs at least.

        Raises:
            ValueError: If an argument has another size than before, where the batch lay in it.
        """
        template, count = networks.replicas.template, len(networks)
        plain = self.arguments(template, args, kwargs, method)
        if plain.batch <= 1 or count <= 1:
            return plain if count <= 1 else self._dealt(plain, (plain.holds_lists, plain.axes), args, kwargs, count, smallest)
        lists = self.batch_dim is None and any(type(one) is list and one for one in (*args, *kwargs.values()))
        whole = Arguments(args, kwargs, lists=True) if lists else plain
        key = (networks.replicas.run_of(method), whole.kinds())
        if key not in self._inputs:
            self._inputs[key] = self._decided(networks, args, kwargs, method, plain, lists, smallest)
        dealt = self._dealt(plain, self._inputs[key], args, kwargs, count, smallest)
        places = dealt.differing()
        if places:
            names = dealt.names(parameters_of(_called(template, method)))
            odd = [names[place] for place in places]
            raise ValueError(
                f"{', '.join(odd)} had the size of the batch when {type(template).__name__} was first called, and has not now, "
                f"where the batch is {dealt.batch}: say with batch_dim where the batch lies, and None for what networks share"
            )
        return dealt

    def _dealt(
        self, plain: Arguments, seats: Seats, args: tuple[Any, ...], kwargs: dict[str, Any], count: int, smallest: int
    ) -> Arguments:
        lists, axes = seats
        if not lists and len(axes) != len(plain.leaves):
            axes = plain.axes  # lists that hold inputs, of another length
        return Arguments(args, kwargs, count, smallest, axes, lists=True) if lists else plain.dealt(count, smallest, axes)

    def _decided(
        self,
        networks: Networks,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        method: str,
        plain: Arguments,
        lists: bool,
        smallest: int,
    ) -> Seats:
        """Where the batch lies: along the axes that have its size, as far as the target runs so."""
        seats = list(_seatings(plain))
        if not lists and len(seats) == 1:
            return plain.holds_lists, plain.axes
        aside = Aside(networks)
        found: list[tuple[Seats, bool]] = []
        if lists and _has_texts(args, kwargs, plain.batch):
            leaves = Arguments(args, kwargs, lists=True).leaves
            axes = [ENTRIES if type(leaf) is list and len(leaf) == plain.batch else axis
                    for leaf, axis in zip(leaves, usual_axes(leaves), strict=True)]  # fmt: skip
            if _tried(aside, Arguments(args, kwargs, len(networks), smallest, axes, lists=True), method)[0]:
                return True, axes
        for axes in seats:
            dealt = Arguments(args, kwargs, len(networks), smallest, axes, lists=plain.holds_lists)
            runs, follows = _tried(aside, dealt, method)
            if runs:
                found.append(((plain.holds_lists, axes), follows))
                break
        if lists and not (found and (found[0][1] or not _like_images(args, kwargs))):
            entries = Arguments(args, kwargs, lists=True)
            size = next(len(leaf) for leaf in entries.leaves if type(leaf) is list and leaf)
            axes = [ENTRIES if type(leaf) is list and len(leaf) == size else
                    0 if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == size else None
                    for leaf in entries.leaves]  # fmt: skip
            if _tried(aside, Arguments(args, kwargs, len(networks), smallest, axes, lists=True), method)[0]:
                return True, axes
        return found[0][0] if found else (plain.holds_lists, plain.axes)

    def check_part(self, networks: Networks, arguments: Arguments, method: str) -> None:
        """See, once for every kind of call, that a part of a dealt out batch was not cut along the time of a layer.

        Raises:
            ValueError: If it was.
        """
        along = next((axis for leaf in arguments.leaves if (axis := getattr(leaf, "dealt_along", None)) is not None), None)
        if self.batch_dim is not None or along != 0 or arguments.batch < 2:
            return
        key = (networks.replicas.run_of(method), arguments.kinds())
        if key in self._checked:
            return
        self._checked.add(key)
        args, kwargs = arguments.restore(arguments.leaves)
        _check_time(Aside(networks), Arguments(args, kwargs, 2, axes=arguments.axes), method)

    def joint(self, networks: Networks, arguments: Arguments, method: str, outputs: Sequence[Any]) -> Joint:
        """How every part of the outputs follows the batch.

        Args:
            networks: The networks.
            arguments: The arguments of the call, dealt out.
            method: What is called.
            outputs: The output of every network.

        Returns:
            For every leaf and list how it follows, None if it does not; and the leaves that are the same whatever the batch.

        Raises:
            TypeError: If a part follows the batch in a way that can't be joined.
        """
        if arguments.sizes is None:  # there is no batch, and all networks saw the same
            return {}, {path for path, _ in walk(outputs[0])}
        key = (networks.replicas.run_of(method), arguments.kinds(), tuple(arguments.axes))
        known = self._outputs.get(key)
        if known is None or not _fit(known[0], outputs, arguments.sizes):
            known = self._outputs[key] = self._learnt(networks, arguments, method, outputs)
        return known

    def _learnt(self, networks: Networks, arguments: Arguments, method: str, outputs: Sequence[Any]) -> Joint:
        assert arguments.sizes is not None
        aside, size = Aside(networks), arguments.sizes[0]
        if self.batch_dim is None:
            _check_time(aside, arguments, method)
        one = dict(walk(outputs[0]))
        other, count = outputs[-1], arguments.sizes[-1]
        if count == size:
            other, count = next(_others([aside, Aside(networks, hooks=True)], arguments, method, one), (None, size))
        two = dict(walk(other))
        rules: dict[Path, Following | None] = {}
        constant: set[Path] = set()
        for path, value in one.items():
            if isinstance(value, Tensor):
                rules[path] = _following(path, value.shape, two.get(path), size, count)
                if not value.is_floating_point() and isinstance(two.get(path), Tensor) and _equal(value, two[path]):
                    constant.add(path)
            elif type(value) is list:
                longer = two.get(path)
                follows = type(longer) is list and len(longer) != len(value) and len(value) * count == len(longer) * size
                rules[path] = Following(None) if follows else None
            elif isinstance(value, PLAIN) and path in two and isinstance(two[path], PLAIN) and two[path] == value:
                constant.add(path)
        for path in set(one) ^ set(two) if count != size else ():
            above = [rules.get(path[:length]) for length in range(len(path))]
            if not any(rule is not None and rule.axis is None for rule in above):
                raise TypeError(
                    f"the structure of the outputs{place_of(path)} follows the batch, so that those of several networks can't "
                    f"be joined to one: return a list or a tensor; {BATCH}"
                )
        for path, rule in rules.items():
            if rule is not None and rule.axis is not None and rule.factor > 1:
                rules[path] = _ordered(aside, arguments, method, path, rule, size, count)
        return rules, constant


def _has_texts(args: tuple[Any, ...], kwargs: dict[str, Any], batch: int) -> bool:
    """Whether a list beside the tensors has an entry for each example, texts or numbers."""
    alike = [one for one in (*args, *kwargs.values()) if type(one) is list and len(one) == batch]
    return bool(alike) and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(alike))


def _called(template: nn.Module, method: str) -> Any:
    called: Any = template
    for name in method.split(".") if method != "forward" else ():
        called = getattr(called, name, None)
    return called


def _seatings(plain: Arguments) -> Iterator[list[int | None]]:
    """Where the batch may lie in every leaf, the likeliest first: that with the fewest changes to what the sizes say.

    What has the size of the batch along two axes may have it along either, as the state of a recurrent layer with as many
    layers; all but the leaf that it was found in may have it by chance.
    """
    free = [index for index, axis in enumerate(plain.axes) if axis is not None and index not in plain.said]
    if free and all(plain.axes[index] is None for index in plain.said):
        free = free[1:]
    options = {index: [plain.axes[index], *_elsewhere(plain, index), None] for index in free}
    ways = itertools.islice(itertools.product(*(range(len(one)) for one in options.values())), 4096)
    for way in sorted(ways, key=lambda way: (sum(map(bool, way)), sum(way)))[:WAYS]:
        chosen = {index: one[choice] for (index, one), choice in zip(options.items(), way, strict=True)}
        yield [chosen.get(index, axis) for index, axis in enumerate(plain.axes)]


def _elsewhere(plain: Arguments, index: int) -> list[int]:
    leaf, axis = plain.leaves[index], plain.axes[index]
    if not isinstance(leaf, Tensor) or axis is None or leaf.ndim + axis <= 2:
        return []
    return [one for one in (0, 1) if one != axis and leaf.ndim > one and leaf.shape[one] == plain.batch]


def _like_images(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the entries of a list look like examples, tensors of three axes or of several shapes, and not like inputs."""
    entries = next(one for one in (*args, *kwargs.values()) if type(one) is list and one)
    tensors = [one for one in tree_leaves(entries) if isinstance(one, Tensor)]
    return any(one.ndim == 3 for one in tensors) or len({one.shape for one in tensors}) > 1


def _tried(aside: Aside, dealt: Arguments, method: str) -> tuple[bool, bool]:
    """Whether a part can be run, and whether something in the output follows its size."""
    if dealt.sizes is None:
        return False, False
    size = dealt.sizes[0]
    try:
        one = aside.run(dealt.head(size), method)
    except Exception:
        return False, False
    try:
        two = aside.run(dealt.head(min(2 * size, dealt.batch)), method)
    except Exception:
        return True, False
    return True, [_shape(value) for _, value in walk(one)] != [_shape(value) for _, value in walk(two)]


def _shape(value: Any) -> Any:
    return value.shape if isinstance(value, Tensor) else len(value) if type(value) is list else None


def _others(asides: Sequence[Aside], arguments: Arguments, method: str, known: Mapping[Path, Any]) -> Iterator[tuple[Any, int]]:
    """Outputs of the first network at other sizes of the batch, with hooks where they shape it, as far as it runs."""
    size = (arguments.sizes or [0])[0]
    for count, aside in itertools.product(dict.fromkeys((min(2 * size, arguments.batch), size + 1, size - 1)), asides):
        if 0 < count != size:
            try:
                output = aside.run(arguments.head(count), method)
            except Exception:
                continue
            found = dict(walk(output))
            if all(path in found and _dims(found[path]) == _dims(value) for path, value in known.items() if path == ()):
                yield output, count


def _dims(value: Any) -> Any:
    return value.ndim if isinstance(value, Tensor) else type(value)


def _following(path: Path, shape: torch.Size, other: Any, size: int, count: int) -> Following | None:
    """How a shape follows the batch, from a second one."""
    if not isinstance(other, Tensor) or other.ndim != len(shape):
        axes = [axis for axis, length in enumerate(shape) if length == size]  # no other size could be run
        factors = [1] * len(axes)
    else:
        axes = [axis for axis in range(len(shape)) if shape[axis] != other.shape[axis]]
        factors = [shape[axis] // size if shape[axis] * count == other.shape[axis] * size else 0 for axis in axes]
    if len(axes) > 1 or 0 in factors:
        grown = "" if not isinstance(other, Tensor) else f" and {tuple(other.shape)} for {count}"
        raise TypeError(
            f"outputs{place_of(path)} have the shape {tuple(shape)} for {size} examples{grown}, so that those of several "
            f"networks can't be joined to one; {BATCH}"
        )
    return Following(axes[0], factors[0]) if axes else None


def _fit(rules: dict[Path, Following | None], outputs: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Whether outputs have the shapes that the rules say."""
    for output, size in zip(outputs, sizes, strict=True):
        for path, value in walk(output):
            if path in rules:
                rule = rules[path]
                axis = None if rule is None or not isinstance(value, Tensor) else rule.axis
                if rule is not None and axis is not None and (value.ndim <= axis or value.shape[axis] != rule.factor * size):
                    return False
            elif not any(path[:length] in rules for length in range(len(path))):
                return False
    return True


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _ordered(aside: Aside, arguments: Arguments, method: str, path: Path, rule: Following, size: int, count: int) -> Following:
    """Whether several entries for each example stand together or in blocks, from runs in evaluation mode.

    Raises:
        TypeError: If that can't be seen.
    """
    assert rule.axis is not None
    try:
        pair = [aside.run(arguments.head(one), method, training=False) for one in (size, count)]
        one, two = (dict(walk(output))[path].movedim(rule.axis, 0) for output in pair)
        least = min(size, count)
        blocks = [part.unflatten(0, (rule.factor, -1))[:, :least] for part in (one, two)]
        together = [part.unflatten(0, (-1, rule.factor))[:least] for part in (one, two)]
        close = [torch.allclose(first, second, rtol=1e-4, atol=1e-5) for first, second in (together, blocks)]
    except Exception:
        close = [False, False]
    if not any(close):
        raise TypeError(
            f"outputs{place_of(path)} have {rule.factor} entries for each example, in an order that can't be told; {BATCH}"
        )
    return Following(rule.axis, rule.factor, blocked=not close[0])


def _check_time(aside: Aside, arguments: Arguments, method: str) -> None:
    """See that the batch is not the time of a layer that takes time first.

    Raises:
        ValueError: If it is.
    """
    modules = {path: one for path, one in aside.template.named_modules() if getattr(one, "batch_first", None) is False}
    if not modules or arguments.sizes is None:
        return
    size = arguments.sizes[0]
    shapes: list[dict[str, tuple[int, ...]]] = []
    for count in (size, min(2 * size, arguments.batch)):
        try:
            shapes.append(aside.shapes(arguments.head(count), method, list(modules)))
        except Exception:
            return
    for path, one in shapes[0].items():
        other = shapes[1].get(path, one)
        if len(one) == len(other) and one[0] != other[0] and (len(one) < 3 or one[1] == other[1]):
            raise ValueError(
                f"{path or type(aside.template).__name__} takes time first and the batch second, and was given {one} with the "
                "batch dealt out along the first axis: set batch_dim=1 where inputs are such, or take deal='batch'; "
                "batch_dim=0 says that it is right so"
            )
