"""A batch in parts, and blocks computed twice, give what the whole batch gives."""

import dataclasses

import pytest
import torch
from tests.training.conftest import metrics, outcome

from patchscale.errors import UserError
from patchscale.tasks import TASKS
from patchscale.training.journal import Watcher
from patchscale.training.loop import run_training
from patchscale.training.setup import micro_batches, set_up

CPU = torch.device("cpu")
MODELS = ("vit_test", "adventurer_test")


def step_of(config, micro_batch_size, *, dtype=torch.float32, checkpointing=False, ignore_part=False):
    """(loss, gradients) of step 0."""
    setup = set_up(config, CPU)
    setup.task.to(dtype)
    setup.task.backbone.set_grad_checkpointing(checkpointing)
    ((images, targets),) = setup.batches(range(1))
    if ignore_part:  # a different number of labelled pixels in every image, none in the last
        setup.task.ignore_index = 255
        for number in range(len(targets)):
            targets[number, : 2 * number + 2] = 255
    images, targets = setup.mix(0, images.to(dtype), targets)
    loss = setup.backward(0, images, targets, micro_batch_size)
    return loss, {name: parameter.grad for name, parameter in setup.task.named_parameters()}


@pytest.mark.parametrize("micro_batch_size", [1, 3, 4, 7, 8, 100])
def test_parts_hold_every_image_once(micro_batch_size):
    parts = micro_batches(8, micro_batch_size)
    assert [row for part in parts for row in range(8)[part]] == list(range(8))
    assert all(part.stop - part.start <= micro_batch_size for part in parts)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["64", "32"])
@pytest.mark.parametrize("micro_batch_size", [3, 1])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("task", TASKS)
def test_gradients_of_parts_add_up_to_those_of_the_batch(make_run, task, model, micro_batch_size, dtype, tolerance):
    """Eight images, drop path drawn for each; labelled pixels, or objects, of the parts differ."""
    of_task = ("head=mask_rcnn_nano",) if task == "detection" else ("training.label_smoothing=0.1",)
    config = make_run(f"task={task}", f"model.name={model}", "model.drop_path_rate=0.5", *of_task).config()
    options = {"dtype": dtype, "ignore_part": task == "segmentation"}
    loss, gradients = step_of(config, 8, **options)
    parts_loss, parts_gradients = step_of(config, micro_batch_size, **options)
    torch.testing.assert_close(parts_loss, loss, rtol=tolerance, atol=0)
    for name, expected in gradients.items():
        scale = float(expected.abs().max())
        assert scale > 0, name
        torch.testing.assert_close(parts_gradients[name], expected, rtol=0, atol=tolerance * max(scale, 1e-2), msg=name)


def test_mixing_pairs_images_across_the_whole_batch(make_run):
    config = make_run("training.mixup=0.8", "training.cutmix=1.0", "model.drop_path_rate=0.5").config()
    (loss, gradients), (parts_loss, parts_gradients) = step_of(config, 8), step_of(config, 3)
    assert float(parts_loss) == pytest.approx(float(loss), rel=1e-6)
    for name, expected in gradients.items():
        torch.testing.assert_close(parts_gradients[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("micro_batch_size", [8, 3])
def test_blocks_computed_again_change_no_bit(make_run, model, micro_batch_size):
    config = make_run(f"model.name={model}", "model.drop_path_rate=0.5").config()
    loss, gradients = step_of(config, micro_batch_size)
    again_loss, again = step_of(config, micro_batch_size, checkpointing=True)
    assert torch.equal(again_loss, loss)
    for name, expected in gradients.items():
        assert torch.equal(again[name], expected), name


@pytest.mark.parametrize("model", MODELS)
def test_a_run_with_checkpointing_is_the_same_run(make_run, model):
    settings = [f"model.name={model}", "model.drop_path_rate=0.3", "training.steps=5"]
    plain = make_run(*settings, study="plain")
    lean = make_run(*settings, "execution.activation_checkpointing=on", study="lean")
    run_training(plain)
    run_training(lean)
    assert outcome(lean) == outcome(plain)
    assert not attempts(plain)[0]["memory"]["activation_checkpointing"]
    assert attempts(lean)[0]["memory"]["activation_checkpointing"]


def test_a_run_in_parts_learns_the_same(make_run):
    settings = ["task=segmentation", "model.drop_path_rate=0.3", "execution.log_every_steps=1"]
    whole, parts = (
        make_run(*settings, study="whole"),
        make_run(*settings, "execution.micro_batch_size=3", study="parts"),
    )
    row, parts_row = run_training(whole), run_training(parts)
    assert parts_row["test_loss"] == pytest.approx(row["test_loss"], rel=1e-4)
    for expected, found in zip(metrics(whole), metrics(parts), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        if found["kind"] == "train":
            assert found["learning_rate"] == expected["learning_rate"]
            assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert "batch of 8 in parts of 3" in parts.log_path.read_text()


class StopAtThree(Watcher):
    def step_done(self, step, total_steps, loss):
        if step == 3:
            raise RuntimeError("stopped by the test")


def test_a_resumed_run_goes_on_with_the_same_parts(make_run):
    """Its first attempt found little memory, its second finds plenty: the outcome is as if nothing had happened."""
    settings = ["model.drop_path_rate=0.3", "execution.checkpoint_every_s=0"]
    undisturbed = make_run(*settings, "execution.memory_limit_gib=0.0001", study="undisturbed")
    run_training(undisturbed)
    stopped = make_run(*settings, "execution.memory_limit_gib=0.0001", study="stopped")
    with pytest.raises(RuntimeError):
        run_training(stopped, progress=StopAtThree())
    config = stopped.config()
    roomy = dataclasses.replace(config, execution=dataclasses.replace(config.execution, memory_limit_gib=None))
    stopped.config_path.write_text(roomy.to_yaml())
    run_training(stopped)

    first, second = attempts(stopped)
    assert first["memory"]["micro_batch_size"] == second["memory"]["micro_batch_size"] == 1
    assert second["first_step"] == 2
    expected, found = outcome(undisturbed), outcome(stopped)
    assert found["metrics"] == expected["metrics"]
    assert found["weights"] == expected["weights"]


@pytest.fixture
def takes_three_images(monkeypatch):
    """A layer that, as an accelerator would, takes no more than three images at a time, once called for."""
    from patchscale.training import loop

    def refuse(module, inputs):
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than this test allows")

    def set_up_small(config, device, ranks):
        setup = set_up(config, device, ranks)
        setup.task.backbone.patch_embed.register_forward_pre_hook(refuse)
        return setup

    return lambda: monkeypatch.setattr(loop, "set_up", set_up_small)


@pytest.mark.parametrize("model", MODELS)
def test_a_step_that_runs_out_of_memory_is_repeated_in_smaller_parts(make_run, model, takes_three_images):
    settings = [f"model.name={model}", "model.drop_path_rate=0.3", "training.mixup=0.8", "training.steps=4"]
    parts = make_run(*settings, "execution.micro_batch_size=2", study="parts")
    run_training(parts)

    takes_three_images()
    found = make_run(*settings, study="found")
    run_training(found)
    assert outcome(found) == outcome(parts)
    assert found.read_json("environment.json")["memory"]["micro_batch_size"] == 2
    log = found.log_path.read_text()
    assert "out of memory at step 1; repeated in parts of 4 images" in log
    assert "out of memory at step 1; repeated in parts of 2 images" in log
    assert "out of memory at step 2" not in log

    fixed = make_run(*settings, "execution.micro_batch_size=4", study="fixed")
    with pytest.raises(RuntimeError, match=r"out of memory; .*a smaller execution\.micro_batch_size"):
        run_training(fixed)


def test_a_resumed_run_goes_on_with_the_parts_that_did_fit(make_run, takes_three_images):
    settings = ["model.drop_path_rate=0.3", "training.steps=6", "execution.checkpoint_every_s=0"]
    parts = make_run(*settings, "execution.micro_batch_size=2", study="parts")
    run_training(parts)

    takes_three_images()
    stopped = make_run(*settings, study="stopped")
    with pytest.raises(RuntimeError):
        run_training(stopped, progress=StopAtThree())
    run_training(stopped)
    assert [attempt["first_step"] for attempt in attempts(stopped)] == [0, 2]
    assert [attempt["memory"]["micro_batch_size"] for attempt in attempts(stopped)] == [2, 2]
    assert stopped.log_path.read_text().count("out of memory") == 2
    assert outcome(stopped) == outcome(parts)


def test_a_bad_image_is_found_in_its_part(make_run):
    run = make_run("training.learning_rate=1e30", "training.steps=40", "execution.micro_batch_size=3")
    with pytest.raises(RuntimeError, match=r"first non-finite tensor: (nan|inf) in .*backbone\."):
        run_training(run)


def test_models_that_mix_images_stay_whole(make_run):
    settings = ["model.name=xcit_nano_12_p16_224", "model.img_size=32", "training.steps=1"]
    run = make_run(*settings, "execution.memory_limit_gib=0.0001")
    run_training(run)
    assert attempts(run)[0]["memory"]["micro_batch_size"] == 8
    assert "this may not fit" in run.log_path.read_text()
    for override in ("execution.micro_batch_size=4", "execution.activation_checkpointing=on"):
        with pytest.raises(UserError, match=r"needs its whole batch in one pass \(batch norm in patch_embed"):
            run_training(make_run(*settings, override, study=override))


def attempts(run):
    return run.read_json("environment.json")["attempts"]
