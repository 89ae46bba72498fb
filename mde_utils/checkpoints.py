"""Read and write weights: the suite's own files (safetensors) and the originals' (torch pickles).

Nothing in a checkpoint is ever executed: pickles are read with `weights_only=True`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import urlparse

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .files import atomic, download

# What training scripts wrap a state dict in, and what wrappers of modules prepend to its keys.
WRAPPERS = ("model_state_dict", "state_dict", "model")
PARTS = ("encoder", "depth_decoder")
PREFIXES = ("module.", "_orig_mod.")
# What a pickle names to make a NumPy scalar, NumPy 1's and 2's way.
NUMPY_SCALAR = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")

LISTED = 5  # keys of each kind in a report

Shape = tuple[int, ...]


# ---------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class LoadReport:
    """How the keys of a checkpoint met those of a model.

    Attributes:
        loaded: number of tensors taken.
        missing: (key, shape) that the model has and the checkpoint lacks.
        unexpected: (key, shape) that the checkpoint has and the model lacks.
        mismatched: (key, shape in the checkpoint, shape in the model).
        ignored: keys known to be dead in this model's published checkpoints.
    """

    loaded: int
    missing: tuple[tuple[str, Shape], ...] = ()
    unexpected: tuple[tuple[str, Shape], ...] = ()
    mismatched: tuple[tuple[str, Shape, Shape], ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Every key met its like."""
        return not (self.missing or self.unexpected or self.mismatched)

    def __str__(self) -> str:
        found = {
            "missing": [f"{key} {list(shape)}" for key, shape in self.missing],
            "unexpected": [f"{key} {list(shape)}" for key, shape in self.unexpected],
            "of another shape": [
                f"{key} {list(given)}, model {list(own)}" for key, given, own in self.mismatched
            ],
            "ignored": list(self.ignored),
        }
        lines = [f"{self.loaded} tensors fit"]
        for title, items in found.items():
            if items:
                rest = [f"    … and {len(items) - LISTED} more"] if len(items) > LISTED else []
                listed = (f"    {item}" for item in items[:LISTED])
                lines += [f"  {len(items)} {title}:", *listed, *rest]
        return "\n".join(lines)


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, strict: bool = True
) -> LoadReport:
    """Fill `model` from a checkpoint.

    Accepts safetensors and torch files, the wrappers and prefixes that the originals use, tensors
    saved on a GPU, keys that the model declares dead, NumPy scalars beside the weights, and old
    files without `num_batches_tracked`. A model that cannot be filled is left as it was.

    Args:
        model: any module.
        source: path, http(s) URL, or a state dict.
        strict: raise a `ValueError` with keys and shapes unless every key meets its like; else
            load those that do and report.
    """
    own = model.state_dict()
    name = getattr(model, "name", type(model).__name__)
    if isinstance(source, Mapping):
        where, raw, metadata = "the given state dict", source, {}
    else:
        if urlparse(str(source)).scheme in ("http", "https"):
            source = fetch(Published(str(source)))
        path = Path(source)
        where, raw, metadata = str(path), _read(path), read_metadata(path)
    given = _clean(_unwrap(raw, where), where, own, getattr(model, "renamed_keys", {}))

    dead = tuple(getattr(model, "dead_keys", ()))
    ignored = tuple(key for key in given if key not in own and key.startswith(dead)) if dead else ()
    fitting, mismatched = {}, []
    for key in own.keys() & given.keys():
        if given[key].shape == own[key].shape:
            fitting[key] = given[key]
        else:
            mismatched.append((key, tuple(given[key].shape), tuple(own[key].shape)))
    report = LoadReport(
        loaded=len(fitting),
        missing=tuple(
            (key, tuple(value.shape))
            for key, value in own.items()
            # Files from before torch 0.4.1 have no counter; batch normalisation does without.
            if key not in given and not key.endswith("num_batches_tracked")
        ),
        unexpected=tuple(
            (key, tuple(value.shape))
            for key, value in given.items()
            if key not in own and key not in ignored
        ),
        mismatched=tuple(sorted(mismatched)),
        ignored=ignored,
    )
    if (strict and not report.ok) or not fitting:
        made_by = f" (weights of {metadata['model']})" if metadata.get("model") else ""
        raise ValueError(
            f"{where}{made_by} does not fit {name}, which is left as it was: {report}\n"
            "Build the model that the weights belong to"
            + (", or pass strict=False to load what fits." if fitting else ".")
        )
    options, made_with = getattr(model, "options", {}), metadata.get("options") or {}
    for key in options.keys() & made_with.keys():
        if strict and options[key] != made_with[key]:
            raise ValueError(
                f"{where} was made with {key}={made_with[key]!r}, {name} with "
                f"{key}={options[key]!r}: its depth would be wrong. "
                f"Use build_model({name!r}, {key}={made_with[key]!r})."
            )
    model.load_state_dict(fitting, strict=False)
    return report


class Unread:
    """Stands where a file has a NumPy scalar (the metrics of an epoch): no weight is one, so none
    is made, and NumPy is not asked to."""

    def __init__(self, *args):
        pass

    def __setstate__(self, state):
        pass


def _read(path: Path) -> Mapping:
    """The object in a file, tensors on the CPU; refuses everything that is not plain data."""
    kind = _kind(path)
    try:
        if kind == "safetensors":
            return load_file(path, device="cpu")
        with torch.serialization.safe_globals([(Unread, name) for name in NUMPY_SCALAR]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported" in str(error) or "weights_only" in str(error).lower():
            raise ValueError(
                f"{path} holds a pickled object beside tensors, and is refused: opening it could "
                "execute code. Nothing was executed. Ask its author for a plain state dict or a "
                f"safetensors file. ({str(error).splitlines()[0][:200]})"
            ) from None
        raise ValueError(f"{path} is not a checkpoint, or is damaged: {error}") from None
    except (OSError, MemoryError):  # says nothing against the file
        raise
    except Exception as error:  # of a damaged file torch, zip and pickle raise what they will
        first = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise ValueError(
            f"{path} ({path.stat().st_size:,} bytes) is damaged or truncated: {first}. "
            "Download or save it again."
        ) from None


def _kind(path: Path) -> str:
    """Tell the container by its first bytes; the file's name says nothing reliable."""
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder. Pass the checkpoint file in it.")
    if not path.is_file():
        if not path.parent.is_dir():
            raise FileNotFoundError(f"No checkpoint {path}: there is no folder {path.parent}.")
        near = sorted(f.name for f in path.parent.iterdir() if f.is_file())[:8]
        raise FileNotFoundError(
            f"No checkpoint {path}. Files in its folder: {', '.join(near) or 'none'}."
        )
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{":
        return "safetensors"
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "torch"
    raise ValueError(
        f"{path} ({path.stat().st_size:,} bytes) is not a checkpoint: it starts like neither a "
        "safetensors file nor one of torch.save."
    )


def _unwrap(content, where: str) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    while isinstance(content, Mapping):
        inner = next((k for k in WRAPPERS if isinstance(content.get(k), Mapping)), None)
        if inner:
            content = content[inner]
        elif all(isinstance(content.get(part), Mapping) for part in PARTS):
            content = {f"{p}.{key}": value for p in PARTS for key, value in content[p].items()}
        else:
            break
    tensors = {}
    if isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, Tensor)}
    if not tensors:
        keys = f" with the keys {list(content)[:8]}" if isinstance(content, Mapping) else ""
        raise ValueError(
            f"{where} holds no state dict, but a {type(content).__name__}{keys}. Known wrappers: "
            f"{', '.join(WRAPPERS)}, {' + '.join(PARTS)}."
        )
    return tensors


def _clean(
    given: Mapping[str, Tensor],
    where: str,
    own: Container[str] = (),
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Tensor]:
    """Drop the prefixes of DataParallel and torch.compile, and replace what the model declares
    renamed, unless the model's keys have them."""
    cleaned, former = {}, {}
    for key, value in given.items():
        name = key
        while name not in own and (prefix := next(filter(name.startswith, PREFIXES), None)):
            name = name.removeprefix(prefix)
        if name not in own:
            for old, new in renamed.items():
                name = name.replace(old, new)
        if name in cleaned:
            raise ValueError(
                f"{where} holds {former[name]!r} and {key!r}, which are both {name!r} here. Remove "
                "the one that is not wanted and pass the state dict."
            )
        cleaned[name], former[name] = value, key
    return cleaned


# ---------------------------------------------------------------------------- writing


def save_weights(model: nn.Module, path: str | Path, *, metadata: dict | None = None) -> Path:
    """Write a model's weights as safetensors: whole or not at all.

    Args:
        model: any module; wrappers (DataParallel, torch.compile) leave no trace in the keys.
        path: a `.safetensors` file; its folder is made.
        metadata: anything JSON can hold, beside the model's name and options.
    """
    own = {"model": getattr(model, "name", type(model).__name__)}
    if getattr(model, "options", None):
        own["options"] = model.options
    header = {"format": "pt"}  # what other readers of safetensors look for
    for key, value in {**own, **(metadata or {})}.items():
        try:
            header[str(key)] = json.dumps(value)
        except TypeError as error:
            raise TypeError(f"metadata[{key!r}] cannot be written as JSON: {error}.") from None
    tensors = {
        key: value.detach().to("cpu").clone(memory_format=torch.contiguous_format)
        for key, value in _clean(model.state_dict(), "the model").items()
    }
    return write_safetensors(path, tensors, header)


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], header: dict[str, str]
) -> Path:
    """Write tensors and a header of strings: whole or not at all."""
    with atomic(path) as temporary:
        save_file(dict(tensors), temporary, metadata=header)
    return Path(path)


def read_metadata(path: str | Path) -> dict:
    """What `save_weights` wrote beside the weights; {} for files of other origin."""
    path = Path(path)
    if _kind(path) != "safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or truncated: {error}.") from None
    values = {}
    for key, value in header.items():
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:  # another program's header holds plain strings
            values[key] = value
    values.pop("format", None)
    return values


# ---------------------------------------------------------------------------- downloading


class Published(NamedTuple):
    """A file on the web."""

    url: str
    sha256: str | None = None
    filename: str | None = None


def fetch(file: Published, *, folder: str | Path | None = None) -> Path:
    """Download once into the cache, and check."""
    if folder is None:
        from .data.cache import cache_root

        folder = cache_root() / "weights"
    # Two addresses may end alike, so a file without a name of ours carries the address's digest.
    digest = hashlib.sha256(file.url.encode()).hexdigest()[:8]
    path = Path(folder) / (file.filename or f"{digest}_{Path(urlparse(file.url).path).name}")
    if not path.is_file():
        try:
            with atomic(path) as temporary, open(temporary, "wb") as content:
                download(file.url, content, limit=2**32, seconds=7200)
        except ConnectionError as error:
            raise FileNotFoundError(
                f"{error} Without network: download it elsewhere and put it at {path}, or pass its "
                "path as weights=."
            ) from None
    if file.sha256 is not None:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != file.sha256:
            path.unlink()
            raise ValueError(
                f"{path}, from {file.url}, has SHA-256 {digest}, expected {file.sha256}. It was "
                "deleted. Try again; if that repeats, the published file has changed."
            )
    return path
