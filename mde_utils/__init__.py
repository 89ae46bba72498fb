"""What two notebooks share: data, models, selectivity, dissection, training.

The names below are imported when they are first used, so that `import mde_utils` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "load_dataset": "data",
    "build_model": "models",
    "adapt": "models",
    "load_weights": "checkpoints",
    "save_weights": "checkpoints",
    "tap": "activations",
    "edit": "activations",
    "DepthBins": "depth_bins",
    "SelectivityLoss": "selectivity",
    "assigned_bins": "selectivity",
    "depth_selectivity": "selectivity",
    "pool_by_bin": "selectivity",
    "Dissection": "dissection",
    "dissect": "dissection",
    "ablate": "edits",
    "correct": "edits",
    "ablation_curve": "interventions",
    "correction_effects": "interventions",
    "scale": "edits",
    "unit_effects": "interventions",
    "Explorer": "views.explorer",
    "fgsm": "attacks",
    "pgd": "attacks",
    "trace_errors": "attacks",
    "repair": "attacks",
    "random_repair": "attacks",
    "compute_metrics": "evaluation",
    "evaluate": "evaluation",
    "predict": "passes",
    "explain": "views.explain",
    "explain_folder": "views.explain",
    "export_onnx": "views.export",
    "TrainConfig": "training",
    "fit": "training",
    "launch": "training",
    "train_runs": "training",
    "about": "environment",
    "check_environment": "checkup",
    "amp_dtype": "environment",
    "pick_device": "environment",
    "resolve_profile": "environment",
    "seed_everything": "environment",
}
_VIEWS = ("plots", "tables", "widgets")
__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name in _VIEWS:
        value = import_module(f"{__name__}.views.{name}")
    elif name in _HOME:
        value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
