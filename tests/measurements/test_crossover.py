"""The search for the crossing, on machines whose speed is known, and once on this one."""

from functools import partial

import pytest
import torch

from patchscale.measurements import crossover as crossover_module
from patchscale.measurements.crossover import (
    CannotTry,
    OutOfTime,
    StepFailed,
    Trial,
    at_side,
    compare_models,
    find_crossover,
)
from patchscale.measurements.step import StepConfig


def machine(crossing):
    """Attention takes n^2 microseconds, the scan `crossing` * n: they meet at `crossing` tokens. Nobody waits."""

    def compare(side, seconds_left):
        n = side * side
        ratio = n / crossing
        return Trial(
            tokens=n,
            img_size=side,
            patch_size=1,
            first_s=1e-6 * n * n,
            second_s=1e-6 * n * crossing,
            ratio=ratio,
            ratio_25=0.9 * ratio,
            ratio_75=1.1 * ratio,
            spent_s=1e-6 * n * n,
        )

    return compare


search = partial(find_crossover, max_tokens=50_176, time_limit_s=1e9)


@pytest.mark.parametrize("crossing", [20, 100, 784, 3000, 12_345, 49_000])
def test_the_bracket_holds_the_crossing_and_is_narrow(crossing):
    found = search(machine(crossing))
    assert found.last_first <= crossing < found.first_second
    sides = found.last_first**0.5, found.first_second**0.5
    assert found.first_second / found.last_first <= 1.1 or sides[1] - sides[0] == 1
    assert len(found.trials) < 20
    assert f"between {found.last_first:,} tokens" in found.sentence("vit", "adventurer")


def test_no_crossing_is_said_plainly():
    found = search(machine(10**9))
    assert found.first_second is None
    assert found.last_first == 50_176
    sentence = found.sentence("vit", "adventurer", "training step")
    assert sentence.startswith(
        "no crossing: a training step of vit is faster than one of adventurer at every size up to 50,176 tokens"
    )
    assert "the most tokens allowed (50,176)" in sentence


def test_faster_from_the_start():
    found = search(machine(1))
    assert found.last_first is None
    assert len(found.trials) == 1
    assert "already at 16 tokens" in found.sentence("vit", "adventurer")


def test_a_size_that_would_not_end_in_time_is_not_begun():
    found = search(machine(10**9), time_limit_s=60)
    assert found.last_first == 64**2  # the next, 91 x 91, would take 69 s
    assert found.stopped_by == "the time limit (60 s)"


def test_a_size_that_does_not_fit_ends_the_search():
    def compare(side, seconds_left):
        if side > 30:
            raise CannotTry("out of memory")
        return machine(10**9)(side, seconds_left)

    found = search(compare)
    assert found.last_first == 529
    assert "1,024 tokens: out of memory" in found.sentence("vit", "adventurer")


def test_ctrl_c_keeps_what_was_found():
    def compare(side, seconds_left):
        if side > 10:
            raise KeyboardInterrupt
        return machine(10**9)(side, seconds_left)

    found = search(compare)
    assert found.interrupted
    assert len(found.trials) == 3


def ending_at(side, error, crossing=10**9):
    """The machine, up to a size at which it raises."""

    def compare(given, seconds_left):
        if given >= side:
            raise error
        return machine(crossing)(given, seconds_left)

    return compare


@pytest.mark.parametrize(
    ("compare", "max_tokens", "stopped_by"),
    [
        (machine(10**9), 1000, "the most tokens allowed (1,000)"),
        (machine(1), 1000, "the second model, which is faster already at the fewest tokens (16)"),
        (machine(20), 1000, "neighbouring sizes (4 x 4 and 5 x 5 tokens)"),
        (machine(3000), 50_176, "a bracket of a tenth"),
        (ending_at(8, OutOfTime("not done within 3 s")), 1000, "the time limit (50 s), reached at 64 tokens"),
        (ending_at(8, CannotTry("out of memory")), 1000, "64 tokens: out of memory"),
        (ending_at(8, StepFailed("its process died (SIGSEGV)")), 1000, "64 tokens: its process died (SIGSEGV)"),
        (ending_at(8, KeyboardInterrupt()), 1000, "Ctrl-C"),
    ],
)
def test_the_record_says_why_the_search_ended(compare, max_tokens, stopped_by):
    found = find_crossover(compare, max_tokens=max_tokens, time_limit_s=50)
    assert found.stopped_by == found.record()["stopped_by"] == stopped_by
    assert found.interrupted == (stopped_by == "Ctrl-C")
    assert found.failed == ("SIGSEGV" in stopped_by)
    assert found.complete == ("64 tokens" not in stopped_by and not found.interrupted)


def test_a_bracket_that_stayed_wide_says_why():
    def compare(side, seconds_left):
        if 8 < side < 11:
            raise StepFailed("the result of vit is not finite (nan)")
        return machine(90)(side, seconds_left)

    found = search(compare)
    assert (found.last_first, found.first_second) == (64, 121)
    assert found.failed
    assert found.sentence("vit", "adventurer").endswith(
        "; the search was stopped by 81 tokens: the result of vit is not finite (nan)"
    )


def test_every_size_is_handed_over_as_soon_as_it_is_measured():
    seen = []
    found = search(machine(100), keep=lambda partly: seen.append([trial.tokens for trial in partly.trials]))
    assert [len(tokens) for tokens in seen] == list(range(1, len(found.trials) + 1))
    assert seen[-1] == [trial.tokens for trial in found.trials]


TINY = partial(StepConfig, patch_size=2, img_size=8, device="cpu", num_classes=10)
QUICKLY = {"warm_up": 0, "repetitions": 1, "num_threads": 1}


@pytest.mark.parametrize(
    ("options", "timeout_s", "kind", "words"),
    [
        ({"batch_size": 2**45}, None, CannotTry, "^out of memory$"),
        ({"batch_size": -1}, None, StepFailed, "^RuntimeError: .*negative dimension"),
        ({"batch_size": 2**13}, 0.02, OutOfTime, "not done within"),
    ],
)
def test_what_cannot_be_tried_says_of_what_kind_it_is(options, timeout_s, kind, words):
    config = TINY(model="vit_test", **options)
    with pytest.raises(CannotTry, match=words) as caught:
        compare_models(config, config, **QUICKLY, timeout_s=timeout_s)
    assert type(caught.value) is kind


def test_a_loss_that_is_not_finite_is_a_failure(monkeypatch):
    build_step = crossover_module.build_step

    def poisoned(config, device):
        model, step = build_step(config, device)
        if config.model == "adventurer_test":
            torch.nn.init.constant_(model.head.bias, float("nan"))
        return model, step

    monkeypatch.setattr(crossover_module, "build_step", poisoned)
    found = crossover_module._compare_here(TINY(model="vit_test"), TINY(model="adventurer_test"), **QUICKLY)
    assert isinstance(found, StepFailed)
    assert str(found) == "the result of adventurer_test is not finite (nan)"


def test_both_models_on_this_machine():
    first, second = (
        StepConfig(model=name, patch_size=2, device="cpu", num_classes=10) for name in ("vit_test", "adventurer_test")
    )
    trial = compare_models(at_side(first, 4), at_side(second, 4), warm_up=1, repetitions=3, num_threads=1)
    assert (trial.tokens, trial.img_size) == (16, 8)
    assert trial.ratio_25 <= trial.ratio <= trial.ratio_75
    # Which is faster is the machine's affair; of three timed steps two took the median or longer.
    assert 0 < 2 * max(trial.first_s, trial.second_s) <= trial.spent_s
