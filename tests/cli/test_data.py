"""`patchscale data` on real folders, shards and tables."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from tests.pausing import go_on, pause, start_in_foreground, wait_until_paused
from typer.main import get_command

from patchscale.cli.data import data
from patchscale.config import build_config
from patchscale.data.check import KINDS
from patchscale.errors import UserError


def write_folder(root, count=6, size=(24, 20), seed=0):
    generator = np.random.default_rng(seed)
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{number}.png")


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "photos/train")
    write_folder(tmp_path / "photos/val", 2, (40, 30), seed=1)
    return tmp_path / "photos"


def test_shard_then_check_then_shard_again(call, folder):
    code, out, err = call("data", "shard", "photos", "shards", "--shard-mib", "0.01")
    assert code == 0, err
    assert "16 images of 2 classes in" in out
    assert "(0 kept from before)" in out
    assert "patchscale train data.name=shards data.root=shards" in out
    assert "sharding: 16 of 16 images" in err
    code, out, _ = call("data", "shard", "photos", "shards", "--shard-mib", "0.01", "--json")
    written = json.loads(out)
    assert code == 0
    assert written["kept"] == written["shards"] > 2
    for workers in (1, 2):
        code, out, err = call("data", "check", "shards", "--json", "--num-workers", workers)
        assert code == 0, err
        checked = json.loads(out)
        assert checked["kind"] == "shards"
        assert checked["images"] == {"train": 12, "val": 4}
        assert checked["class_counts"]["train"] == {"cat": 6, "dog": 6}
        assert checked["size_px"] == {"smallest": [20, 24], "median": [20, 24], "largest": [30, 40]}
        assert checked["modes"] == {"RGB": 16}
        assert checked["formats"] == {"PNG": 16}
        assert checked["shards"] == checked["shards_verified"] == written["shards"]
        assert checked["wrong"] == []
        sizes = [path.stat().st_size for path in folder.rglob("*.png")]
        assert checked["size_bytes"]["total"] == sum(sizes)
        assert checked["size_bytes"]["largest"] == max(sizes)


@pytest.mark.parametrize("workers", [1, 2])
def test_all_that_is_wrong_is_listed(call, folder, workers):
    (folder / "train/cat/0.png").write_bytes(b"hello")
    whole = (folder / "train/dog/1.png").read_bytes()
    (folder / "train/dog/1.png").write_bytes(whole[:-300])
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(folder / "train/dog/2.png")
    shutil.copy(folder / "train/cat/3.png", folder / "val/cat/leak.png")
    shutil.copy(folder / "train/cat/4.png", folder / "train/cat/twin.png")
    Image.new("L", (3, 3)).save(folder / "train/cat/small.png")
    code, out, err = call("data", "check", "photos", "--num-workers", workers)
    assert code == 1
    lines = [line for line in err.splitlines() if not line.startswith("checking:")]
    expected = [
        "train/cat/0.png: cannot be dec",
        "dog/1.png: cannot be decoded",
        "dog/2.png: I;16",
        "leak.png: the same",
    ]
    assert len(lines) == len(expected)
    assert all(words in line for words, line in zip(expected, lines, strict=True))
    assert "photos/train/cat/3.png, which is in train" in lines[3]
    told = dict(line.split("\t") for line in out.splitlines())
    assert told["wrong"] == "4"
    assert told["duplicates within a part"] == "1"
    assert told["smallest picture"] == "3 x 3 px"
    assert told["train"] == "14 images of 2 classes, 6 to 8 each"
    assert "L 1" in told["modes"]


@pytest.mark.parametrize("kind", ["image_folder", "shards", "hf_dataset"])
def test_pictures_that_cannot_be_decoded_are_listed_and_excluded(call, tmp_path, folder, kind):
    """The run goes without them; every other picture stays in its split."""
    write_folder(tmp_path / "whole/train", 10)
    shutil.copytree(tmp_path / "whole", tmp_path / "image_folder")
    (tmp_path / "image_folder/train/cat/0.png").write_bytes(b"hello")
    cut = tmp_path / "image_folder/train/dog/1.png"
    cut.write_bytes(cut.read_bytes()[:-300])
    if kind == "shards":
        assert call("data", "shard", "image_folder", "shards")[0] == 0
    elif kind == "hf_dataset":
        import datasets

        files = sorted((tmp_path / "image_folder/train").rglob("*.png"))
        cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
        table = {"image": cells, "label": [["cat", "dog"].index(file.parent.name) for file in files]}
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
        datasets.Dataset.from_dict(table, features).to_parquet(tmp_path / "hf_dataset/train.parquet")
    code, out, err = call("data", "check", kind, "--list-bad", "bad.txt", "--json")
    assert code == 1, err
    expected = ["train/cat/0.png", "train/dog/1.png"] if kind != "hf_dataset" else ["train 0 0", "train 11 1"]
    assert json.loads(out)["unusable"] == expected == (tmp_path / "bad.txt").read_text().splitlines()

    from patchscale.data.datasets import load_splits

    def config(*settings):
        values = {"model": {"name": "vit_test", "patch_size": 4, "img_size": 16}, "data": {"name": kind}}
        return build_config(values, [f"data.root={tmp_path / kind}", "data.val_fraction=0.2", *settings])

    with_all, without = config(), config("data.exclude=bad.txt")
    assert with_all.identity != without.identity
    before, after = load_splits(with_all), load_splits(without)
    for split in ("train", "val", "test"):
        names = [list(getattr(splits, split).source.files.lines()) for splits in (before, after)]
        assert sorted(names[1]) == sorted(set(names[0]) - set(expected))
        for index in range(len(names[1])):
            getattr(after, split).source[index]
    assert sum(after.record["images"].values()) == 18
    assert after.record["split_rule"] == "val and test are 0.2 of all images each; 2 images are excluded"
    assert after.record["fingerprint"] != before.record["fingerprint"]

    (tmp_path / "moved.txt").write_text((tmp_path / "bad.txt").read_text())
    assert config("data.exclude=moved.txt").identity == without.identity
    assert build_config(without.to_dict()) == without
    for content, words in (
        ("", "no names in it"),
        ("train/cat/77.png\n", r"no picture 'train/cat/77.png' in .*; a line"),
    ):
        (tmp_path / "wrong.txt").write_text(content)
        with pytest.raises(UserError, match=words):
            load_splits(config("data.exclude=wrong.txt"))
    (tmp_path / "bad.txt").write_text("another\n")
    with pytest.raises(UserError, match=r"bad.txt: not the file this run was made with"):
        load_splits(without)


def test_exclude_is_checked_with_the_config():
    with pytest.raises(UserError, match=r"data.exclude=nowhere.txt: No such file or directory; give a file of names"):
        build_config({"data": {"name": "image_folder", "root": "x", "exclude": "nowhere.txt"}})
    with pytest.raises(UserError, match=r"data.exclude is for data sets of pictures of any size"):
        build_config({"data": {"exclude": __file__}})


def test_damaged_shards_fail_their_checksum(call, folder):
    call("data", "shard", "photos", "shards")
    shard = next(iter(sorted((folder.parent / "shards").glob("train-*.tar"))))
    content = bytearray(shard.read_bytes())
    content[-1] = 1  # after the last picture
    shard.write_bytes(content)
    code, out, _ = call("data", "check", "shards", "--json")
    assert code == 1
    checked = json.loads(out)
    assert checked["shards_verified"] == checked["shards"] - 1
    assert [line for line in checked["wrong"] if "train-000000.tar: sha256 is" in line] == checked["wrong"]


def test_a_hugging_face_data_set(call, folder):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(folder.parent / "cache"))
    loaded.save_to_disk("saved")
    code, out, err = call("data", "check", "saved", "--json")
    assert code == 0, err
    checked = json.loads(out)
    assert (checked["kind"], checked["images"]) == ("hf_dataset", {"train": 12, "val": 4})
    assert checked["class_counts"]["val"] == {"cat": 2, "dog": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("check", "nowhere"), "nowhere: no such folder; name the folder of a data set, or shards"),
        (("check", "photos", "--kind", "tables"), "--kind 'tables': choose image_folder, shards, hf_dataset"),
        (("check", "photos", "--num-workers", "0"), "--num-workers 0: at least 1 is needed"),
        (("shard", "nowhere", "shards"), "nowhere: no such folder"),
        (("shard", "photos", "shards", "--shard-mib", "0"), "--shard-mib 0: a shard needs a size above 0 MiB"),
        (("shard", "photos", "photos/train/cat/0.png"), "0.png: is a file; name a folder for the shards"),
    ],
)
def test_mistakes_are_one_line(call, folder, arguments, message):
    code, _, err = call("data", *arguments)
    assert code == 2
    assert err.count("\n") == 1
    assert message in err


def test_ctrl_c_ends_a_check_quietly(tmp_path):
    write_folder(tmp_path / "photos", 100)
    pause(tmp_path, opened="*/dog/99.png")
    command = [sys.executable, "-m", "patchscale", "data", "check", "photos", "--num-workers", "2"]
    process = start_in_foreground(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stderr is not None
    process.stderr.readline()  # the first tenth is done
    wait_until_paused(tmp_path)
    os.killpg(process.pid, signal.SIGINT)
    go_on(tmp_path)
    err = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "Traceback" not in err
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:  # the checking processes are gone, too
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail("a checking process lives on")


def test_it_needs_no_torch(tmp_path, folder):
    code = (
        "import sys\n"
        "for name in ('torch', 'timm', 'torchvision', 'transformers'): sys.modules[name] = None\n"
        "from patchscale.cli.app import main\n"
        "main()"
    )
    for arguments in (["--help"], ["shard", "--help"], ["shard", "photos", "shards"], ["check", "shards"]):
        done = subprocess.run(
            [sys.executable, "-c", code, "data", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_help_names_all_kinds():
    (kind,) = (parameter for parameter in get_command(data).commands["check"].params if parameter.name == "kind")
    assert kind.help.startswith(f"{', '.join(KINDS[:-1])} or {KINDS[-1]}. ")


def test_the_first_process_of_a_container_checks_too(tmp_path):
    write_folder(tmp_path / "photos/train")
    (tmp_path / "photos/train/cat/0.png").write_bytes(b"hello")
    alone = ["unshare", "--user", "--map-root-user", "--pid", "--fork"]
    if shutil.which("unshare") is None or subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("no rights to a process namespace")
    command = [*alone, sys.executable, "-m", "patchscale", "data", "check", "photos", "--num-workers", "2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "cat/0.png: cannot be decoded" in done.stderr
    assert done.returncode == 1


def test_a_name_that_holds_a_line_separator_is_excluded(call, folder):
    (folder / "train/cat/a\u2028b.png").write_bytes(b"hello")
    assert call("data", "check", "photos", "--list-bad", "bad.txt")[0] == 1
    bad = folder.parent / "bad.txt"
    bad.write_bytes(bad.read_bytes().replace(b"\n", b"\r\n"))  # as some editors save it

    from patchscale.data.datasets import load_splits

    values = {"model": {"name": "vit_test", "patch_size": 4, "img_size": 16}, "data": {"name": "image_folder"}}
    splits = load_splits(build_config(values, [f"data.root={folder}", "data.exclude=bad.txt"]))
    assert sum(splits.record["images"].values()) == 16
