"""Claim: a training step of METER-XXS with the selectivity loss on two layers costs at most 1.05
times a step without it."""

import torch
from _common import paired_times, write_result

from mde_utils.activations import tap
from mde_utils.models import build_model
from mde_utils.training import TrainConfig, _Step

LAYERS = ("dec_3", "enc_4")


def main():
    torch.manual_seed(0)
    rows = []
    for batch_size in (16, 64):
        batch = {
            "image": torch.rand(batch_size, 3, 192, 256),
            "depth": torch.rand(batch_size, 1, 192, 256) * 9.5 + 0.4,
        }

        def stepper(layers, batch=batch):
            model = build_model("meter_xxs").to(memory_format=torch.channels_last).train()
            config = TrainConfig(neuron_selective=bool(layers), cfg_layers=layers)
            step = _Step(model, config, (0.75, 10.0), torch.device("cpu"), None)
            optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)

            def run():
                if layers:
                    with tap(model, layers, detach=False) as acts:
                        loss, _ = step(batch, acts)
                else:
                    loss, _ = step(batch, {})
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()

            return run

        repeats = 31 if batch_size == 16 else 11
        selective, plain, ratio = paired_times(stepper(LAYERS), stepper(()), repeats=repeats)
        rows.append(
            {
                "batch_size": batch_size,
                "plain_ms": 1e3 * plain,
                "selective_ms": 1e3 * selective,
                "ratio": ratio,
                "images_per_s": batch_size / selective,
            }
        )
    table = "\n".join(
        f"| {r['batch_size']} | {r['plain_ms']:.0f} ms | {r['selective_ms']:.0f} ms "
        f"| **{r['ratio']:.3f}** | {r['images_per_s']:.0f} |"
        for r in rows
    )
    markdown = (
        "# A training step with and without the selectivity loss\n\nMETER-XXS at 192×256, balanced "
        f"loss, SelectivityLoss on {' and '.join(LAYERS)}; forward, backward and AdamW. The two "
        "take turns; the ratio is the median over pairs.\n\n"
        "| batch | without | with | ratio | images/s |\n|---|---|---|---|---|\n" + table
    )
    write_result("training_step", {"layers": LAYERS, "rows": rows}, markdown)
    print(markdown)


if __name__ == "__main__":
    main()
