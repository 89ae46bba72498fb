"""What decides a training run: `TrainConfig`. To read one from JSON takes no network."""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Literal, get_type_hints

from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from mde_utils.files import atomic
from mde_utils.losses import balanced_loss, l1_loss, mff_loss, silog_loss, stereo_loss_terms
from mde_utils.selectivity import DEFINITIONS, METHODS
from mde_utils.training.recipes import RECIPES

#: Functions of (prediction, target) in metres, by the name that a config uses; that of "stereo"
#: takes disparities and a batch of pairs, and needs no depth. METER's own works in centimetres
#: (NYU) or decimetres (KITTI), so that SSIM's range of 1000 holds either depth.
LOSSES = {
    "balanced": balanced_loss,
    "balanced_kitti": partial(balanced_loss, units_per_metre=10.0),
    "mff": mff_loss,
    "silog": silog_loss,
    "silog_kitti": partial(silog_loss, min_depth=1.0),
    "l1": l1_loss,
    "stereo": stereo_loss_terms,
}
SCHEDULES = ("constant", "cosine", "step", "polynomial", "plateau")
#: What "best" may mean, and whether more of it is better: depth alone, never the selectivity term.
BEST_BY = {"d1": True, "rms": False, "rel": False, "photometric": False}
#: How a run is carried out, not what it computes: may differ when a run goes on.
HANDLING = ("run_dir", "resume_from", "max_hours", "save_minutes", "num_workers")
#: Options that are no more, and the value at which a file that still says them means the same.
GONE = {"imde_coverage": False, "imde_ema": 0.0}

NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Layers = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda x: (x,) if isinstance(x, str) else tuple(x) if type(x) is list else x),
]
Folder = Annotated[str | None, BeforeValidator(lambda x: str(x) if isinstance(x, Path) else x)]


class _Checked:
    """A dataclass whose values are of its annotations' types, and nothing near them: "false" for
    False would pass for true."""

    part_of = ""

    def __post_init__(self):
        for name, adapter in _adapters(type(self)).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, adapter.validate_python(value))
            except ValidationError as error:
                what = error.errors()[0]
                where = "".join(f"[{key!r}]" for key in what["loc"]) + self.part_of
                wanted = what["msg"].removeprefix("Input should be ")
                raise ValueError(
                    f"{name}{where} must be {wanted}; got {value!r:.200} ({type(value).__name__})."
                ) from None


@cache
def _adapters(cls: type) -> dict[str, TypeAdapter]:
    strict = ConfigDict(strict=True, allow_inf_nan=False)
    hints = get_type_hints(cls, include_extras=True)
    return {f.name: TypeAdapter(hints[f.name], config=strict) for f in fields(cls)}


def _make(cls: type, values: dict, what: str, also: str = ""):
    """`cls(**values)`; a key that it does not have is named, with what is near."""
    known = [f.name for f in fields(cls)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=2)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            keys = f"{also}{', '.join(known)}"
            raise ValueError(f"Unknown key {key!r} in {what}.{hint} Known keys: {keys}.")
    return cls(**values)


@dataclass(frozen=True)
class Stereo(_Checked):
    """What the stereo loss may switch, as published.

    Attributes:
        hints, automask, scales, distillation, smooth: arguments of `stereo_loss_terms`; hints are
            those of the items, and 5 scales the decoder's, without the full-scale prediction.
        graft: `data_graft` of each batch.
    """

    part_of = " in stereo"

    hints: bool = True
    automask: bool = True
    scales: Count | None = None
    distillation: NotNegative = 1.0
    smooth: NotNegative = 0.0
    graft: bool = True


@dataclass(frozen=True)
class TrainConfig(_Checked):
    """Everything that decides a run. The defaults are the METER notebook's recipe.

    Attributes:
        model, model_options, weights: arguments of `build_model`, by which `train_runs` and the
            command line make the network.
        dataset, data_options: arguments of `load_dataset`; `data_options` may hold `train` and
            `val` for what differs between the splits.
        neuron_selective: add the selectivity term to the loss. It is measured either way.
        imde_alpha: weight of the selectivity; negative trains for it.
        cfg_layers: layers that are watched, and trained for selectivity.
        method: `"assign"` gives each unit a bin, `"reg"` lets it choose (direct regularisation).
        definition: `"paper"` or `"reference"`.
        imde_warmup: epochs over which the weight grows linearly from 0 to imde_alpha; 0 = off.
        imde_depth: the depth by which units become selective: `"truth"`, or the network's `"own"`,
            without gradient, so that no label is needed (`"stereo"` alone).
        depth_loss: a key of `LOSSES`. `"stereo"` learns from pairs, without ground truth.
        stereo: what differs from the defaults of `Stereo`.
        num_epochs, learning_rate, weight_decay: the optimisation.
        optimizer: `"adamw"` takes the decay off the weights; to `"adam"` and `"sgd"` (Nesterov's
            momentum of 0.9) it is L2 regularisation.
        decay_prefix: only parameters whose name begins so decay (`"encoder."`); "" = all.
        adam_epsilon: what Adam and AdamW add to the root of the mean square of a gradient.
        batch_size: images a step, over all processes together.
        schedule: of the learning rate: `"constant"`; `"cosine"` (half a wave, never quite 0);
            `"step"`: times `decay_factor` after every `decay_every` epochs; `"polynomial"`: with
            power 0.9 to `decay_factor` of it, anew at every step; `"plateau"`: times
            `decay_factor` after more than `decay_every` epochs without a new best by `best_by`.
        best_by: the validation metric that picks `best.safetensors`: d1, rms or rel; or
            photometric, the error of pairs, for which no depth is needed.
        seed: of weights, shuffling and augmentation.
        mixed_precision: on a GPU, where it is of use: bfloat16 from compute capability 8 on, else
            float16 with a gradient scaler; losses and selectivity in float32.
        run_dir: the run's folder; None writes nothing.
        resume_from: where to look for a former output of this config (a run folder, or any folder
            above one, such as an attached input) when `run_dir` holds none yet.
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
    cfg_layers: Layers = ("dec_3", "enc_4")
    method: Literal[METHODS] = "assign"
    definition: Literal[DEFINITIONS] = "paper"
    imde_warmup: NotNegative = 0.0
    imde_depth: Literal["truth", "own"] = "truth"
    depth_loss: Literal[tuple(LOSSES)] = "balanced"
    stereo: dict = field(default_factory=dict)
    num_epochs: Count = 20
    batch_size: Count = 64
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    weight_decay: NotNegative = 1e-2
    decay_prefix: str = ""
    adam_epsilon: NotNegative = 1e-8
    schedule: Literal[SCHEDULES] = "constant"
    decay_every: Count = 20
    decay_factor: Annotated[float, Field(gt=0, le=1)] = 0.1
    best_by: Literal[tuple(BEST_BY)] = "d1"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0  # NumPy's range
    mixed_precision: bool = True
    run_dir: Folder = None
    resume_from: Folder = None
    max_hours: NotNegative = 0.0
    save_minutes: NotNegative = 10.0
    num_workers: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self):
        super().__post_init__()
        self.stereo_settings()
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

    def stereo_settings(self) -> Stereo:
        return _make(Stereo, self.stereo, "stereo")

    @classmethod
    def recipe(cls, name: str, **changes) -> TrainConfig:
        """A named recipe (a key of `RECIPES`, with its source there), with changes."""
        return cls.from_dict({"recipe": name, **changes})

    @classmethod
    def from_dict(cls, values: dict) -> TrainConfig:
        """A config from plain values. The key `recipe` names the recipe that the others change."""
        values = {k: v for k, v in values.items() if k not in GONE or v != GONE[k]}
        name = values.pop("recipe", None)
        if name is not None:
            if not isinstance(name, str) or name not in RECIPES:
                raise ValueError(f"Unknown recipe {name!r}. Known: {', '.join(RECIPES)}.")
            settings = copy.deepcopy(RECIPES[name].settings)
            for key in settings.keys() & values.keys():  # the recipe's augmentation stays
                if isinstance(settings[key], dict) and isinstance(values[key], dict):
                    values[key] = {**settings[key], **values[key]}
            values = {**settings, **values}
        return _make(cls, values, "the config", "recipe, ")

    @classmethod
    def load(cls, path: str | Path) -> TrainConfig:
        """Read a JSON file."""
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"No config {path}: save one with TrainConfig(...).save(path).")
        try:
            values = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:  # not JSON, not text, or far too deep
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

    def settings(self) -> dict:
        """The plain values of all that decides the outcome, without `HANDLING` and without where
        the data lie: an attached former output may have found them elsewhere."""
        values = {k: v for k, v in asdict(self).items() if k not in HANDLING}

        def plain(options):
            return {
                k: plain(v) if k in ("train", "val") and isinstance(v, dict) else v
                for k, v in options.items()
                if k not in ("root", "download", "cache")
            }

        values["data_options"] = plain(values["data_options"])
        return json.loads(json.dumps(values, default=str))

    def identity(self) -> dict:
        """`settings` where they are not the default: so an option that is added later changes no
        name of a run that did without it."""
        default = TrainConfig().settings()
        return {k: v for k, v in self.settings().items() if v != default[k]}

    def difference(self, other: TrainConfig) -> list[str]:
        """Where the outcome of the two is decided differently: `"seed: 0 here, 3 there"`."""
        own, theirs = self.settings(), other.settings()
        return [f"{k}: {own[k]!r} here, {theirs[k]!r} there" for k in own if own[k] != theirs[k]]

    def run_name(self) -> str:
        """A readable folder name that differs wherever the outcome of two configs does."""
        how = f"{self.method}{self.imde_alpha:g}" if self.neuron_selective else "baseline"
        digest = hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()
        return f"{self.model}-{self.dataset}-{how}-seed{self.seed}-{digest[:8]}"

    def rate(self, epoch: float, past: Sequence[float] = ()) -> float:
        """The learning rate of an epoch, counted from 1.

        Args:
            epoch: with the part of it that is over, which only `"polynomial"` looks at.
            past: the former epochs' validation metric `best_by`, for `"plateau"`.
        """
        if self.schedule == "polynomial":
            left = (1 - (epoch - 1) / self.num_epochs) ** 0.9
            return self.learning_rate * (self.decay_factor + (1 - self.decay_factor) * left)
        done = int(epoch) - 1
        if self.schedule == "plateau":
            return self.learning_rate * self.decay_factor ** self._plateaus(past)
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done / self.num_epochs))
        if self.schedule == "step":
            return self.learning_rate * self.decay_factor ** (done // self.decay_every)
        return self.learning_rate

    def _plateaus(self, past: Sequence[float]) -> int:
        """How often more than `decay_every` epochs in a row were no better than the best."""
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
