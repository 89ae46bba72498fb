"""Pictures. Every function draws one figure and returns it; none reads or changes anything else.

Depth is drawn in metres on one map (viridis: dark = near), responses on another (magma), both
perceptually uniform; two networks are told apart by colours that all eyes can tell apart.
"""

from .attacks import plot_attack, plot_blame, plot_repairs, plot_transport
from .completion import plot_completion, plot_sparse_point
from .dissection import (
    plot_selectivity,
    plot_tuning,
    plot_unit_maps,
    plot_unit_pairs,
    plot_units,
)
from .explorer import plot_edit, plot_explanation, plot_unit
from .interventions import (
    plot_ablation,
    plot_areas,
    plot_corrected,
    plot_correction,
    plot_effects,
    plot_matches,
)
from .pictures import (
    plot_depth_histogram,
    plot_items,
    plot_predictions,
    plot_projection,
    show_depth,
    show_image,
)
from .point_cloud import plot_point_cloud
from .stereo import plot_disparities, plot_pair
from .style import CHANGE, DEPTH, ERROR, PALETTE, RESPONSE, colours
from .training import plot_published, plot_tradeoff, plot_training

__all__ = [
    "CHANGE",
    "DEPTH",
    "ERROR",
    "PALETTE",
    "RESPONSE",
    "colours",
    "plot_ablation",
    "plot_areas",
    "plot_attack",
    "plot_blame",
    "plot_completion",
    "plot_corrected",
    "plot_correction",
    "plot_depth_histogram",
    "plot_disparities",
    "plot_edit",
    "plot_effects",
    "plot_explanation",
    "plot_items",
    "plot_matches",
    "plot_pair",
    "plot_point_cloud",
    "plot_predictions",
    "plot_projection",
    "plot_published",
    "plot_repairs",
    "plot_selectivity",
    "plot_sparse_point",
    "plot_tradeoff",
    "plot_training",
    "plot_transport",
    "plot_tuning",
    "plot_unit",
    "plot_unit_maps",
    "plot_unit_pairs",
    "plot_units",
    "show_depth",
    "show_image",
]
