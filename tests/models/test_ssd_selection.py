"""Which scan runs where: the choice, its reason, and the check against the definition before first use."""

import logging

import pytest
import torch
from tests.models.test_ssd import random_inputs

from patchscale.errors import UserError
from patchscale.models.ssd import backend_and_reason, resolve_backend, self_check, ssd_scan
from patchscale.models.ssd.backends import SSD_BACKENDS
from patchscale.models.ssd.chunked import ssd_chunked
from patchscale.models.ssd.selection import ScanMismatch, _choose, _why_not_triton

CPU = torch.device("cpu")


def test_auto_on_a_cpu_is_plain_torch_and_says_why() -> None:
    assert resolve_backend("auto", CPU) == "chunked"
    assert backend_and_reason(CPU) == (
        "chunked",
        "plain torch, since the Triton kernels are for CUDA devices and this is cpu",
    )


def test_the_choice_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    _choose.cache_clear()
    with caplog.at_level(logging.INFO, logger="patchscale"):
        for _ in range(3):
            ssd_scan(**random_inputs(5))
    assert [record.message.partition(" (")[0] for record in caplog.records] == ["state-space scan: chunked"]


def test_an_implementation_can_be_forced() -> None:
    inputs = random_inputs(40)
    assert resolve_backend("reference", CPU) == "reference"
    torch.testing.assert_close(ssd_scan(**inputs, backend="reference"), ssd_scan(**inputs, backend="chunked"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fast", "ssd_backend 'fast' is unknown; choose one of auto, triton, chunked, reference"),
        (
            "triton",
            "triton cannot run here: the Triton kernels are for CUDA devices and this is cpu",
        ),
    ],
)
def test_what_cannot_run_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ssd_scan(**random_inputs(3), backend=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they can run")
@pytest.mark.parametrize("option", ["--ssd-backend ", "execution.ssd_backend="])
def test_a_refusal_names_the_option_that_was_given(option: str) -> None:
    with pytest.raises(UserError, match=f"^{option}'fast' is unknown"):
        resolve_backend("fast", CPU, option=option)
    with pytest.raises(UserError, match=f"^{option}triton cannot run here: .*; use {option}auto or {option}chunked$"):
        resolve_backend("triton", CPU, option=option)


@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad, lambda: torch.autocast("cpu")])
def test_the_check_passes_for_what_is_right_wherever_it_is_called(surroundings) -> None:  # type: ignore[no-untyped-def]
    with surroundings():
        assert 0 < self_check("chunked", CPU) < 5e-5


@pytest.mark.parametrize("fault", ["no skip", "late decay", "leak", "nan", "zero gradient"])
def test_the_check_catches_a_wrong_scan(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def wrong(x, dt, A, B, C, D, **options):  # type: ignore[no-untyped-def]
        match fault:
            case "no skip":
                D = 0 * D
            case "late decay":
                A = A * 1.02
            case "zero gradient":
                B = B.detach() + 0 * B
        y, state = ssd_chunked(x, dt, A, B, C, D, **options)
        if fault == "leak":  # a tenth of the token before
            y = y + 0.1 * x.roll(1, dims=1)
        return y * (float("nan") if fault == "nan" else 1), state

    monkeypatch.setitem(SSD_BACKENDS, "chunked", wrong)
    with pytest.raises(ScanMismatch, match="the chunked scan is wrong on cpu: relative error"):
        self_check("chunked", CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they can run")
def test_kernels_that_cannot_run_are_not_chosen_and_the_reason_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a CUDA machine whose kernels fail to compile: here they fail for want of any CUDA device."""
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    _choose.cache_clear(), _why_not_triton.cache_clear()
    try:
        name, reason = backend_and_reason(torch.device("cuda"))
    finally:
        _choose.cache_clear(), _why_not_triton.cache_clear()
    assert name == "chunked"
    assert "the Triton kernels failed their check:" in reason
