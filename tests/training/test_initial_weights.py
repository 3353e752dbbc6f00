"""Runs that start from trained weights: from files of every kind, at other sizes, for other tasks."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.training.conftest import outcome

from patchscale.config import build_config, load_config
from patchscale.data.seeding import seeded
from patchscale.errors import UserError
from patchscale.models.checkpoints import save_model
from patchscale.models.registry import create_model
from patchscale.tasks import build_task
from patchscale.training.interrupt import Interrupted
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.setup import set_up

NOTHING_LEARNED = ("training.steps=1", "training.learning_rate=1e-30", "training.min_learning_rate=0")


def finished(make_run, *overrides, study="first"):
    run = make_run("training.steps=2", *overrides, study=study)
    run_training(run)
    return run, run.checkpoint_dir / "model.safetensors"


def weights_at_the_start(run):
    """The weights a run began with: it is made to learn nothing."""
    run_training(run)
    return load_file(run.checkpoint_dir / "model.safetensors")


def test_weights_at_another_patch_size_and_the_head_that_fits(make_run):
    _, weights = finished(make_run)
    run = make_run(*NOTHING_LEARNED, "model.patch_size=4", f"training.init_from={weights}")
    start, before = weights_at_the_start(run), load_file(weights)
    same = {
        name for name in before if start[name].shape == before[name].shape and torch.allclose(start[name], before[name])
    }
    assert before.keys() - same == {"backbone.patch_embed.proj.weight", "backbone.pos_embed"}
    log = run.log_path.read_text()
    assert "resampled patch_embed.proj.weight: 32x3x8x8 -> 32x3x4x4, area" in log
    assert "resampled pos_embed: 1x5x32 -> 1x17x32" in log


def test_a_head_of_another_task_stays_new(make_run):
    _, weights = finished(make_run)
    run = make_run(*NOTHING_LEARNED, "task=segmentation", f"training.init_from={weights}")
    start, before = weights_at_the_start(run), load_file(weights)
    torch.testing.assert_close(start["backbone.norm.weight"], before["backbone.norm.weight"])
    config = run.config()
    with seeded(config.seed, "init"):
        drawn = build_task(config, set_up(config, torch.device("cpu")).splits).head.weight
    torch.testing.assert_close(start["head.weight"], drawn)
    log = run.log_path.read_text()
    assert "not used from the file: head.bias, head.weight" in log
    assert "as they were in the model: head.bias, head.weight" in log


def test_a_segmentation_head_goes_on(make_run):
    _, weights = finished(make_run, "task=segmentation")
    run = make_run(*NOTHING_LEARNED, "task=segmentation", f"training.init_from={weights}")
    start, before = weights_at_the_start(run), load_file(weights)
    assert all(torch.allclose(start[name], before[name]) for name in before)
    assert "as they were" not in run.log_path.read_text()


def test_a_file_without_a_description_and_the_moving_average(make_run, tmp_path):
    model = create_model("adventurer_test", patch_size=8, img_size=16, num_classes=7)
    torch.save({"model": model.state_dict()}, tmp_path / "released.pth")
    run = make_run(
        *NOTHING_LEARNED,
        *("model.name=adventurer_test", "training.ema_decay=0.9", f"training.init_from={tmp_path / 'released.pth'}"),
    )
    start = weights_at_the_start(run)  # of the moving average, which is what is saved
    torch.testing.assert_close(start["backbone.cls_token"], model.cls_token.detach())
    log = run.log_path.read_text()
    assert "flip_schedule='alternate' is the model's; the file does not tell (published weights: 'released')" in log
    assert "as they were in the model: head.bias, head.weight" in log  # scenes have another number of classes


def test_the_identity_is_that_of_the_content(make_run, tmp_path):
    def config(*overrides):
        return make_run(*overrides).config()

    model = create_model("vit_test", patch_size=8, img_size=16)
    for name in ("a", "b"):
        save_model(model, tmp_path / name)
    plain, a = config(), config(f"training.init_from={tmp_path / 'a'}")
    assert a.identity == config(f"training.init_from={tmp_path / 'b'}").identity
    assert a.identity != plain.identity
    assert a.settings != plain.settings
    with torch.no_grad():
        model.cls_token.add_(1)
    save_model(model, tmp_path / "b")
    assert a.identity != config(f"training.init_from={tmp_path / 'b'}").identity
    assert "init_sha256: null" in plain.to_yaml()

    # A run keeps its identity when the file is gone; it cannot start then.
    (tmp_path / "config.yaml").write_text(a.to_yaml())
    (tmp_path / "a").unlink()
    assert load_config(tmp_path / "config.yaml") == a
    assert load_config(tmp_path / "config.yaml", [f"training.init_from={tmp_path / 'b'}"]).identity != a.identity


def test_relative_paths_are_kept_as_they_are_meant_now(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("w").write_bytes(b"any content")
    config = build_config({"training": {"init_from": "w"}})
    assert config.training.init_from == str(tmp_path / "w")


def test_a_file_that_changed_is_refused_before_the_first_step_only(make_run, tmp_path):
    weights = tmp_path / "w.safetensors"
    save_model(create_model("vit_test", patch_size=8, img_size=16, num_classes=3), weights)
    run = make_run(f"training.init_from={weights}")
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    with pytest.raises(UserError, match=r"w\.safetensors: not the file this run was made with \(SHA-256 .*put it back"):
        run_training(run)
    weights.write_bytes(content)
    run_training(run)


class StopAtFive(Watcher):
    """Ends the attempt with a signal, as a user or a scheduler would."""

    def step_done(self, step, total_steps, loss):
        if step == 5:
            signal.raise_signal(signal.SIGTERM)


def test_a_resumed_run_needs_the_file_no_more(make_run, tmp_path):
    weights = tmp_path / "w.safetensors"
    save_model(create_model("vit_test", patch_size=4, img_size=16, num_classes=3), weights)
    whole = make_run(f"training.init_from={weights}", study="whole")
    run_training(whole)
    halves = make_run(f"training.init_from={weights}", study="halves")
    with pytest.raises(Interrupted):
        run_training(halves, progress=StopAtFive())
    weights.unlink()
    run_training(halves)
    assert outcome(halves)["weights"] == outcome(whole)["weights"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init_from": "absent.pth"}, "init_from=absent.pth: No such file or directory; give a file of weights"),
        ({"init_from": "."}, "init_from=.: Is a directory; give a file of weights"),
        ({"init_sha256": "00"}, "training.init_sha256 goes with training.init_from; leave it out"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        build_config({"training": given})


def test_weights_of_another_model_are_refused(make_run, tmp_path):
    save_model(create_model("vit_nano", patch_size=8, img_size=16), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=r"not the weights of this vit_test: unexpected blocks\.2"):
        run_training(make_run(f"training.init_from={tmp_path / 'w.safetensors'}"))
