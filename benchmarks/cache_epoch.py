"""An epoch of NYU from the memory-mapped cache against decoding its files at every access.

Both sides are a DataLoader in one process (num_workers=0), shuffled, over the 599 real training
frames, and deliver collated float32 batches. The decoding side does per item what the METER
notebook does: JPEG 640x480 → 192x256 bilinear → tensor / 255 → ImageNet normalisation; depth PNG
→ 48x64 nearest → tensor. The cached side delivers the image at 192x256 and depth at 192x256 in
metres with intrinsics, focal length and name; normalisation belongs to the model there. Files and
cache lie in the operating system's page cache on both sides, so what is measured is the work, and
torch has one thread, as in a worker.

    python benchmarks/cache_epoch.py
"""

import os
import tempfile
import time

from _common import machine, median, ratio, real_data, write_result

SIZE, REPEATS, BATCHES = (192, 256), 5, (16, 32, 64)


def main() -> None:
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision.transforms import v2

    from mde_utils.data import collate
    from mde_utils.data.nyu import NYU

    class Decoded(Dataset):
        """The METER notebook's way, over the same rows."""

        image = v2.Compose(
            [
                v2.Resize(SIZE, interpolation=v2.InterpolationMode.BILINEAR),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
            ]
        )
        depth = v2.Compose(
            [
                v2.Resize((48, 64), interpolation=v2.InterpolationMode.NEAREST),
                v2.PILToTensor(),
                v2.ToDtype(torch.float32),
            ]
        )

        def __init__(self, files):
            self.files = files

        def __len__(self):
            return len(self.files)

        def __getitem__(self, index):
            image, depth = self.files[index]
            return self.image(Image.open(image)), self.depth(Image.open(depth))

    def epoch(dataset, batch, **options) -> float:
        loader = DataLoader(dataset, batch_size=batch, shuffle=True, **options)
        start = time.perf_counter()
        count = sum(1 for _ in loader)
        assert count == -(-len(dataset) // batch)
        return time.perf_counter() - start

    torch.manual_seed(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MDE_CACHE"] = folder
        start = time.perf_counter()
        cached = NYU("train", root=real_data() / "nyu", size=SIZE)
        build = time.perf_counter() - start
        megabytes = sum(f.stat().st_size for f in cached.cache_folder.iterdir()) / 1e6
        decoded = Decoded(cached.files)
        sides = {
            "decode": lambda batch: epoch(decoded, batch),
            "cache": lambda batch: epoch(cached, batch, collate_fn=collate),
            "cache_default_collate": lambda batch: epoch(cached, batch),
        }
        rows = []
        for batch in BATCHES:
            seconds = {name: [] for name in sides}
            for run in sides.values():
                run(batch)  # warm
            for _ in range(REPEATS):  # in turns, so that a busy machine hurts both
                for name, run in sides.items():
                    seconds[name].append(run(batch))
            row = {"batch": batch} | {name: median(times) for name, times in seconds.items()}
            row["times_faster"] = ratio(row["decode"], row["cache"])
            row["times_faster_default_collate"] = ratio(row["decode"], row["cache_default_collate"])
            rows.append(row)

    here = machine()
    result = {
        "machine": here,
        "frames": len(cached),
        "size": SIZE,
        "repeats": REPEATS,
        "build_seconds": build,
        "cache_megabytes": megabytes,
        "epochs": rows,
    }
    lines = [
        "# An epoch from the cache",
        "",
        f"{len(cached)} NYU training frames, 192x256, DataLoader with num_workers=0, shuffled, "
        f"one thread, median of {REPEATS} epochs in turns; {here['cpu']}, {here['cores']} cores, "
        f"torch {here['versions']['torch']}. Decoding is the METER notebook's way (PIL, per item). "
        "The cache is read with `collate_fn=collate`; the last two columns take torch's own "
        "collate, which copies the batch once more.",
        "",
        f"Building the cache: {build:.1f} s, {megabytes:.0f} MB.",
        "",
        "| batch | decode, s | cache, s | times faster | default collate, s | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['batch']} | {row['decode']:.2f} | {row['cache']:.3f} "
            f"| {row['times_faster']:.0f} | {row['cache_default_collate']:.3f} "
            f"| {row['times_faster_default_collate']:.0f} |"
        )
    print("\n".join(lines))
    write_result("cache_epoch", result, "\n".join(lines))


if __name__ == "__main__":
    main()
