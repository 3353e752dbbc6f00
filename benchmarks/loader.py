"""What our loader adds to decoding and augmenting: images per second of both, on the same JPEGs.

    python benchmarks/loader.py [--num-workers 0,1,2] [--augments crop,three_augment] [--repetitions 9] [--output FILE]

bare     N processes call the same decode and transform in a plain loop, each on its share of the images; with N = 0
         this process does. The pixels are thrown away.
loader   `load_batches` with N processes: batches on the device, normalised, as the training loop gets them.

"bytes" are both without normalisation, which is left to a GPU where there is one. Rates are steady ones: starting
processes is not in them, nor is the first batch of each. The candidates take turns; a ratio is of neighbours. The
pictures are 500 x 375 px crops of the two photographs that come with scikit-learn, as JPEGs (quality 90). The aim: the
loader reaches 95 % of the bare rate.
"""

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

from common import begin, finish, numbers, options_parser, words
from patchscale.config import RunConfig, build_config
from patchscale.data.datasets import TrainSplit, load_splits
from patchscale.measurements.paired import spread
from patchscale.training.batches import Batch, host_batches, load_batches
from patchscale.training.order import TrainingOrder

TARGET = 0.95
WIDTH, HEIGHT, QUALITY, CLASSES = 500, 375, 90, 10


def write_pictures(root: Path, count: int) -> None:
    """`count` different JPEGs in folders of ten classes."""
    photos = load_sample_images().images
    generator = np.random.default_rng(0)
    for number in range(count):
        photo = photos[number % len(photos)]
        top, left = (int(generator.integers(n - m + 1)) for n, m in zip(photo.shape, (HEIGHT, WIDTH), strict=False))
        pixels = photo[top : top + HEIGHT, left : left + WIDTH]
        folder = root / str(number % CLASSES)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :: 1 - 2 * int(generator.integers(2))]).save(
            folder / f"{number:05d}.jpg", quality=QUALITY
        )


def bare_rate(dataset: TrainSplit, keys: list[tuple[int, int]], num_workers: int, *, normalise: bool) -> float:
    """Images per second of decoding and transforming `keys`, and nothing else."""
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(num_workers + 1)

    def work(keys: list[tuple[int, int]]) -> None:
        torch.set_num_threads(1)
        if num_workers:
            start.wait()
        for key in keys:
            dataset[key] if normalise else dataset.item(key)

    processes = [fork.Process(target=work, args=(keys[share::num_workers],)) for share in range(num_workers)]
    for process in processes:
        process.start()
    if num_workers:
        start.wait()
    started = time.perf_counter()
    if not num_workers:
        work(keys)
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a bare process ended with {process.exitcode}")
    return len(keys) / (time.perf_counter() - started)


def loader_rate(batches: Iterator[Batch], num_workers: int, *, dtype: torch.dtype) -> float:
    """Images per second from the first round of batches, one of each process, to the last."""
    started, images_seen = time.perf_counter(), 0
    for number, (images, _) in enumerate(batches, start=1):
        assert images.dtype == dtype
        if number <= num_workers:
            started = time.perf_counter()
        else:
            images_seen += len(images)
    return images_seen / (time.perf_counter() - started)


def measure(config: RunConfig, num_workers: int, options: Any, device: torch.device) -> dict[str, Any]:
    """One row: images per second of both, and their ratio."""
    dataset = load_splits(config).train
    batch_size = config.training.batch_size
    steps = range(options.images // batch_size)
    order = TrainingOrder(0, len(dataset), batch_size)
    keys = [key for step in steps for key in order(step)]

    candidates: dict[str, Callable[[], float]] = {
        "bare": lambda: bare_rate(dataset, keys, num_workers, normalise=True),
        "loader": lambda: loader_rate(
            load_batches(dataset, order, steps, num_workers=num_workers, device=device),
            num_workers,
            dtype=torch.float32,
        ),
        "bare, bytes": lambda: bare_rate(dataset, keys, num_workers, normalise=False),
        "loader, bytes": lambda: loader_rate(
            host_batches(dataset, order, steps, num_workers=num_workers), num_workers, dtype=torch.uint8
        ),
    }
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    for repetition in range(options.warm_up + options.repetitions):
        for name, rate in candidates.items():
            images_per_s = rate()
            if repetition >= options.warm_up:
                measured[name].append(images_per_s)
    rates = {name: spread(values).median for name, values in measured.items()}
    ratios = {}
    for ending in ("", ", bytes"):
        pairs = zip(measured[f"loader{ending}"], measured[f"bare{ending}"], strict=True)
        ratio = spread([ours / theirs for ours, theirs in pairs])
        ratios[f"loader{ending} / bare{ending}"] = numbers(ratio)
        print(
            f"{config.data.augment}, {num_workers} workers{ending}: bare {rates[f'bare{ending}']:.0f} images/s, loader "
            f"{rates[f'loader{ending}']:.0f}; ratio of rates {words(ratio, 4)}"
        )
    return {
        "augment": config.data.augment,
        "num_workers": num_workers,
        "images": len(keys),
        "batch_size": batch_size,
        "images_per_s": {name: numbers(spread(values)) for name, values in measured.items()},
        "rate_ratio": ratios,
        "target": TARGET,
        "target_met": all(ratio["median"] >= TARGET for ratio in ratios.values()),
    }


def main() -> None:
    """Write the pictures, measure, print, write."""
    parser = options_parser(__doc__, repetitions=9, warm_up=1)
    parser.add_argument("--num-workers", default="0,1,2")
    parser.add_argument("--augments", default="crop,three_augment")
    parser.add_argument("--pictures", type=int, default=2000, help="different JPEGs")
    parser.add_argument("--images", type=int, default=1024, help="images of one timing")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--img-size", type=int, default=224)
    options = parser.parse_args()
    device, setting = begin(options)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder), options.pictures)
        for augment in options.augments.split(","):
            config = build_config(
                {
                    "model": {"name": "vit_tiny", "patch_size": 16, "img_size": options.img_size},
                    "data": {"name": "image_folder", "root": folder, "augment": augment},
                    "training": {"batch_size": options.batch_size},
                }
            )
            rows += [measure(config, int(workers), options, device) for workers in options.num_workers.split(",")]
    finish(options, setting, rows=rows)


if __name__ == "__main__":
    main()
