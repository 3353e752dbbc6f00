"""Runs that cannot finish say why, and the directory remembers it."""

from pathlib import Path

import pytest
import torch
from tests.training.conftest import start_process

from patchscale.errors import RunFailed, UserError
from patchscale.training.checkpoint import Checkpoints
from patchscale.training.loop import run_training
from patchscale.training.setup import set_up


def test_divergence_names_the_step_and_the_tensor(make_run):
    run = make_run("training.learning_rate=1e30", "training.steps=40")
    with pytest.raises(RunFailed, match=r"non-finite .* at step \d+ of 40; first non-finite tensor: ") as caught:
        run_training(run)
    assert caught.value.kind == "non_finite"
    assert "backbone." in str(caught.value)
    status = run.status()
    assert (status["state"], status["kind"], status["message"]) == ("failed", "non_finite", str(caught.value))
    assert run.result() is None
    # It does so again, from the checkpoint or from the beginning.
    with pytest.raises(RunFailed) as again:
        run_training(run)
    assert str(again.value) == str(caught.value)


def test_poisoned_weights_are_found_in_the_checkpoint(make_run):
    run = make_run("execution.checkpoint_every_s=0")

    class Stop(Exception):
        pass

    # Train two steps, then poison one weight of the checkpoint as a failing disk or GPU would.
    from patchscale.training.journal import Watcher

    class StopAtThree(Watcher):
        def step_done(self, step, total_steps, loss):
            if step == 3:
                raise Stop

    with pytest.raises(RunFailed, match=r"^Stop: Stop \(traceback in log\.txt\)") as crashed:
        run_training(run, progress=StopAtThree())
    assert crashed.value.kind == "crash"
    assert "Traceback" in run.log_path.read_text()
    checkpoints = Checkpoints(run.checkpoint_dir, identity=run.config().identity)
    state = set_up(run.config(), torch.device("cpu")).state
    assert checkpoints.load(state)
    name = next(name for name, _ in state.task.named_parameters() if name.endswith("blocks.1.norm1.weight"))
    with torch.no_grad():
        state.task.get_parameter(name)[0] = float("nan")
    checkpoints.save(state)
    with pytest.raises(RunFailed, match=f"at step 3 of 12; first non-finite tensor: nan in parameter {name}"):
        run_training(run)


def test_out_of_memory_comes_with_advice(make_run, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)  # where the new process finds what it is to run
    from little_memory import train_in_little_memory

    run = make_run("model.patch_size=1", "model.img_size=32", "training.batch_size=256", "training.steps=2")
    process = start_process(train_in_little_memory, str(run.path), 200 * 2**20)
    process.join()
    assert process.exitcode == 7, run.status()
    status = run.status()
    assert (status["state"], status["kind"]) == ("failed", "out_of_memory")
    assert "execution.activation_checkpointing=on" in status["message"]
    assert "a smaller execution.micro_batch_size" in status["message"]
    assert "training.precision=bf16" in status["message"]


def test_a_damaged_checkpoint_is_the_users_to_mend(make_run):
    run = make_run()
    path = run.checkpoint_dir / "step-00000003"
    path.mkdir(parents=True)
    (path / "manifest.json").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"step-00000003: damaged checkpoint"):
        run_training(run)
    assert run.status()["kind"] == "config"
    path.rename(run.path / "moved away")
    assert run_training(run)["status"] == "done"


def test_a_device_that_is_not_here(make_run):
    if torch.cuda.is_available():
        pytest.skip("this machine has the device")
    with pytest.raises(UserError, match=r"execution\.device=cuda: no such device here \(available: .*cpu\)"):
        run_training(make_run("execution.device=cuda"))
