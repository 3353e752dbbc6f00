"""The training loop: batch, forward, backward, clip, step, log, validate, save.

Randomness is a function of (seed, step) and (seed, epoch, index), so a resumed run repeats the undisturbed one
without any saved generator state; on a CPU it does so bit for bit.
"""

import math
import signal
import time
from contextlib import closing, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from patchscale.config import RunConfig
from patchscale.errors import UserError
from patchscale.runs.record import RunDirectory
from patchscale.runs.stages import stage_columns
from patchscale.training.bystander import as_seen_by
from patchscale.training.checkpoint import Checkpoints, Totals, remove_leftovers, save_weights
from patchscale.training.collective import on_every_rank, on_rank_0
from patchscale.training.device import peak_memory_bytes, resolve_device, torch_settings
from patchscale.training.diagnose import first_non_finite
from patchscale.training.distributed import Ranks, joined
from patchscale.training.failures import ending_recorded, hang_recorded
from patchscale.training.initial_weights import load_initial_weights
from patchscale.training.interrupt import Interrupted, StopSignals
from patchscale.training.journal import Journal, Watcher, truncate_metrics
from patchscale.training.memory import MemoryPlan, plan_memory
from patchscale.training.optim import learning_rate_at, set_learning_rate
from patchscale.training.rollback import NonFinite, Rollback, with_rollback
from patchscale.training.setup import Setup, micro_batches, set_up
from patchscale.training.sharding import gradient_norm, scale_gradients
from patchscale.training.summary import (
    memory_of_last_attempt,
    record_environment,
    record_memory,
    result_row,
    threads_of_first_attempt,
    weights_metadata,
)

ECHO_S = 5.0
"""torchrun passes a signal on to its processes, which on Ctrl-C have had it already."""


def run_training(run: RunDirectory, *, progress: Watcher | None = None) -> dict[str, Any]:
    """Train the run in this directory to its end, from its checkpoint if it has one; return its row of results.

    A finished run is returned as it is. Raises `UserError` (wrong config, damaged checkpoint, run held by another
    process), `RunFailed` (with its kind) or `Interrupted`; status.json then says the same.
    """
    config = run.config()
    with joined(config.execution) as ranks:
        return _run(config, ranks, *as_seen_by(ranks, run, progress or Watcher()))


def _run(config: RunConfig, ranks: Ranks, run: RunDirectory, journal: Journal) -> dict[str, Any]:
    device = ranks.own_device(resolve_device(config.execution.device))
    num_threads = config.execution.num_threads or threads_of_first_attempt(run)
    ranks.watch.record = partial(hang_recorded, run)
    checkpoints = Checkpoints(
        run.checkpoint_dir,
        identity=config.identity,
        keep_last=config.execution.keep_checkpoints,
        keep_best=config.execution.keep_best,
        say=journal.say,
    )
    with (
        run.lock(),
        StopSignals(echo_s=ECHO_S if ranks.size > 1 else 0) as signals,
        ending_recorded(run, config, journal, ranks),
        torch_settings(num_threads, device),
    ):
        # In this order a kill at any point leaves a directory from which the next call reaches the same end.
        result = run.result()
        if result is None:
            try:
                train = partial(_train, run, config, device, ranks, journal, signals, checkpoints)
                result = with_rollback(train, config, journal)
                run.write_json("result.json", result)
                journal.result(result)
            finally:
                journal.close()
        if run.status()["state"] != "done":
            run.write_status("done")
        on_rank_0(checkpoints.clear)
        return result


def _train(
    run: RunDirectory,
    config: RunConfig,
    device: torch.device,
    ranks: Ranks,
    journal: Journal,
    signals: StopSignals,
    checkpoints: Checkpoints,
    rollback: Rollback | None,
) -> dict[str, Any]:
    """From the last checkpoint to the final weights; returns the row of results, unwritten."""
    started = time.perf_counter()
    training, execution = config.training, config.execution
    run.write_status("running")
    setup = set_up(config, device, ranks)
    task, state, steps = setup.task, setup.state, setup.steps
    validation_steps = {round(steps * k / training.num_validations) for k in range(1, training.num_validations + 1)}

    # Go on where an earlier attempt stopped.
    ranks.watch.moved("loading weights")
    on_rank_0(lambda: remove_leftovers(run.path))
    resumed = checkpoints.load(state)
    if resumed:
        _require_same_data(run, setup.splits.record)
    elif training.init_from is not None or training.init_run is not None:
        with setup.whole_at_first() as whole:
            report = load_initial_weights(run, config, whole)
        for line in str(report).splitlines():
            journal.say(line)
    totals = state.totals
    earlier_time_s = totals.wall_time_s
    on_rank_0(lambda: truncate_metrics(run.metrics_path, totals.step))
    journal.track(totals.step)
    if rollback is not None:
        rollback.begin(totals, journal)
    before = on_rank_0(lambda: memory_of_last_attempt(run, device) if resumed else None)
    classes, rows = setup.splits.num_classes, setup.most_rows
    plan = plan_memory(config, task.backbone, classes, device, before, ranks=ranks, rows=rows)
    task.backbone.set_grad_checkpointing(plan.activation_checkpointing)  # type: ignore[operator]
    record_environment(run, config, device, first_step=totals.step, memory=plan, ranks=ranks)
    run.write_json("data.json", setup.splits.record)
    run.write_status("running", step=totals.step, steps=steps)
    where = device.type if ranks.size == 1 else f"{ranks.size} processes ({execution.parallel}) on {device.type}"
    journal.say(f"{'resumed at' if resumed else 'starting at'} step {totals.step} of {steps} on {where}")
    journal.say(str(plan))

    def measure() -> None:
        totals.wall_time_s = earlier_time_s + time.perf_counter() - started
        totals.peak_memory_bytes = max(totals.peak_memory_bytes, peak_memory_bytes(device))

    parameters = list(task.parameters())  # to look them up in a deep model takes milliseconds
    todo = range(totals.step, steps)
    saved_at = lap = time.perf_counter()
    with closing(setup.batches(todo)) as batches:
        for step, (images, targets) in zip(todo, batches, strict=True):
            # Forward, backward.
            ranks.watch.moved(f"computing step {step + 1} of {steps}")
            learning_rate = learning_rate_at(step, steps, training) * totals.learning_rate_factor
            set_learning_rate(state.optimizer, learning_rate)
            images, targets = setup.mix(step, images, targets)
            loss, plan = _backward(setup, step, images, targets, plan, run, journal)
            norm = gradient_norm(parameters)

            # The step's only wait for the device, before the weights are touched: nothing non-finite may reach them.
            loss_value, grad_norm = torch.stack([loss.detach().float(), norm.float()]).tolist()
            if not (math.isfinite(loss_value) and math.isfinite(grad_norm)):
                raise _non_finite(setup, step, loss_value, learning_rate, plan.micro_batch_size)
            if training.clip_grad_norm is not None and grad_norm > training.clip_grad_norm:
                scale_gradients(parameters, training.clip_grad_norm / grad_norm)

            # Step.
            state.optimizer.step()
            state.optimizer.zero_grad()
            if state.ema is not None:
                state.ema.update(task, step=step + 1)

            # Log.
            now = time.perf_counter()
            totals.add_step(loss_value, now - lap, is_final=step >= steps - math.ceil(steps / 10))
            done = totals.step
            epoch = done * training.batch_size / len(setup.splits.train)
            journal.watcher.step_done(done, steps, loss_value)
            if done % execution.log_every_steps == 0 or done == steps:
                measure()
                journal.row(
                    "train",
                    done,
                    epoch=epoch,
                    learning_rate=learning_rate,
                    grad_norm=grad_norm,
                    wall_time_s=totals.wall_time_s,
                    **totals.take_window(training.batch_size),
                )

            # Validate.
            validated = done in validation_steps
            if validated:
                totals.validation = setup.evaluate(setup.splits.val, plan.micro_batch_size)
                _require_finite(totals.validation, "validation", totals)
                measure()
                journal.row("val", done, epoch=epoch, wall_time_s=totals.wall_time_s, **totals.validation)
                journal.say(_validation_words(done, steps, totals.validation, task.metric_name))

            # Save.
            overdue = time.perf_counter() - saved_at >= execution.checkpoint_every_s
            stop, due = ranks.agree(signals.received or 0, overdue)
            if done == steps or stop or due or (validated and execution.keep_best):
                ranks.watch.moved(f"saving after step {done}")
                measure()
                run.beat()
                checkpoints.save(state, loss=totals.validation["loss"] if validated else None)
                run.write_status("running", step=done, steps=steps)
                saved_at = time.perf_counter()
            if stop:
                again = f"go on with: patchscale train --run-dir {run.path}"
                raise Interrupted(signal.Signals(stop), f"stopped at step {done} of {steps}, saved; {again}")
            ranks.watch.moved(f"waiting for the images of step {done + 1}")
            lap = time.perf_counter()

    # The test split is looked at once, after the last step.
    test = setup.evaluate(setup.splits.test, plan.micro_batch_size)
    _require_finite(test, "test", totals)
    measure()
    totals.peak_memory_bytes = ranks.largest(totals.peak_memory_bytes)
    for name, weights in state.final_weights.items():
        save_weights(run.checkpoint_dir / name, weights, weights_metadata(config, name))
    journal.say(f"done: test {task.metric_name} {test['metric']:.4f}, test loss {test['loss']:.4f}")
    row = result_row(setup, test)
    return row | stage_columns(run, config, row["flops_train_total"])


def _backward(
    setup: Setup, step: int, images: Tensor, targets: Tensor, plan: MemoryPlan, run: RunDirectory, journal: Journal
) -> tuple[Tensor, MemoryPlan]:
    """The step's loss, its gradients in the parameters; in smaller parts from now on if memory runs out on the way."""
    while True:
        try:
            return setup.backward(step, images, targets, plan.micro_batch_size), plan
        except torch.OutOfMemoryError:
            if not plan.may_shrink:
                raise
        # No weight has changed yet. Out of the handler, so that the error no longer holds on to the step's tensors.
        setup.task.zero_grad()
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()
        plan = plan.halved()
        record_memory(run, plan)
        journal.say(f"out of memory at step {step + 1}; repeated in parts of {plan.micro_batch_size} images")


def _non_finite(setup: Setup, step: int, loss: float, learning_rate: float, micro_batch_size: int) -> NonFinite:
    """Repeat the step to name the first bad tensor; the batch is fetched anew because mixing writes to it."""
    ((images, targets),) = setup.batches(range(step, step + 1), num_workers=0)
    images, targets = setup.mix(step, images, targets)
    first = None
    # Compiled code has no modules to look at. Where ranks need each other none can look at its own images.
    alone = setup.ranks.sharing == 1 and not isinstance(setup.task, FSDPModule)
    parts = micro_batches(len(images), micro_batch_size) if alone else []
    with torch.compiler.set_stance("force_eager") if setup.config.execution.compile else nullcontext():
        for rows in parts:
            with setup.batch_rows(rows.start, images):
                part = images[rows], targets[rows]
                first = first or first_non_finite(setup.task, part[0], partial(setup.loss, step, *part))
    first = next((found for found in on_every_rank(lambda: first) if found), None)
    if not alone:
        first = "not looked for with execution.parallel=fsdp or execution.sequence_parallel"
    first = first or "none when the step is repeated; a norm overflowed, or the device does not repeat itself exactly"
    what = "gradient" if math.isfinite(loss) else f"loss ({loss})"
    return NonFinite(
        f"non-finite {what} at step {step + 1} of {setup.steps}; first non-finite tensor: {first}; "
        f"learning rate {learning_rate:.3g}: lower training.learning_rate or check the data",
        step + 1,
        setup.state.totals,
    )


def _require_same_data(run: RunDirectory, record: dict[str, Any]) -> None:
    """A resumed run must go on with the images it began with."""
    before = run.read_json("data.json")
    if before and before["fingerprint"] != record["fingerprint"]:
        raise UserError(
            f"{run.path}: the data has changed since this run began (fingerprint {before['fingerprint'][:12]}, now "
            f"{record['fingerprint'][:12]}); restore it, or move {run.checkpoint_dir} away to start afresh"
        )


def _require_finite(measured: dict[str, Any], split: str, totals: Totals) -> None:
    if not math.isfinite(measured["loss"]):
        step, loss = totals.step, measured["loss"]
        message = f"loss on the {split} split is {loss} after step {step}; lower training.learning_rate"
        raise NonFinite(message, step, totals)


def _validation_words(step: int, steps: int, measured: dict[str, Any], metric_name: str) -> str:
    return f"step {step} of {steps}: val {metric_name} {measured['metric']:.4f}, val loss {measured['loss']:.4f}"
