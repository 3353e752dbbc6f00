"""What users get wrong: every mistake ends in one clear line and exit code 2, never a traceback, nothing lost."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

TRAIN = [
    "train",
    "--model",
    "vit_test",
    "--patch-size",
    "8",
    "--img-size",
    "16",
    "--steps",
    "1",
    "training.batch_size=4",
    "execution.device=cpu",
]
FOLDER = [*TRAIN, "data.name=image_folder", "data.root=photos"]
MASKS = [*TRAIN, "task=segmentation", "data.name=mask_folder", "data.num_classes=3", "data.root=scenes"]


def write_image(path: str, size: tuple[int, int] = (16, 16), value: int = 100) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def write_mask(path: str, value: int, size: tuple[int, int] = (16, 16)) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


def write_folder_data(root: str = "photos") -> None:
    for split, count in (("train", 10), ("val", 2)):
        for label in ("cat", "dog"):
            for number in range(count):
                write_image(f"{root}/{split}/{label}/{number}.png", value=10 * number)


def write_mask_data(root: str = "scenes") -> None:
    for split, count in (("train", 10), ("val", 2)):
        for number in range(count):
            write_image(f"{root}/images/{split}/{number}.png")
            write_mask(f"{root}/masks/{split}/{number}.png", number % 3)


def write(name: str, text: str) -> None:
    Path(name).write_text(text)


STUDY = "study: s\ngrid: {model: [vit_test], patch_size: [8, 4]}\nbase: {training: {steps: 1}, model: {img_size: 16}}\n"

# name: (arguments, words the message must contain, what to prepare)
MISTAKES = {
    "unknown model": ([*TRAIN, "model.name=vit_tinny"], ["vit_tinny", "vit_tiny"], None),
    "patch does not divide": ([*TRAIN, "model.patch_size=5"], ["patch_size=5", "does not divide"], None),
    "patch of zero": ([*TRAIN, "model.patch_size=0"], ["model.patch_size", "got 0"], None),
    "unknown field": ([*TRAIN, "training.lr=0.1"], ["training.lr", "learning_rate"], None),
    "negative batch": ([*TRAIN, "training.batch_size=-4"], ["training.batch_size", "got -4"], None),
    "override without value": ([*TRAIN, "seed"], ["seed", "name=value"], None),
    "odd batch with mixup": ([*TRAIN, "training.mixup=0.8", "training.batch_size=5"], ["even batch", "5"], None),
    "label maps missing": ([*TRAIN, "task=segmentation", "data.name=mnist"], ["mnist", "scenes"], None),
    "unknown task": ([*TRAIN, "task=captioning"], ["captioning", "segmentation"], None),
    "unknown data set": ([*TRAIN, "data.name=imagenet"], ["imagenet", "image_folder"], None),
    "no GPU here": ([*TRAIN, "execution.device=cuda"], ["cuda"], None),
    "weights to start from missing": (
        [*TRAIN, "training.init_from=absent.pth"],
        ["init_from=absent.pth", "No such file", "give a file of weights"],
        None,
    ),
    "a folder that scenes do not read": ([*TRAIN, "data.root=photos"], ["data.root", "scenes", "image_folder"], None),
    "a crop that scenes do not have": ([*TRAIN, "data.eval_crop_ratio=1"], ["eval_crop_ratio", "image_folder"], None),
    "a stage without the one before": (
        ["train", "--recipe", "adventurer-tiny-stage2", "data.root=photos"],
        ["adventurer-tiny-stage2", "training.init_from=FILE"],
        None,
    ),
    "a device twice": (
        ["eval", "--checkpoint", "w.pth", "data.name=scenes", "execution.device=cpu"],
        ["execution.device=cpu", "--device"],
        None,
    ),
    "a list of names nowhere": (
        ["data", "check", "photos", "--list-bad", "nowhere/bad.txt"],
        ["--list-bad nowhere/bad.txt", "a folder that is there"],
        None,
    ),
    "config missing": (["train", "--config", "absent.yaml"], ["absent.yaml", "no such file"], None),
    "config broken": (["train", "--config", "c.yaml"], ["c.yaml", "YAML"], lambda: write("c.yaml", "a: [1")),
    "config not a mapping": (["train", "--config", "c.yaml"], ["c.yaml", "mapping"], lambda: write("c.yaml", "3")),
    "a section that is a number": ([*TRAIN, "training=5"], ["training", "settings"], None),
    "an endless training": ([*TRAIN, "training.epochs=.inf"], ["training.epochs", "finite"], None),
    "beta above one": ([*TRAIN, "training.betas=[1.5,0.9]"], ["training.betas", "less than 1"], None),
    "classes where they are known": ([*TRAIN, "data.num_classes=5"], ["data.num_classes", "mask_folder"], None),
    "runs where a file is": ([*TRAIN, "--runs-root", "c.yaml"], ["c.yaml"], lambda: write("c.yaml", "seed: 0")),
    "config and recipe": (
        ["train", "--config", "c.yaml", "--recipe", "fashion-mnist"],
        ["--config", "--recipe"],
        lambda: write("c.yaml", "seed: 0"),
    ),
    "unknown recipe": (["train", "--recipe", "fashion"], ["fashion", "fashion-mnist"], None),
    "not a run directory": (["train", "--run-dir", "."], ["not a run directory"], None),
    "folder without a root": ([*TRAIN, "data.name=image_folder"], ["data.root"], None),
    "folder missing": (FOLDER, ["photos"], None),
    "folder without images": (FOLDER, ["photos"], lambda: Path("photos").mkdir()),
    "empty class": (FOLDER, ["bird"], lambda: (write_folder_data(), Path("photos/train/bird").mkdir())),
    "class only in validation": (
        FOLDER,
        ["bird"],
        lambda: (write_folder_data(), write_image("photos/val/bird/0.png")),
    ),
    "a part by another name": (
        FOLDER,
        ["Validation", "rename it to val"],
        lambda: (write_folder_data(), write_image("photos/Validation/cat/0.png")),
    ),
    "mask missing": (
        MASKS,
        ["3.png"],
        lambda: (write_mask_data(), Path("scenes/masks/train/3.png").unlink()),
    ),
    "patch of very many digits": (["cost", "vit_tiny", "--patch-size", "9" * 5000, "--img-size", "224"], ["999"], None),
    "image of very many digits": (["cost", "vit_tiny", "--patch-size", "8", "--img-size", "8" * 5000], ["888"], None),
    "very many images": (
        ["cost", "vit_tiny", "--patch-size", "8", "--img-size", "224", "--device", "h100", "--images", "7" * 5000],
        ["777"],
        None,
    ),
    "eval of nothing": (["eval", "absent"], ["absent", "not a run directory"], None),
    "eval of a bad split": (["eval", "absent", "--split", "training"], ["training"], None),
    "study missing": (["sweep", "absent.yaml"], ["absent.yaml", "no such file"], None),
    "study with unknown key": (["sweep", "s.yaml"], ["grd"], lambda: write("s.yaml", STUDY.replace("grid", "grd"))),
    "study with unknown axis": (
        ["sweep", "s.yaml", "--dry-run"],
        ["patchsize"],
        lambda: write("s.yaml", STUDY.replace("patch_size", "patchsize")),
    ),
    "study with empty axis": (
        ["sweep", "s.yaml", "--dry-run"],
        ["patch_size"],
        lambda: write("s.yaml", STUDY.replace("[8, 4]", "[]")),
    ),
    "study that cannot be cut": (
        ["sweep", "s.yaml", "--dry-run"],
        ["patch_size=5"],
        lambda: write("s.yaml", STUDY.replace("[8, 4]", "[8, 5]")),
    ),
    "recipe that is a list": (
        ["sweep", "s.yaml", "--dry-run"],
        ["recipe"],
        lambda: write("s.yaml", STUDY + "recipe: [1]\n"),
    ),
    "folder of a study missing": (
        ["sweep", "s.yaml", "data.name=image_folder", "data.root=photos"],
        ["photos", "no such folder"],
        lambda: write("s.yaml", STUDY),
    ),
    "no workers": (["sweep", "s.yaml", "--workers", "0"], ["workers"], lambda: write("s.yaml", STUDY)),
    "fit of nothing": (["fit", "absent"], ["absent"], None),
    "fit of an empty folder": (["fit", "."], ["no"], None),
    "unknown published table": (["fit", "published:patchification/imagnet"], ["patchification/imagenet"], None),
    "unknown law": (["fit", "published:patchification/imagenet", "--form", "cubic"], ["cubic", "patch"], None),
    "unknown target": (["fit", "published:patchification/imagenet", "--target", "speed"], ["speed", "error"], None),
    "a table without the target": (["fit", "published:patchification/imagenet", "--target", "loss"], ["loss"], None),
    "too few patch sizes": (
        ["fit", "t.csv"],
        ["patch"],
        lambda: write("t.csv", "patch_size,test_loss\n16,1\n8,.9\n4,.8\n"),
    ),
    "loss that is not a number": (
        ["fit", "t.csv"],
        ["test_loss is not a number a law takes", "'x'"],
        lambda: write("t.csv", "patch_size,test_loss\n16,1\n8,x\n4,.8\n2,.7\n"),
    ),
    "report of nothing": (["report", "absent"], ["absent"], None),
    "report of an empty folder": (["report", "."], ["no"], None),
    "runs of nothing": (["runs", "absent"], ["absent"], None),
    "no such published table": (["published", "imagenet"], ["patchification/imagenet"], None),
    "bench of nothing": (["bench"], ["at least one model"], None),
    "bench of an unknown model": (["bench", "vit_tinny"], ["vit_tinny", "vit_tiny"], None),
    "bench that cannot be cut": (["bench", "vit_test", "--patch-size", "16,5"], ["patch_size=5", "divide"], None),
    "bench list with a word": (["bench", "vit_test", "--patch-size", "8,x"], ["--patch-size", "'x'"], None),
    "bench of no images": (["bench", "vit_test", "--batch-size", "0"], ["--batch-size", "'0'", "positive"], None),
    "bench of half a rectangle": (["bench", "vit_test", "--img-size", "32x"], ["--img-size", "128x256"], None),
    "bench without that GPU": (["bench", "vit_test", "--device", "mps"], ["--device mps", "no such device"], None),
    "bench in another precision": (["bench", "vit_test", "--precision", "fp16"], ["fp16", "bf16"], None),
    "bench of an unknown scan": (["bench", "vit_test", "--ssd-backend", "cuda"], ["'cuda'", "chunked"], None),
    "bench into a folder": (["bench", "vit_test", "--output", "."], ["--output", "folder"], None),
    "bench into no folder": (["bench", "vit_test", "--output", "absent/b.json"], ["folder absent", "not there"], None),
    "bench with a search's limit": (["bench", "vit_test", "--max-tokens", "64"], ["--max-tokens", "--crossover"], None),
    "crossover of one model": (["bench", "vit_test", "--crossover"], ["two models", "1 given"], None),
    "crossover of two patch sizes": (["bench", "--crossover", "--patch-size", "2,1"], ["--patch-size", "2,1"], None),
    "crossover at a fixed size": (["bench", "--crossover", "--img-size", "32"], ["--img-size"], None),
    "unknown verb": (["trian"], ["trian"], None),
    "a count that is none": (["bench", "vit_test", "--repetitions", "x"], ["--repetitions", "bench -h"], None),
    "unknown option": (["train", "--modle", "vit_test"], ["--modle"], None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_clear_line(name, call):
    arguments, words, prepare = MISTAKES[name]
    if prepare:
        prepare()
    code, _, said = call(*arguments)
    assert code == 2, said
    assert "Traceback" not in said
    for word in words:
        assert word in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said


# Faults inside the data come to light while reading: the run starts, fails, and keeps the reason.
def corrupt_image() -> None:
    write_folder_data()
    for file in Path("photos/train").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:40])


def wrong_label() -> None:
    write_mask_data()
    for file in Path("scenes/masks/train").glob("*.png"):
        write_mask(str(file), 7)


def wrong_mask_size() -> None:
    write_mask_data()
    for file in Path("scenes/masks/train").glob("*.png"):
        write_mask(str(file), 1, size=(8, 8))


@pytest.mark.parametrize(
    ("arguments", "prepare", "words"),
    [
        (FOLDER, corrupt_image, [".png"]),
        (MASKS, wrong_label, [".png", "7"]),
        (MASKS, wrong_mask_size, [".png"]),
    ],
    ids=["corrupt image", "label out of range", "mask of another size"],
)
def test_a_fault_in_the_data_names_the_file(arguments, prepare, words, call):
    prepare()
    code, _, said = call(*arguments)
    assert code in (1, 2), said
    assert "Traceback" not in said
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said
    for word in words:
        assert word in errors[0]
