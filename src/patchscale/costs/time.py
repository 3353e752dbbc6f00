"""How long a step takes, and how many device-hours a run: assumed for a named device, calibrated for a measured one.

Assumed is a share of the device's stated peak (model FLOPs utilisation, MFU; what is computed again does not count as
done): one number for each architecture, from the GPU-hours of arXiv 2502.03738, Table 6. It is that of Base models;
narrower ones use less of a GPU, so their times come out too short. A profile (`patchscale.costs.profile`) knows better.
"""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from patchscale.costs.counts import Counts
from patchscale.costs.hardware import DEVICES, NamedDevice, is_a, named_device
from patchscale.costs.profile import DeviceProfile, list_profiles, load_profile, readable_profiles
from patchscale.costs.roofline import executed_macs, step_work
from patchscale.errors import UserError

ASSUMED_MFU = {"vit": 0.3228, "adventurer": 0.3187}
"""Of the A100's 312 TFLOP/s in training: the values with the smallest largest error over the five patch sizes of
Table 6 (DeiT-Base 11.0 %, Adventurer-Base 2.5 %); a test derives both, `benchmarks/cost_accuracy.py` prints all ten."""
BUSY = 1.25
"""Ratio of two measurements of a step from which on a calibration is said to have been disturbed."""
TABLE_6 = "GPU-hours of arXiv 2502.03738, Table 6"


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """One step: forward, loss, backward and optimizer in training, the forward pass alone at inference."""

    step_time_s: float
    images_per_s: float
    tokens_per_s: float
    """Patches of the images in a second; class and mean tokens are not counted."""
    calibrated: bool
    """Whether it follows from steps that were measured on the device, or from an assumed share of its peak."""
    relative_error: float | None
    """Median absolute relative error of such predictions (calibration steps, each left out); None if not calibrated."""
    source: str
    """Where it comes from, in a sentence."""


def step_time(
    counts: Counts,
    *,
    device: str | DeviceProfile,
    train: bool = True,
    batch_size: int = 1,
    micro_batch_size: int | None = None,
    precision: str | None = None,
    activation_checkpointing: bool = False,
    num_threads: int | None = None,
) -> StepTime:
    """Time of one step of `batch_size` images on `device`: a profile, its name, or a name of `hardware.DEVICES`.

    A batch in parts of `micro_batch_size` takes longer by what each pass costs whatever its size; a profile knows it.

    A named device ("h100", "cpu") is calibrated if a profile of one is stored. `precision` is that of the profile, or
    bf16, if not given. Profiles of other threads than `num_threads`, or of another torch version, are used, and
    `source` says so. Raises `UserError` for an unknown device, a CPU without a profile, a precision of which nothing is
    known, and a damaged profile.
    """
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: a step needs at least one image")
    found = find_device(device, precision=precision, num_threads=num_threads)
    if isinstance(found, DeviceProfile):
        profile = found
        if precision not in (None, profile.precision):
            raise UserError(
                f"profile {profile.name} was measured in {profile.precision}, not {precision}; ask for that precision, "
                f"or run patchscale cost --calibrate --precision {precision}"
            )
        speeds = profile.train if train else profile.infer
        work = step_work(
            counts,
            train=train,
            batch_size=batch_size,
            micro_batch_size=micro_batch_size,
            activation_checkpointing=activation_checkpointing,
        )
        return _step_time(
            counts,
            speeds.time_s(work),
            batch_size=batch_size,
            calibrated=True,
            relative_error=speeds.leave_one_out_error,
            source=_calibrated_words(profile, train=train, num_threads=num_threads),
        )
    named = found
    if named.peak_bf16_flops_per_s is None:
        raise UserError(f"nothing can be assumed of the speed of device {named.name}; run patchscale cost --calibrate")
    if precision not in (None, "bf16", "fp16"):
        raise UserError(
            f"the speed of {named.name} in {precision} is not known, only in bf16; choose that, or run "
            f"patchscale cost --calibrate --precision {precision} on one"
        )
    architecture = counts.shape.architecture if counts.shape is not None else "vit"
    mfu = ASSUMED_MFU[architecture]
    flops: float = counts.flops_train if train else counts.flops_forward
    if train and activation_checkpointing:
        flops *= flops_train_executed(counts, activation_checkpointing=True) / flops_train_executed(counts)
    return _step_time(
        counts,
        batch_size * flops / (mfu * named.peak_bf16_flops_per_s),
        batch_size=batch_size,
        calibrated=False,
        relative_error=None,
        source=_assumed_words(named, mfu, train=train, counted=counts.shape is None),
    )


def find_device(
    device: str | DeviceProfile, *, precision: str | None = None, num_threads: int | None = None
) -> DeviceProfile | NamedDevice:
    """A stored profile of that name, or the best one of that named device, or the named device alone.

    Raises `UserError` for a name that is neither, and for a damaged profile.
    """
    if isinstance(device, DeviceProfile):
        return device
    stored = list_profiles()
    if device in stored:
        return load_profile(device)
    named = named_device(device, also=stored)
    profiles = [profile for profile in readable_profiles() if _is_of(profile, named)]
    fitting = [profile for profile in profiles if precision in (None, profile.precision)]
    if profiles and not fitting and named.peak_bf16_flops_per_s is None:
        fitting = profiles  # their precision is refused in words
    if not fitting:
        return named
    return max(fitting, key=lambda profile: (profile.num_threads == num_threads, profile.date))


def device_memory_bytes(device: str | DeviceProfile) -> int | None:
    """Stated memory of a named device, or of the one that a profile is of; None for a CPU. Raises as `find_device`."""
    found = find_device(device)
    if not isinstance(found, DeviceProfile):
        return found.memory_bytes
    kinds = [named.memory_bytes for named in DEVICES.values() if is_a(found.device_name, named) and named.memory_bytes]
    printed = [memory for memory in kinds if f"{memory // 10**9}GB" in found.device_name.replace(" ", "")]
    return next(iter(printed or kinds), None)


def run_hours(time: StepTime, *, images: int) -> float:
    """Device-hours to process `images`, all epochs together; loading, evaluation and pauses not included."""
    return images / time.images_per_s / 3600


def flops_train_executed(counts: Counts, *, activation_checkpointing: bool = False) -> float:
    """FLOPs of a training step on one image with what is computed again: attention scores, and checkpointed blocks."""
    return 2 * sum(executed_macs(counts, train=True, activation_checkpointing=activation_checkpointing).values())


def _is_of(profile: DeviceProfile, named: NamedDevice) -> bool:
    return profile.device == "cpu" if named.name == "cpu" else is_a(profile.device_name, named)


def _step_time(
    counts: Counts,
    step_time_s: float,
    *,
    batch_size: int,
    calibrated: bool,
    relative_error: float | None,
    source: str,
) -> StepTime:
    images_per_s = batch_size / step_time_s
    return StepTime(
        step_time_s=step_time_s,
        images_per_s=images_per_s,
        tokens_per_s=images_per_s * counts.tokens,
        calibrated=calibrated,
        relative_error=relative_error,
        source=source,
    )


def _assumed_words(named: NamedDevice, mfu: float, *, train: bool, counted: bool) -> str:
    assert named.peak_bf16_flops_per_s is not None
    words = f"assumed MFU {mfu} of {named.peak_bf16_flops_per_s / 1e12:g} TFLOP/s (bf16, {named.title}), from {TABLE_6}"
    words += " (training of Base models on an A100)"
    beyond = [
        *(["this device"] if named.title != "A100" else []),
        *([] if train else ["inference"]),
        *(["this architecture"] if counted else []),
    ]
    if beyond:
        words += f"; assumed to hold for {' and '.join(beyond)} too"
    return words + "; not measured on this device; small steps, which do not fill it, take longer"


def _calibrated_words(profile: DeviceProfile, *, train: bool, num_threads: int | None) -> str:
    speeds = profile.train if train else profile.infer
    steps = sum(row["train"] == train for row in profile.measurements)
    words = (
        f"calibrated on {profile.device_name} ({profile.precision}, {_threads(profile.num_threads)}) on {profile.date} "
        f"from {steps} {'training' if train else 'inference'} steps, which it predicts with a median error of "
        f"{100 * speeds.leave_one_out_error:.0f} % when each is left out"
    )
    if num_threads is not None and profile.device == "cpu" and num_threads != profile.num_threads:
        words += f"; made with {_threads(profile.num_threads)}, not {num_threads}"
    if profile.repeats > BUSY:
        words += f"; the machine was busy then: the same step took up to {profile.repeats:.1f} times as long"
    installed = _installed_torch()
    if installed is not None and installed != profile.torch_version.partition("+")[0]:
        words += f"; made with torch {profile.torch_version}, not {installed}"
    return words


def _threads(number: int) -> str:
    return f"{number} CPU thread{'' if number == 1 else 's'}"


def _installed_torch() -> str | None:
    """The version of torch without its build, not importing it; None if it is missing."""
    try:
        return version("torch").partition("+")[0]
    except PackageNotFoundError:
        return None
