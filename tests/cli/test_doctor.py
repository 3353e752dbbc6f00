"""`patchscale doctor`: what is here, which scan runs and why, and a self-test that can fail."""

import json
import re

import pytest
import torch

from patchscale.measurements import self_test
from patchscale.models.ssd import backends


def rows(out):
    return {line.split("\t")[0]: line.split("\t")[1] for line in out.splitlines()}


def test_a_healthy_machine_passes(call):
    code, out, said = call("doctor")
    found = rows(out)
    assert code == 0, out
    assert {"patchscale", "python", "torch", "timm", "triton", "cpu cores", "accelerator"} <= found.keys()
    assert found["state-space scan on cpu"].startswith("chunked: plain torch, since")
    assert found["self-test: scan chunked on cpu"].startswith("pass: largest relative error ")
    fused = "|".join(self_test.FUSED)
    assert re.match(rf"pass: ({fused}) kernel, largest relative error ", found["self-test: fused attention on cpu"])
    for model in ("vit_test", "adventurer_test"):
        assert found[f"self-test: training step of {model} on cpu"].startswith("pass: loss ")
    assert " checks passed in " in found["self-test"]
    assert "testing this machine" in said


def test_the_self_test_can_be_left_out(call):
    code, out, said = call("doctor", "--no-self-test", "--json")
    assert code == 0
    assert not any(finding["item"].startswith("self-test") for finding in json.loads(out))
    assert not said


def test_a_wrong_scan_fails(call, monkeypatch):
    right = backends.SSD_BACKENDS["chunked"]

    def wrong(x, dt, A, B, C, D, **options):
        y, state = right(x, dt, A, B, C, D, **options)
        return 1.1 * y, state

    monkeypatch.setitem(backends.SSD_BACKENDS, "chunked", wrong)
    code, out, _ = call("doctor")
    assert code == 1
    found = rows(out)
    assert found["self-test: scan chunked on cpu"].startswith("FAIL: ScanMismatch: the chunked scan is wrong on cpu")
    assert found["self-test: training step of vit_test on cpu"].startswith("pass")  # the other checks still run
    assert " checks passed in " in found["self-test"]


def test_a_loss_that_is_not_finite_fails(call, monkeypatch):
    build = self_test.build_step

    def poisoned(config, device):
        model, step = build(config, device)
        with torch.no_grad():
            next(model.parameters()).fill_(float("nan"))
        return model, step

    monkeypatch.setattr(self_test, "build_step", poisoned)
    code, out, _ = call("doctor", "--json")
    assert code == 1
    failed = [finding for finding in json.loads(out) if finding.get("passed") is False]
    assert [finding["item"] for finding in failed] == [
        "self-test: training step of vit_test on cpu",
        "self-test: training step of adventurer_test on cpu",
    ]
    assert all("loss nan after an update" in finding["found"] for finding in failed)


def test_without_a_fused_kernel_attention_fails(monkeypatch):
    monkeypatch.setattr(self_test, "FUSED", {"cuDNN": self_test.FUSED["cuDNN"]})  # which no CPU has
    check = next(check for check in self_test.self_test() if check.name == "fused attention on cpu")
    assert not check.passed
    assert "no fused kernel runs, so attention needs memory quadratic in tokens (cuDNN: " in check.words


@pytest.mark.gpu
def test_the_gpu_passes(call):
    code, out, _ = call("doctor")
    assert code == 0, out
    assert rows(out)["self-test: scan triton on cuda"].startswith("pass")
