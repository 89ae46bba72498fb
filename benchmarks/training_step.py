"""Claim: a training step of METER-XXS or MFF with the selectivity loss on two layers, and with all
that is logged, costs at most 1.05 times a step without either."""

from contextlib import nullcontext

import torch
from _common import paired_times, write_result

from mde_utils.activations import tap
from mde_utils.environment import keep_freed_memory
from mde_utils.models import build_model
from mde_utils.training import TrainConfig
from mde_utils.training.log import Tally
from mde_utils.training.loop import PROBE_EVERY
from mde_utils.training.step import Step

CASES = [  # model, layers, depth loss, batch, image, repeats
    ("meter_xxs", ("dec_3", "enc_4"), "balanced", 16, (192, 256), 31),
    ("meter_xxs", ("dec_3", "enc_4"), "balanced", 64, (192, 256), 11),
    ("mff_resnet18", ("D", "MFF"), "mff", 8, (228, 304), 7),
]


def stepper(name, layers, depth_loss, batch, position):
    """One step of `fit` as it is, at a position of the epoch where it measures the gradients'
    ratio (0) or not (1)."""
    torch.manual_seed(0)
    model = build_model(name)
    config = TrainConfig(
        model=name,
        neuron_selective=bool(layers),
        cfg_layers=layers,
        depth_loss=depth_loss,
        batch_size=1,
    )
    keep_freed_memory()
    model = model.to(memory_format=torch.channels_last).train()
    step, tally = Step(model, config, model.depth_range, torch.device("cpu")), Tally()

    def run():
        with tap(model, layers, detach=False) if layers else nullcontext({}) as acts:
            probe = bool(layers) and position % PROBE_EVERY == 0
            losses = step(batch, acts, rate=1e-4, alpha=config.imde_alpha, probe=probe)
            tally.add_step(losses, len(batch["image"]))

    return run


def main():
    rows = []
    for name, layers, depth_loss, batch_size, size, repeats in CASES:
        torch.manual_seed(0)
        batch = {
            "image": torch.rand(batch_size, 3, *size),
            "depth": torch.rand(batch_size, 1, *size) * 9.5 + 0.4,
        }
        plain = stepper(name, (), depth_loss, batch, 1)
        usual = stepper(name, layers, depth_loss, batch, 1)
        selective, alone, ratio = paired_times(usual, plain, repeats=repeats)
        usual = stepper(name, layers, depth_loss, batch, 0)
        probing, _, probe = paired_times(usual, plain, repeats=repeats // 2)
        rows.append(
            {
                "model": name,
                "layers": layers,
                "batch_size": batch_size,
                "image": size,
                "plain_ms": 1e3 * alone,
                "selective_ms": 1e3 * selective,
                "probing_ms": 1e3 * probing,
                "ratio": (ratio * (PROBE_EVERY - 1) + probe) / PROBE_EVERY,
                "images_per_s": batch_size / selective,
            }
        )
    table = "\n".join(
        f"| {r['model']} at {r['image'][0]}×{r['image'][1]}, {' and '.join(r['layers'])} "
        f"| {r['batch_size']} | {r['plain_ms']:.0f} ms | {r['selective_ms']:.0f} ms "
        f"| {r['probing_ms']:.0f} ms | **{r['ratio']:.3f}** | {r['images_per_s']:.3g} |"
        for r in rows
    )
    markdown = (
        "# A training step with and without the selectivity loss\n\nThe network's own depth loss, "
        "and SelectivityLoss on two layers; the steps of `fit`: forward, backward, AdamW and the "
        f"log. Every {PROBE_EVERY}th step also measures the ratio of the two gradients; the ratio "
        "of times counts it with that share. The two take turns; the median over pairs.\n\n"
        "| network, layers | batch | without | with | measuring | ratio | images/s |\n"
        "|---|---|---|---|---|---|---|\n" + table
    )
    write_result("training_step", {"rows": rows}, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
