"""What decides a training run: `TrainConfig`."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path

from mde_utils.files import atomic
from mde_utils.losses import balanced_loss, l1_loss, mff_loss, silog_loss, stereo_loss_terms
from mde_utils.selectivity import DEFINITIONS, METHODS
from mde_utils.training.recipes import RECIPES

#: Functions of (prediction, target) in metres, by the name that a config uses; that of "stereo"
#: takes disparities and a batch of pairs, and needs no depth.
LOSSES = {
    "balanced": balanced_loss,
    "mff": mff_loss,
    "silog": silog_loss,
    "silog_kitti": partial(silog_loss, min_depth=1.0),
    "l1": l1_loss,
    "stereo": stereo_loss_terms,
}
#: What ``stereo`` may switch, as published: arguments of ``stereo_loss_terms``, and ``data_graft``.
STEREO = {
    "hints": True,
    "automask": True,
    "scales": None,
    "distillation": 1.0,
    "smooth": 0.0,
    "graft": True,
}
#: The depth by which units become selective.
IMDE_DEPTHS = ("truth", "own")
#: Adam adds the weight decay to the gradient, as SGD does; AdamW takes it off the weights.
OPTIMIZERS = ("adamw", "adam", "sgd")
SCHEDULES = ("constant", "cosine", "step", "polynomial", "plateau")
#: What "best" may mean, and whether more of it is better: depth alone, never the selectivity term.
BEST_BY = {"d1": True, "rms": False, "rel": False, "photometric": False}
#: How a run is carried out, not what it computes: may differ when a run goes on.
HANDLING = ("run_dir", "resume_from", "max_hours", "save_minutes", "num_workers")
#: Younger than runs that exist: at their defaults they do not count, and those keep their names.
YOUNGER = ("stereo", "imde_depth")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run. The defaults are the METER notebook's recipe.

    Attributes:
        model, model_options, weights: arguments of ``build_model``; used by the command line, and
            recorded by ``fit``.
        dataset, data_options: arguments of ``load_dataset``; ``data_options`` may hold ``train``
            and ``val`` for what differs between the splits.
        neuron_selective: add the selectivity term to the loss. It is measured either way.
        imde_alpha: weight of the selectivity; negative trains for it.
        cfg_layers: layers that are watched, and trained for selectivity.
        method: ``"assign"`` gives each unit a bin, ``"reg"`` lets it choose (direct
            regularisation).
        definition: ``"paper"`` or ``"reference"``.
        imde_warmup: epochs over which the weight grows linearly from 0 to imde_alpha; 0 = off.
        imde_coverage: weigh bins by their pixels (see ``SelectivityLoss``).
        imde_ema: carry sums and counts over batches with this decay; 0 = off (the same).
        imde_depth: the depth by which units become selective: ``"truth"``, or the network's
            ``"own"``, without gradient, so that no label is needed (``"stereo"`` alone).
        depth_loss: a key of ``LOSSES``. ``"stereo"`` learns from pairs, without ground truth.
        stereo: what differs from ``STEREO``: ``hints`` (of the items), ``automask``, ``scales``
            (None: all ten disparities; 5: the decoder's, no full-scale prediction),
            ``distillation`` and ``smooth`` (weights), ``graft`` (``data_graft`` of each batch).
        num_epochs, learning_rate, weight_decay: the optimisation.
        optimizer: ``"adamw"``; ``"adam"`` or ``"sgd"`` (Nesterov's momentum of 0.9), whose decay is
            L2 regularisation.
        decay_prefix: only parameters whose name begins so decay (``"encoder."``); "" = all.
        adam_epsilon: what Adam and AdamW add to the root of the mean square of a gradient.
        batch_size: images a step, over all processes together.
        schedule: of the learning rate: ``"constant"``; ``"cosine"`` (half a wave, never quite 0);
            ``"step"``: times ``decay_factor`` after every ``decay_every`` epochs; ``"polynomial"``:
            with power 0.9 to ``decay_factor`` of it, anew at every step; ``"plateau"``: times
            ``decay_factor`` after more than ``decay_every`` epochs without a new best by
            ``best_by``.
        best_by: the validation metric that picks ``best.safetensors``: d1, rms or rel; or
            photometric, the error of pairs, for which no depth is needed.
        seed: of weights (command line), shuffling and augmentation.
        mixed_precision: on a GPU, where it is of use: bfloat16 from compute capability 8 on, else
            float16 with a gradient scaler; losses and selectivity in float32.
        run_dir: the run's folder; None writes nothing.
        resume_from: where to look for a former output of this config (a run folder, or any folder
            above one, such as an attached input) when ``run_dir`` holds none yet.
        max_hours: stop cleanly after so long, ready to go on; 0 = no limit.
        save_minutes: time between checkpoints inside an epoch; 0 = only after whole epochs.
        num_workers: of the data loader; 0 is right for cached data. Results do not depend on it.
    """

    model: str = "meter_xxs"
    model_options: dict = field(default_factory=dict)
    weights: str | None = None
    dataset: str = "rooms"
    data_options: dict = field(default_factory=dict)
    neuron_selective: bool = False
    imde_alpha: float = -0.1
    cfg_layers: tuple[str, ...] = ("dec_3", "enc_4")
    method: str = "assign"
    definition: str = "paper"
    imde_warmup: float = 0.0
    imde_coverage: bool = False
    imde_ema: float = 0.0
    imde_depth: str = "truth"
    depth_loss: str = "balanced"
    stereo: dict = field(default_factory=dict)
    num_epochs: int = 20
    batch_size: int = 64
    optimizer: str = "adamw"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    decay_prefix: str = ""
    adam_epsilon: float = 1e-8
    schedule: str = "constant"
    decay_every: int = 20
    decay_factor: float = 0.1
    best_by: str = "d1"
    seed: int = 0
    mixed_precision: bool = True
    run_dir: str | None = None
    resume_from: str | None = None
    max_hours: float = 0.0
    save_minutes: float = 10.0
    num_workers: int = 0

    def __post_init__(self):
        layers = (self.cfg_layers,) if isinstance(self.cfg_layers, str) else self.cfg_layers
        if isinstance(layers, (list, tuple)):
            object.__setattr__(self, "cfg_layers", tuple(layers))
        for name in ("run_dir", "resume_from"):
            if isinstance(getattr(self, name), Path):
                object.__setattr__(self, name, str(getattr(self, name)))
        self._check_types()
        for name, known in (
            ("method", METHODS),
            ("definition", DEFINITIONS),
            ("depth_loss", LOSSES),
            ("imde_depth", IMDE_DEPTHS),
            ("optimizer", OPTIMIZERS),
            ("schedule", SCHEDULES),
            ("best_by", BEST_BY),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Unknown {name} {getattr(self, name)!r}. Known: {', '.join(known)}."
                )
        for name, low in _LOWEST.items():
            if getattr(self, name) < low:
                kind = "whole number" if isinstance(low, int) else "number"
                raise ValueError(
                    f"{name} must be a {kind} from {low:g} on; got {getattr(self, name)!r}."
                )
        self._check_stereo()
        if self.learning_rate <= 0 or not 0 < self.decay_factor <= 1:
            raise ValueError("learning_rate must be positive, and decay_factor in (0, 1].")
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, as NumPy's; got {self.seed}.")
        if self.imde_ema >= 1:
            raise ValueError(f"imde_ema must be from 0 (off) to below 1; got {self.imde_ema}.")
        if self.neuron_selective and not self.cfg_layers:
            raise ValueError(
                "neuron_selective is on but cfg_layers is empty: name the layers to make "
                "selective, for example ('dec_3',), or switch neuron_selective off."
            )
        if self.neuron_selective and self.imde_alpha >= 0:
            warnings.warn(
                f"imde_alpha = {self.imde_alpha} does not train for selectivity: the loss is "
                "depth_loss + imde_alpha * selectivity, so the weight should be negative.",
                stacklevel=3,
            )

    def _check_types(self) -> None:
        """Refuse values of another kind, such as "false" for False, which would pass for true."""
        for one in fields(self):
            value, (kind, allowed) = getattr(self, one.name), _KINDS[one.type]
            fits = isinstance(value, allowed)
            if isinstance(value, bool) and bool not in allowed:
                fits = False
            if fits and float in allowed:
                fits = math.isfinite(value)
            if fits and one.name == "cfg_layers":
                fits = all(isinstance(layer, str) for layer in value)
            if not fits:
                raise ValueError(
                    f"{one.name} must be {kind}; got {value!r} ({type(value).__name__})."
                )

    def _check_stereo(self) -> None:
        for key, value in self.stereo.items():
            if key not in STEREO:
                raise ValueError(f"Unknown key {key!r} in stereo. Known: {', '.join(STEREO)}.")
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if isinstance(STEREO[key], bool):
                fits, kind = isinstance(value, bool), "true or false"
            elif key == "scales":
                fits = value is None or (number and isinstance(value, int) and value >= 1)
                kind = "a whole number from 1 on, or None"
            else:
                fits, kind = number and 0 <= value < math.inf, "a number from 0 on"
            if not fits:
                raise ValueError(f"{key} in stereo must be {kind}; got {value!r}.")

    @classmethod
    def recipe(cls, name: str, **changes) -> TrainConfig:
        """A named recipe (a key of ``RECIPES``, with its source there), with changes.

        Raises:
            ValueError: unknown recipe or key.
        """
        return cls.from_dict({"recipe": name, **changes})

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """A config from plain values. The key ``recipe`` names the recipe that the others change.

        Raises:
            ValueError: an unknown key (near matches are named) or recipe, or an ill-typed value.
        """
        values = dict(values)
        name = values.pop("recipe", None)
        if name is not None:
            if not isinstance(name, str) or name not in RECIPES:
                raise ValueError(f"Unknown recipe {name!r}. Known: {', '.join(RECIPES)}.")
            settings = copy.deepcopy(RECIPES[name].settings)
            for key in settings.keys() & values.keys():  # the recipe's augmentation stays
                if isinstance(settings[key], dict) and isinstance(values[key], dict):
                    values[key] = {**settings[key], **values[key]}
            values = {**settings, **values}
        known = [f.name for f in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=2)
                raise ValueError(
                    f"Unknown key {key!r} in the config."
                    + (f" Did you mean {' or '.join(near)}?" if near else "")
                    + f" Known keys: recipe, {', '.join(known)}."
                )
        return cls(**values)

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a JSON file.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a JSON object, or as :meth:`from_dict`.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No config {path}: save one with TrainConfig(...).save(path).")
        try:
            values = json.loads(path.read_text())
        except ValueError as error:  # not JSON, or not text
            raise ValueError(f"{path} is not JSON: {error}.") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path} must hold a JSON object of settings, not {values!r:.60}.")
        try:
            return cls.from_dict(values)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> Path:
        """Write as JSON."""
        with atomic(path) as temporary:
            temporary.write_text(json.dumps(asdict(self), indent=2, default=str) + "\n")
        return Path(path)

    def identity(self) -> dict:
        """The plain values of all that decides the outcome, without :data:`HANDLING` and without
        where the data lie: an attached former output may have found them elsewhere."""
        values = self._deciding()
        return {k: v for k, v in values.items() if k not in YOUNGER or v != getattr(_PLAIN, k)}

    def _deciding(self) -> dict:
        values = {k: v for k, v in asdict(self).items() if k not in HANDLING}

        def plain(options):
            return {
                k: plain(v) if k in ("train", "val") and isinstance(v, dict) else v
                for k, v in options.items()
                if k not in ("root", "download", "cache")
            }

        values["data_options"] = plain(values["data_options"])
        return json.loads(json.dumps(values, default=str))

    def difference(self, other: TrainConfig) -> list[str]:
        """Where the outcome of the two is decided differently: ``"seed: 0, other 3"``."""
        own, theirs = self._deciding(), other._deciding()
        return [f"{k}: {own[k]!r} here, {theirs[k]!r} there" for k in own if own[k] != theirs[k]]

    def run_name(self) -> str:
        """A readable folder name that differs wherever the outcome of two configs does."""
        how = f"{self.method}{self.imde_alpha:g}" if self.neuron_selective else "baseline"
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return f"{self.model}-{self.dataset}-{how}-seed{self.seed}-{digest[:8]}"

    def rate(self, epoch: float, past: Sequence[float] = ()) -> float:
        """The learning rate of an epoch, counted from 1.

        Args:
            epoch: with the part of it that is over, which only ``"polynomial"`` looks at.
            past: the former epochs' validation metric ``best_by``, for ``"plateau"``.
        """
        if self.schedule == "polynomial":
            left = (1 - (epoch - 1) / self.num_epochs) ** 0.9
            return self.learning_rate * (self.decay_factor + (1 - self.decay_factor) * left)
        epoch = int(epoch)
        if self.schedule == "plateau":
            return self.learning_rate * self.decay_factor ** self._plateaus(past)
        if self.schedule == "cosine":
            turn = math.pi * (epoch - 1) / self.num_epochs
            return self.learning_rate * 0.5 * (1 + math.cos(turn))
        if self.schedule == "step":
            return self.learning_rate * self.decay_factor ** ((epoch - 1) // self.decay_every)
        return self.learning_rate

    def _plateaus(self, past: Sequence[float]) -> int:
        """How often more than ``decay_every`` epochs in a row were no better than the best."""
        best, waited, plateaus = None, 0, 0
        for value in past:
            if best is None or (value > best if BEST_BY[self.best_by] else value < best):
                best, waited = value, 0
            else:
                waited += 1
            if waited > self.decay_every:
                waited, plateaus = 0, plateaus + 1
        return plateaus

    def alpha(self, epochs: float) -> float:
        """The weight of the selectivity after so many epochs of training."""
        if self.imde_warmup:
            return self.imde_alpha * min(1.0, epochs / self.imde_warmup)
        return self.imde_alpha


# By annotation: what it is called, and the types that pass.
_KINDS = {
    "str": ("a string", (str,)),
    "str | None": ("a string or None", (str, type(None))),
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a finite number", (int, float)),
    "dict": ("a dictionary", (dict,)),
    "tuple[str, ...]": ("a list of layer names", (tuple,)),
}
_LOWEST = {
    "num_epochs": 1,
    "batch_size": 1,
    "decay_every": 1,
    "num_workers": 0,
    "seed": 0,
    "weight_decay": 0.0,
    "adam_epsilon": 0.0,
    "imde_warmup": 0.0,
    "imde_ema": 0.0,
    "max_hours": 0.0,
    "save_minutes": 0.0,
}
_PLAIN = TrainConfig()
