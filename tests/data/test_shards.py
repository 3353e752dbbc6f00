"""Shards: real archives, read at known places, here and from a real server."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from patchscale.config import build_config
from patchscale.data.datasets import load_splits
from patchscale.data.shard_cache import ShardCache
from patchscale.data.shard_writer import write_shards
from patchscale.data.shards import list_shards
from patchscale.errors import RunFailed, UserError
from patchscale.training.batches import load_batches
from patchscale.training.device import resolve_device
from patchscale.training.setup import set_up

from .conftest import MakeConfig, picture, write_classes
from .serving import served

COUNTS = {"cat": 12, "dog": 8}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Training and validation images in folders of classes."""
    write_classes(tmp_path / "folder/train", COUNTS)
    write_classes(tmp_path / "folder/val", {"cat": 4, "dog": 2}, seed=500)
    return tmp_path / "folder"


@pytest.fixture
def shards(folder: Path, tmp_path: Path) -> Path:
    """The same images in several shards with an index."""
    written = write_shards(folder, tmp_path / "shards", shard_bytes=2_000)
    assert (written.shards, written.images, written.classes, written.kept) == (written.shards, 26, 2, 0)
    assert written.shards > 5
    return tmp_path / "shards"


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, "png")
    return buffer.getvalue()


def foreign_shard(path: Path, first: int, count: int = 6) -> None:
    """As others write them: classes as .cls or .json, more files, folders, names with several dots."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for number in range(first, first + count):
            label = str(number % 2).encode() if number % 3 else json.dumps({"label": number % 2}).encode()
            add(archive, f"deep/er/{number:04d}.{'cls' if number % 3 else 'json'}", label)
            add(archive, f"deep/er/{number:04d}.PNG", png(number))
            add(archive, f"deep/er/{number:04d}.txt", b"a caption")


def config_of(root: object, cache: Path, **data: object):
    return build_config(
        {
            "model": {"name": "vit_test", "patch_size": 4, "img_size": 16},
            "data": {"name": "shards", "root": str(root), "augment": "crop", **data},
            "training": {"batch_size": 6, "steps": 4},
            "execution": {"shard_cache": str(cache)},
        }
    )


def test_shards_train_as_the_folder_they_are_of(
    folder: Path, shards: Path, tmp_path: Path, make_config: MakeConfig
) -> None:
    of_folder = load_splits(make_config(name="image_folder", root=str(folder), augment="crop"))
    of_shards = load_splits(make_config(name="shards", root=str(shards), augment="crop"))
    assert of_shards.class_names == of_folder.class_names == ["cat", "dog"]
    for name in ("images", "class_counts", "split_rule", "eval_crop_ratio"):
        assert of_shards.record[name] == of_folder.record[name]
    for index in range(len(of_folder.train)):
        for a, b in zip(of_folder.train[3, index], of_shards.train[3, index], strict=True):
            assert torch.equal(a, b)
    for split in ("val", "test"):  # in another order, that of the archives
        images = [{image.numpy().tobytes() for image, _ in getattr(s, split)} for s in (of_folder, of_shards)]
        assert images[0] == images[1]


def test_pictures_keep_their_bytes_and_checksums_hold(folder: Path, shards: Path, tmp_path: Path) -> None:
    index = json.loads((shards / "index.json").read_text())
    for part in ("train", "val"):
        for shard in index["parts"][part]:
            content = (shards / shard["name"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == shard["sha256"]
            assert shard["samples"] == len(shard["names"])
            for name, offset, size in zip(shard["names"], shard["offsets"], shard["sizes"], strict=True):
                assert content[offset : offset + size] == (folder / name).read_bytes()
    assert any(len(set(shard["labels"])) == 2 for shard in index["parts"]["train"]), "shards are not mixed"


def test_empty_files_are_no_less_in_the_shards(folder: Path, tmp_path: Path) -> None:
    """They cannot be decoded, but that is for reading to say."""
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    assert write_shards(folder, tmp_path / "shards", shard_bytes=2_000).images == 26
    listed = list_shards(str(tmp_path / "shards"), ShardCache(tmp_path / "cache"))
    assert {part: len(pictures) for part, pictures in listed.parts.items()} == {"train": 20, "val": 6}


def test_webdataset_reads_our_shards(folder: Path, shards: Path) -> None:
    import webdataset

    samples = list(webdataset.WebDataset(sorted(map(str, shards.glob("train-*.tar"))), shardshuffle=False))
    assert len(samples) == 20
    contents = {(path.read_bytes(), path.parent.name) for path in (folder / "train").rglob("*.png")}
    assert {(sample["png"], ["cat", "dog"][int(sample["cls"])]) for sample in samples} == contents


def test_conversion_repeats_itself_and_keeps_what_is_there(folder: Path, shards: Path, tmp_path: Path) -> None:
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.glob("*.tar")}
    again = write_shards(folder, shards, shard_bytes=2_000)
    assert again.kept == again.shards == len(before)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in shards.glob("*.tar")} == before
    elsewhere = write_shards(folder, tmp_path / "elsewhere", shard_bytes=2_000)
    assert elsewhere.kept == 0
    for name, (content, _) in before.items():
        assert (tmp_path / "elsewhere" / name).read_bytes() == content
    first = shards / "train-000000.tar"
    first.write_bytes(before[first.name][0][:-10] + b"0123456789")
    assert write_shards(folder, shards, shard_bytes=2_000).kept == again.shards - 1
    assert first.read_bytes() == before[first.name][0]


def test_an_interrupted_conversion_goes_on(folder: Path, tmp_path: Path, make_config: MakeConfig) -> None:
    target = tmp_path / "target"

    def stop(images: int, total: int) -> None:
        if images > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, target, shard_bytes=2_000, done=stop)
    finished = len(list(target.glob("*.tar")))
    assert finished > 2
    assert not (target / "index.json").exists()
    with pytest.raises(UserError, match="the conversion to shards was interrupted; run patchscale data shard again"):
        load_splits(make_config(name="shards", root=str(target)))
    written = write_shards(folder, target, shard_bytes=2_000)
    assert written.kept == finished < written.shards
    assert sorted(path.name for path in target.iterdir() if path.suffix != ".tar") == ["index.json"]
    assert len(load_splits(make_config(name="shards", root=str(target))).test) == 6


def test_another_data_set_in_the_target_is_refused(folder: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train-0000\d\d.tar: is not one of the shards to be written here"):
        write_shards(folder, shards, shard_bytes=10**9)


@pytest.mark.parametrize("how", ["folder", "pattern"])
def test_shards_of_others_are_scanned_once(tmp_path: Path, make_config: MakeConfig, monkeypatch, how: str) -> None:
    monkeypatch.setenv("PATCHSCALE_DATA", str(tmp_path / "home"))
    root = tmp_path / "foreign"
    for number in range(3):
        foreign_shard(root / f"train-{number:03d}.tar", 10 * number)
    foreign_shard(root / "validation-000.tar", 90, 4)
    pattern = f"{root}/{{train-{{000..002}},validation-000}}.tar"
    config = make_config(name="shards", root=str(root) if how == "folder" else pattern, augment="none")
    splits = load_splits(config)
    assert splits.class_names == ["0", "1"]
    assert splits.record["images"] == {"train": 16, "val": 2, "test": 4}
    for index, name in enumerate(splits.train.source.files.names):
        number = int(Path(name).stem)
        assert splits.train[0, index][1] == number % 2
        image = np.asarray(splits.train.source.files.picture(index))
        np.testing.assert_array_equal(image, np.asarray(picture(number)))
    assert len(list((tmp_path / "home/shards/scans").iterdir())) == 4
    assert load_splits(config).record["fingerprint"] == splits.record["fingerprint"]


def no_class(archive: tarfile.TarFile) -> None:
    add(archive, "x.png", png(0))


def no_picture(archive: tarfile.TarFile) -> None:
    add(archive, "x.cls", b"0")


def two_pictures(archive: tarfile.TarFile) -> None:
    add(archive, "x.png", png(0))
    add(archive, "x.jpg", png(0))


def not_a_number(archive: tarfile.TarFile) -> None:
    add(archive, "x.png", png(0))
    add(archive, "x.cls", b"cat")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (no_class, r"a.tar: sample x has no class \(.cls or .json with label\)"),
        (no_picture, r"a.tar: sample x has no picture"),
        (two_pictures, r"a.tar: sample x has two pictures"),
        (not_a_number, r"a.tar: x.cls: b'cat' is not the number of a class"),
    ],
)
def test_wrong_samples_are_named(tmp_path: Path, spoil, message: str) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        spoil(archive)
    with pytest.raises(UserError, match=message):
        list_shards(str(tmp_path), ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize("how", ["compressed", "cut", "cut between samples", "text"])
def test_broken_archives_are_named(tmp_path: Path, how: str) -> None:
    path = tmp_path / "data/a.tar"
    foreign_shard(path, 0)
    content = path.read_bytes()
    if how == "compressed":
        with tarfile.open(path, "w:gz") as archive:
            add(archive, "x.cls", b"0")
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        third = archive.getmembers()[3]
    cuts = {"cut": content[: len(content) // 2], "cut between samples": content[: third.offset], "text": b"hello"}
    if how in cuts:
        path.write_bytes(cuts[how])
    with pytest.raises(UserError, match=r"a.tar: (not a plain tar archive, or cut short|cut short, its end mark)"):
        list_shards(str(path), ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("root", "message"),
    [
        ("nowhere", r"nowhere/index.json: No such file or directory; data.root must name"),
        ("empty", r"empty: neither index.json nor .tar files in it; make shards with: patchscale data shard"),
        ("nowhere/a-{0..2}.tar", r"a-0.tar: No such file or directory"),
        ("s3://bucket/a-{0..2}.tar", r"has no reader for s3://.* 'pipe:aws s3 cp"),
    ],
)
def test_what_is_not_there_is_named(tmp_path: Path, root: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        list_shards(root if ":" in root else str(tmp_path / root), ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize("content", ["", "{}", '{"format": "another"}', "[1]"])
def test_a_broken_index_is_named(shards: Path, tmp_path: Path, content: str) -> None:
    (shards / "index.json").write_text(content)
    with pytest.raises(UserError, match=r"index.json: not an index of shards \(.+\); write it again with"):
        list_shards(str(shards), ShardCache(tmp_path / "cache"))


@pytest.mark.parametrize(
    "name",
    [
        "train-0.tar; touch {spoiled}; true .tar",
        "train-0.tar\ntouch {spoiled}.tar",
        "$(touch {spoiled}).tar",
        "../train-0.tar",
        "/etc/train-0.tar",
        "-rf.tar",
        ".tar",
        "train-0.tar\n",
    ],
)
def test_an_index_names_shards_and_no_commands_or_paths(shards: Path, tmp_path: Path, name: str) -> None:
    name = name.format(spoiled=tmp_path / "spoiled")
    index = json.loads((shards / "index.json").read_text())
    for shard in index["parts"]["train"]:
        shard["name"] = name
    (shards / "index.json").write_text(json.dumps(index))
    for root in (str(shards), f"pipe:cat {shards}/index.json"):
        with pytest.raises(UserError, match=r"index.json: not an index of shards \(.+ is not the name of a shard"):
            load_splits(config_of(root, tmp_path / "cache")).train[0, 0]
    assert not (tmp_path / "spoiled").exists()


def test_a_damaged_picture_is_named_with_its_shard(tmp_path: Path, make_config: MakeConfig) -> None:
    write_classes(tmp_path / "folder/train", COUNTS)
    write_classes(tmp_path / "folder/test", {"cat": 1, "dog": 1}, seed=500)
    path = tmp_path / "folder/test/cat/000.png"
    path.write_bytes(path.read_bytes()[:200])
    write_shards(tmp_path / "folder", tmp_path / "shards", shard_bytes=10**6)
    splits = load_splits(make_config(name="shards", root=str(tmp_path / "shards")))
    with pytest.raises(UserError, match=r"test-000000.tar: test/cat/000.png: cannot be decoded as an image \(.+\)"):
        for index in range(2):
            splits.test[index]
    shard = tmp_path / "shards/train-000000.tar"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-000000.tar: cut short, it ends before byte \d+; replace it"):
        for index in range(len(splits.train)):
            splits.train[0, index]


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "rotated", "truncated"])
def test_every_kind_of_picture_is_read_as_from_a_folder(tmp_path: Path, make_config: MakeConfig, mode: str) -> None:
    write_classes(tmp_path / "folder/train", COUNTS)
    write_classes(tmp_path / "folder/test", {"dog": 1})
    path = tmp_path / "folder/test/cat" / ("x.jpg" if mode in ("CMYK", "rotated", "truncated") else "x.png")
    path.parent.mkdir()
    if mode == "I;16":
        Image.fromarray(np.full((24, 20), 40_000, np.uint16)).save(path)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6
        picture(7, (24, 20)).convert(mode if len(mode) < 5 else "RGB").save(
            path, **({"exif": exif} if mode == "rotated" else {})
        )
    if mode == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    write_shards(tmp_path / "folder", tmp_path / "shards", shard_bytes=10**6)
    seen = []
    for name, root in (("image_folder", "folder"), ("shards", "shards")):
        files = load_splits(make_config(name=name, root=str(tmp_path / root))).test.source.files
        index = [files.name(i).endswith(path.name) for i in range(2)].index(True)
        try:
            seen.append(np.asarray(files.picture(index)).tobytes())
        except UserError as error:
            seen.append(str(error).partition(path.name)[2])
    assert seen[0] == seen[1]
    assert isinstance(seen[0], str) == (mode in ("I;16", "truncated"))


def batches(config, steps: range, num_workers: int) -> list[torch.Tensor]:
    setup = set_up(config, resolve_device("cpu"))
    return [images for images, _ in setup.batches(steps, num_workers=num_workers)]


@pytest.mark.parametrize("window", [None, 2])
def test_a_resume_with_other_loader_processes_sees_the_same_batches(shards: Path, tmp_path: Path, window) -> None:
    config = config_of(shards, tmp_path / "cache", shuffle_window=window)
    whole = batches(config, range(9), 0)
    for first, num_workers in ((4, 2), (7, 1)):
        resumed = batches(config, range(first, 9), num_workers)
        assert all(torch.equal(a, b) for a, b in zip(whole[first:], resumed, strict=True))


@pytest.mark.parametrize("window", [None, 2])
def test_ranks_get_their_rows_of_the_same_batch(shards: Path, tmp_path: Path, window) -> None:
    from patchscale.training.distributed import RowsOrder, rows_of_part

    setup = set_up(config_of(shards, tmp_path / "cache", shuffle_window=window), resolve_device("cpu"))
    whole = list(setup.batches(range(5), num_workers=0))
    for paired in (False, True):
        for part in range(3):
            rows = rows_of_part(6, part, 3, paired=paired)
            order = RowsOrder(setup.order, rows)
            loaded = load_batches(setup.splits.train, order, range(5), num_workers=1, device=torch.device("cpu"))
            for (images, targets), (part_images, part_targets) in zip(whole, loaded, strict=True):
                assert torch.equal(images[rows], part_images)
                assert torch.equal(targets[rows], part_targets)


def test_remote_shards_are_fetched_once_and_train_as_local_ones(shards: Path, tmp_path: Path) -> None:
    local = batches(config_of(shards, tmp_path / "unused"), range(6), 0)
    cache = tmp_path / "cache"
    with served(shards) as (url, asked):
        config = config_of(url, cache)
        remote = batches(config, range(6), 2)
        assert sorted(asked) == sorted({*asked}), "something was fetched twice"
        fetched = len(asked)
        again = batches(config, range(6), 0)
        assert [name for name in asked[fetched:] if name != "index.json"] == []
        by_index = config_of(f"{url}/index.json", cache)
        assert torch.equal(batches(by_index, range(1), 0)[0], local[0])
    assert all(torch.equal(a, b) and torch.equal(a, c) for a, b, c in zip(local, remote, again, strict=True))
    assert not list(cache.glob("*.part"))


def test_a_remote_pattern_without_an_index(tmp_path: Path) -> None:
    for number in range(2):
        foreign_shard(tmp_path / f"far/train-{number}.tar", 10 * number)
    with served(tmp_path / "far") as (url, asked):
        config = config_of(f"{url}/train-{{0..1}}.tar", tmp_path / "cache")
        splits = load_splits(config)
        assert splits.record["images"] == {"train": 10, "val": 1, "test": 1}
        assert len(asked) == 2
        for index in range(10):
            splits.train[0, index]
        assert len(asked) == 2, "what was scanned is fetched again to be read"
        assert len(list((tmp_path / "cache").glob("*.tar"))) == 2
        for path in (tmp_path / "cache").glob("*.tar"):
            path.unlink()
        splits.train[0, 0]
        assert len(load_splits(config).train) == 10
        assert len(asked) == 3, "a scan is kept even when its shard is not"
        # Now that its checksum is known, another content under the same address is refused.
        foreign_shard(tmp_path / "far/train-0.tar", 50)
        foreign_shard(tmp_path / "far/train-1.tar", 50)
        for path in (tmp_path / "cache").glob("*.tar"):
            path.unlink()
        with pytest.raises(UserError, match=r"train-\d.tar: \d+ bytes of sha256 .* or was replaced after it was"):
            load_splits(config).train[0, 0]


def test_a_pipe_is_what_its_command_writes(shards: Path, tmp_path: Path) -> None:
    config = config_of(f"pipe:cat {shards}/index.json", tmp_path / "cache")
    assert torch.equal(batches(config, range(1), 0)[0], batches(config_of(shards, tmp_path), range(1), 0)[0])
    with pytest.raises(UserError, match=r"cannot be fetched \(its reader ended with 3\)"):
        load_splits(config_of("pipe:exit 3 index.json", tmp_path / "cache"))


def test_what_a_server_does_not_give_is_named(shards: Path, tmp_path: Path) -> None:
    with served(shards) as (url, _):
        with pytest.raises(UserError, match=rf"{url}/more/index.json: cannot be fetched \(the server refuses"):
            load_splits(config_of(f"{url}/more", tmp_path / "cache"))
        config = config_of(url, tmp_path / "cache")
        splits = load_splits(config)
        for path in shards.glob("*.tar"):
            path.write_bytes(path.read_bytes()[:-1] + b"x")
        with pytest.raises(UserError, match=r"000000.tar: \d+ bytes of sha256 \w+, expected \w+; the shard is damaged"):
            splits.test[0]
        with pytest.raises(RunFailed, match=r"batch 0: http.*the shard is damaged"):
            batches(config, range(1), 1)
    with pytest.raises(UserError, match=r"cannot be fetched \(no connection\); check the address"):
        load_splits(config_of(url, tmp_path / "cache"))
    assert not list((tmp_path / "cache").glob("*.tar"))
    assert not list((tmp_path / "cache").glob("*.part"))


def test_the_cache_stays_within_its_bound(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for number in range(6):
        (tmp_path / f"far/{number}.tar").write_bytes(bytes([number]) * 1000)
    cache = ShardCache(tmp_path / "cache", 3500)
    with served(tmp_path / "far") as (url, asked):
        kept_open = cache.open(f"{url}/0.tar", size_bytes=1000)
        for number in (1, 2, 0, 3, 4, 0, 5, 0, 1):
            with cache.open(f"{url}/{number}.tar", size_bytes=1000 if number % 2 else None) as file:
                assert file.read() == bytes([number]) * 1000
            assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 3500
        assert kept_open.read() == bytes(1000)
        assert asked == [f"{number}.tar" for number in (0, 1, 2, 3, 4, 5, 1)], "what was used last is kept"
        with pytest.raises(UserError, match=r"is less than one shard .*; raise it"):
            ShardCache(tmp_path / "small", 500).open(f"{url}/0.tar")


FETCH_ALL = """
import sys
from pathlib import Path
from patchscale.data.shard_cache import ShardCache

cache = ShardCache(Path(sys.argv[2]), 10_000_000)
for number in range(3):
    with cache.open(f"{sys.argv[1]}/{number}.tar") as file:
        assert file.read() == bytes([number]) * 3_000_000
"""


def test_several_processes_fetch_a_shard_once(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    for number in range(3):
        (tmp_path / f"far/{number}.tar").write_bytes(bytes([number]) * 3_000_000)
    with served(tmp_path / "far") as (url, asked):
        command = [sys.executable, "-c", FETCH_ALL, url, str(tmp_path / "cache")]
        processes = [subprocess.Popen(command) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
    assert sorted(asked) == ["0.tar", "1.tar", "2.tar"]


IN_A_SMALL_FILE_SYSTEM = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
CONVERT = "from patchscale.cli.app import main; main()"


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run(
        [*IN_A_SMALL_FILE_SYSTEM, "mount -t tmpfs none /mnt"], capture_output=True, check=False
    ).returncode,
    reason="cannot mount a small file system here",
)
@pytest.mark.parametrize("what", ["cache", "conversion"])
def test_a_full_disk_is_said(folder: Path, shards: Path, tmp_path: Path, what: str) -> None:
    small = tmp_path / "small"
    small.mkdir()
    code = FETCH_ALL if what == "cache" else CONVERT
    (tmp_path / "code.py").write_text(code)
    arguments = f"'pipe:cat /dev/zero #' {small}" if what == "cache" else f"data shard {folder} {small}"
    shell = (
        f"mount -t tmpfs -o size=16k none {small} && {sys.executable} {tmp_path}/code.py {arguments}; status=$?; "
        f"ls -A {small}; exit $status"
    )
    done = subprocess.run(
        [
            *IN_A_SMALL_FILE_SYSTEM,
            shell,
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if what == "cache":
        assert (
            f"UserError: {small}: the disk is full, pipe:cat /dev/zero #/0.tar does not fit; free some" in done.stderr
        )
        assert done.stdout.split() == ["locks"]
    else:
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            f"error: {small}: the disk is full; free some space and run it again, it goes on from here"
        )
        assert not any(name.endswith(".tmp") for name in done.stdout.split())


def test_a_cache_that_would_thrash_is_refused(shards: Path, tmp_path: Path) -> None:
    size = sum(path.stat().st_size for path in shards.glob("*.tar"))
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    with served(shards) as (url, _):

        def config(gib: float, window: int | None):
            return build_config(
                config_of(url, tmp_path / "cache", shuffle_window=window).to_dict(),
                [f"execution.shard_cache_gib={gib}"],
            )

        with pytest.raises(UserError, match=r"all shards, shuffled with each other, take .*, or shuffle within data"):
            load_splits(config(0.7 * size / 2**30, None))
        with pytest.raises(UserError, match=r"two windows of 2 shards take .*; raise it, or lower data.shuffle_window"):
            load_splits(config(2 * largest / 2**30, 2))
        small = config(4.1 * largest / 2**30, 2)
        everything = batches(small, range(4), 1)
        assert sum(path.stat().st_size for path in (tmp_path / "cache").glob("*.tar")) <= 4.1 * largest
        local = batches(config_of(shards, tmp_path / "unused", shuffle_window=2), range(4), 0)
        assert all(torch.equal(a, b) for a, b in zip(everything, local, strict=True))


def test_the_fingerprint_follows_the_content(folder: Path, shards: Path, tmp_path: Path, make_config) -> None:
    before = load_splits(make_config(name="shards", root=str(shards))).record["fingerprint"]
    moved = shards.with_name("moved")
    shutil.move(shards, moved)
    assert load_splits(make_config(name="shards", root=str(moved))).record["fingerprint"] == before
    shutil.copy(folder / "train/cat/001.png", folder / "train/cat/000.png")
    write_shards(folder, tmp_path / "other", shard_bytes=2_000)
    assert load_splits(make_config(name="shards", root=str(tmp_path / "other"))).record["fingerprint"] != before
