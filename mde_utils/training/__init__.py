"""Train a depth network, with or without the selectivity loss.

    loss = loss_scale · depth_loss + imde_alpha · selectivity   (You et al. 2021, equations 4 and 5)

The names below are imported when they are first used: to read a config takes no network.
"""

from importlib import import_module

_HOME = {
    "fit": "loop",
    "History": "loop",
    "launch": "launcher",
    "train_runs": "several",
    "TrainConfig": "config",
    "LOSSES": "config",
    "SCHEDULES": "config",
    "Recipe": "recipes",
    "RECIPES": "recipes",
}
__all__ = [*_HOME]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
