"""Claim: a training step of METER-XXS with the selectivity loss on two layers, and with all that is
logged, costs at most 1.05 times a step without either."""

import torch
from _common import paired_times, write_result

from mde_utils.activations import tap
from mde_utils.models import build_model
from mde_utils.training import PROBE_EVERY, TrainConfig, _Trainer

LAYERS = ("dec_3", "enc_4")


def stepper(layers, batch, position):
    """One step of `fit` as it is, at a position of the epoch where it measures the gradients'
    ratio (0) or not (1)."""
    torch.manual_seed(0)
    model = build_model("meter_xxs")
    item = {k: v[0] for k, v in batch.items()}
    config = TrainConfig(neuron_selective=bool(layers), cfg_layers=layers, batch_size=1)
    trainer = _Trainer(model, [item], [item], config)
    model.train()

    def run():
        if layers:
            with tap(model, layers, detach=False) as acts:
                trainer._train_on(batch, acts, position)
        else:
            trainer._train_on(batch, {}, position)

    return run


def main():
    rows = []
    for batch_size in (16, 64):
        torch.manual_seed(0)
        batch = {
            "image": torch.rand(batch_size, 3, 192, 256),
            "depth": torch.rand(batch_size, 1, 192, 256) * 9.5 + 0.4,
        }
        repeats = 31 if batch_size == 16 else 11
        plain = stepper((), batch, 1)
        selective, alone, usual = paired_times(stepper(LAYERS, batch, 1), plain, repeats=repeats)
        probing, _, probe = paired_times(stepper(LAYERS, batch, 0), plain, repeats=repeats // 2)
        ratio = (usual * (PROBE_EVERY - 1) + probe) / PROBE_EVERY
        rows.append(
            {
                "batch_size": batch_size,
                "plain_ms": 1e3 * alone,
                "selective_ms": 1e3 * selective,
                "probing_ms": 1e3 * probing,
                "ratio": ratio,
                "images_per_s": batch_size / selective,
            }
        )
    table = "\n".join(
        f"| {r['batch_size']} | {r['plain_ms']:.0f} ms | {r['selective_ms']:.0f} ms "
        f"| {r['probing_ms']:.0f} ms | **{r['ratio']:.3f}** | {r['images_per_s']:.0f} |"
        for r in rows
    )
    markdown = (
        "# A training step with and without the selectivity loss\n\nMETER-XXS at 192×256, balanced "
        f"loss, SelectivityLoss on {' and '.join(LAYERS)}; the steps of `fit`: forward, backward, "
        f"AdamW and the log. Every {PROBE_EVERY}th step also measures the ratio of the two "
        "gradients; the ratio of times counts it with that share. The two take turns; the median "
        "over pairs.\n\n"
        "| batch | without | with | measuring | ratio | images/s |\n|---|---|---|---|---|---|\n"
        + table
    )
    write_result("training_step", {"layers": LAYERS, "rows": rows}, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
