"""Archives: files of tensors, looked at before any of them is read."""

from __future__ import annotations

import collections
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lightning_hypernet.values import shown

FORMAT = 5
"""Of recipes in checkpoints and folders."""
ENDLESS = "has no end"
Size = tuple[int, ...]
_SHOWN, _FEW = 20, 3
_STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip


class ArchiveError(ValueError):
    """A file that can't be used; the message names it and lists all that is wrong."""


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor in a file, which is not read yet.

    Args:
        shape: Its shape.
        dtype: Its type.
        read: Reads it.
    """

    shape: Size
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Stored:
        """A tensor that was read."""
        return cls(tuple(tensor.shape), tensor.dtype, lambda: tensor)


class Unknown:
    """An object in a file whose class is not imported; it holds nothing.

    Attributes:
        of: The path of the class or function that would have made it; every one has a subclass.
    """

    of = ""

    def __new__(cls, *_: Any, **__: Any) -> Unknown:  # noqa: D102
        return object.__new__(cls)

    def __call__(self, *_: Any, **__: Any) -> Unknown:  # noqa: D102
        return self

    def __setstate__(self, _: Any) -> None: ...

    def __setitem__(self, *_: Any) -> None: ...

    def append(self, _: Any) -> None:
        """Take an entry."""

    extend = add = append


def plain(value: Any, path: str, problems: list[str], most: int = 1_000_000) -> Any:
    """A copy of what an archive holds, in dicts, lists, tuples and plain values, its tensors as they are.

    Args:
        value: What it holds.
        path: Where, in words.
        problems: Takes what is neither plain nor a tensor.
        most: How many entries it may have: a list may hold itself, or another one twice, and so on.
    """
    left = [most]

    def copied(one: Any, path: str) -> Any:
        left[0] -= 1
        if left[0] < 0:
            return None
        if isinstance(one, dict):
            named = {key: entry for key, entry in dict.items(one) if isinstance(key, (str, int))}
            if len(named) < len(one):
                problems.append(f"{path} has keys that are neither texts nor numbers")
            return {key: copied(entry, f"{path}.{key}") for key, entry in named.items()}
        if isinstance(one, (list, tuple)):
            return type(one)(copied(entry, f"{path}.{index}") for index, entry in enumerate(one))
        if isinstance(one, (Stored, Tensor, str, bytes, bool, int, float, complex, type(None), torch.dtype)):
            return one
        kind = getattr(one, "of", type(one).__name__)
        problems.append(f"{path} is a {kind}, which is not imported on a file's word (trust=True reads it)")
        return None

    try:
        copy = copied(value, path)
    except RecursionError:
        left[0] = -1
    if left[0] < 0:
        problems.append(f"{path} {ENDLESS}")
        return None
    return copy


def refuse(path: str | Path, problems: Iterable[str], done: str = "loaded") -> None:
    """Tell all that is wrong with a file.

    Raises:
        ArchiveError: If anything is.
    """
    found = list(problems)
    if found:
        more = [f"and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
        raise ArchiveError(f"{path} can't be {done}: {'; '.join([*found[:_SHOWN], *more])}")


def check_file(path: str | Path) -> None:
    """See that what is there, if anything is, is a file, from which reading ends.

    Raises:
        ArchiveError: If it is a pipe or a device.
    """
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise ArchiveError(f"{path} can't be loaded: it is no file")


def check_format(path: str | Path, recipe: Mapping[str, Any]) -> None:
    """See that a recipe, of a checkpoint or of an ensemble, has the present format.

    Raises:
        ArchiveError: If it has another.
    """
    if type(recipe.get("format")) is not int or recipe["format"] != FORMAT:
        raise ArchiveError(
            f"{path} has the format {shown(recipe.get('format'))}, not {FORMAT}; read it with the version that wrote it"
        )


def listed(tensors: Mapping[str, Stored | Tensor]) -> dict[str, list[Any]]:
    """For every tensor its type and shape, in plain values."""
    return {name: [str(one.dtype).removeprefix("torch."), *one.shape] for name, one in tensors.items()}


def differing(there: Mapping[str, Stored], wanted: Mapping[str, Sequence[Any]], whose: str) -> list[str]:
    """How the tensors of a file differ from those that are wanted, in words.

    Args:
        there: The tensors of the file.
        wanted: For every tensor its type and shape, as `listed` gives them.
        whose: Who wants them.
    """
    problems = [f"{name} is missing" for name in wanted if name not in there]
    problems += [f"{name} is none of {whose}" for name in there if name not in wanted]
    have = listed(there)
    for name, one in wanted.items():
        if name in there and have[name] != list(one):
            problems.append(f"{name} is {_shown(have[name])}, and {_shown(one)} in {whose}")
    return problems


def another(there: Mapping[str, Sequence[Any]], wanted: Mapping[str, Sequence[Any]], problems: list[str]) -> list[str]:
    """Problems as they are; where less than half of the parameters fit, that first, and three of them.

    Args:
        there: The tensors of a file, as `listed` gives them.
        wanted: The parameters of a model.
        problems: How they differ.
    """
    count = sum(math.prod(one[1:]) for one in wanted.values())
    fit = sum(math.prod(one[1:]) for name, one in wanted.items() if list(there.get(name, [])) == list(one))
    if not problems or 2 * fit >= count:
        return problems
    more = [f"and {len(problems) - _FEW} more"] if len(problems) > _FEW else []
    told = f"this is another model than the one that was trained: {fit:,} of {count:,} parameters fit"
    return [told, *problems[:_FEW], *more]


def _shown(one: Sequence[Any]) -> str:
    return f"{one[0]} {tuple(one[1:])}" if one else "nothing"


def misshapen(manifest: Mapping[Any, Any], where: str) -> list[str]:
    """Which entries of a list of tensors, as `listed` gives it, are none, in words."""
    return [
        f"{where}.{shown(name)} is {shown(one)}"
        for name, one in manifest.items()
        if not (isinstance(name, str) and isinstance(one, (list, tuple)) and one and isinstance(one[0], str))
        or not all(type(size) is int for size in one[1:])
    ]


def not_finite(name: str, tensor: Tensor, infinite: bool = False) -> list[str]:
    """Whether a tensor holds NaN, or infinite numbers where they are not allowed, in words."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return []
    some = tensor[tuple(slice(1) if stride == 0 else slice(None) for stride in tensor.stride())]
    some = some.half() if some.dtype.itemsize == 1 else some  # types of 8 bits know no test
    if some.isnan().any():
        return [f"{name} holds NaN"]
    return [f"{name} holds infinite numbers"] if not infinite and some.isinf().any() else []


def read_safetensors(path: str | Path) -> dict[str, Stored]:
    """The tensors of a safetensors file.

    Raises:
        ArchiveError: If it is none, or cut off.
    """
    try:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            slices = {name: file.get_slice(name) for name in names}
            return {
                name: Stored(tuple(one.get_shape()), _DTYPES[one.get_dtype()], partial(_of_safetensors, path, name))
                for name, one in slices.items()
            }
    except (SafetensorError, KeyError, OSError) as error:
        raise ArchiveError(f"{path} can't be loaded: it is no whole safetensors file ({error})") from error


_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
    "U8": torch.uint8, "BOOL": torch.bool, "C64": torch.complex64, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def not_storable(tensors: Mapping[str, Tensor]) -> list[str]:
    """Which tensors are of a type that safetensors can't hold, in words."""
    known = set(_DTYPES.values())
    return [f"{name} is {str(one.dtype).removeprefix('torch.')}" for name, one in tensors.items() if one.dtype not in known]


def _of_safetensors(path: str | Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        tensor: Tensor = file.get_tensor(name)
        return tensor


def read_checkpoint(path: str | Path) -> dict[Any, Any]:
    """What a checkpoint of torch holds, its tensors as `Stored`; nothing that it names is imported or called.

    Raises:
        ArchiveError: If it is none, or cut off.
    """
    check_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = {one.filename.partition("/")[2]: one for one in archive.infolist()}
            packed = [name for name, one in records.items() if one.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise ArchiveError(f"{path} can't be loaded: {packed[0]} is compressed, as no checkpoint is")
            if sum(one.file_size for one in records.values()) > os.path.getsize(path):
                raise ArchiveError(f"{path} can't be loaded: it is shorter than what it lists")
            if "byteorder" in records and archive.read(records["byteorder"]) != b"little":
                raise ArchiveError(f"{path} can't be loaded: it was written with another order of bytes")
            with archive.open(records["data.pkl"]) as file:
                content = _Unpickler(file, path, records).load()
    except ArchiveError:
        raise
    except OSError as error:
        raise ArchiveError(f"{path} can't be loaded: {error.strerror or error}") from error
    except Exception as error:  # whatever bytes that are no pickle lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArchiveError(f"{path} can't be loaded: it is no whole checkpoint of torch ({reason})") from error
    if not isinstance(content, dict):
        raise ArchiveError(f"{path} can't be loaded: it holds a {type(content).__name__}, and a checkpoint is a dict")
    return content


class _Unpickler(pickle._Unpickler):  # of Python, whose memo is a dict: an index in a file allocates nothing
    """Reads plain values, and tensors as `Stored`; whatever else a file names is neither imported nor called.

    Args:
        file: The pickle.
        path: Path of the archive.
        records: The records of the archive, by name.
    """

    def __init__(self, file: IO[bytes], path: str | Path, records: Mapping[str, zipfile.ZipInfo]) -> None:
        super().__init__(file)
        self._path, self._records = path, records

    def find_class(self, module: str, name: str) -> Any:
        """What builds tensors and containers, or what makes an `Unknown`."""
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _STORAGES[name]
        found = getattr(torch, name, None) if module == "torch" and name.isidentifier() else None
        if isinstance(found, torch.dtype):
            return found
        makers: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": collections.OrderedDict,
            "collections.defaultdict": _mapping,
            "torch.Size": _size,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._retyped,
            "torch._utils._rebuild_parameter": _first,
        }
        return makers.get(f"{module}.{name}") or type("Unknown", (Unknown,), {"of": f"{module}.{name}"})

    def persistent_load(self, pid: Any) -> _Record:
        """The numbers behind a tensor, as the archive's list of records describes them."""
        kind, dtype, key, _, count = pid
        record = self._records.get(f"data/{key}")
        if kind != "storage" or not isinstance(dtype, torch.dtype) or record is None:
            raise pickle.UnpicklingError(f"it has no numbers of the name {key!r}")
        if type(count) is not int or record.file_size != count * dtype.itemsize:
            raise pickle.UnpicklingError(f"data/{key} has {record.file_size} bytes, not {count} numbers of {dtype}")
        return _Record(record, dtype)

    def _tensor(self, record: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
        numbers = (offset, *size, *stride)
        if not isinstance(record, _Record) or len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
            raise pickle.UnpicklingError("a tensor is described by what are no sizes")
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
        if math.prod(size) and last >= record.info.file_size // record.dtype.itemsize:
            raise pickle.UnpicklingError(f"a tensor {tuple(size)} reaches beyond its numbers")
        read = partial(_of_checkpoint, self._path, record, tuple(size), tuple(stride), offset)
        return Stored(tuple(size), record.dtype, read)

    def _retyped(self, record: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Stored:
        if not isinstance(record, _Record) or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError("a tensor is described by what is no type")
        return self._tensor(_Record(record.info, dtype), offset, size, stride)


@dataclass(frozen=True)
class _Record:
    info: zipfile.ZipInfo
    dtype: torch.dtype


def _of_checkpoint(path: str | Path, record: _Record, size: Size, stride: Size, offset: int) -> Tensor:
    if not math.prod(size):
        return torch.empty(size, dtype=record.dtype)
    info = record.info
    with open(path, "rb") as file:  # not through the archive, whose list of records would be read anew for each
        file.seek(info.header_offset)
        lengths = struct.unpack("<HH", file.read(30)[26:].ljust(4, b"\0"))  # of the name and of what pads the header
        file.seek(sum(lengths), os.SEEK_CUR)
        content = bytearray(file.read(info.file_size))
    if len(content) != info.file_size or zlib.crc32(content) != info.CRC:
        raise ArchiveError(f"{path} can't be loaded: {info.filename} was changed since it was saved (CRC)")
    return torch.frombuffer(content, dtype=record.dtype).as_strided(size, stride, offset)


def _mapping(*_: Any) -> dict[Any, Any]:
    return {}


def _size(sizes: Iterable[Any] = ()) -> Size:
    return tuple(sizes)


def _first(tensor: Any, *_: Any) -> Any:
    return tensor
