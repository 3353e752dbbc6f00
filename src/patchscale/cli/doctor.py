"""`patchscale doctor`: what this machine has, and what is missing for which use."""

from typing import Annotated, Any

import typer

Finding = dict[str, Any]
"""item, found and remedy; a check of the self-test also has "passed"."""


def doctor(
    self_test: Annotated[
        bool, typer.Option("--self-test/--no-self-test", help="Also check that this machine computes the right thing.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show versions, devices, data and the scan that runs, with a remedy for what is missing, then test the machine.

    The self-test compares scan and attention with float64, forward and gradients, and trains two tiny models for a
    step, on every device. It takes about 5 seconds; if it fails, the exit code is 1.
    """
    from patchscale.cli.output import print_json, print_table

    findings, torch_works = _findings()
    if self_test:
        findings += _self_test() if torch_works else [_row("self-test", "not run: it needs the training half")]
    if json:
        print_json(findings)
    else:
        print_table(findings, columns=["item", "found", "remedy"])
    if any(finding.get("passed") is False for finding in findings):
        raise typer.Exit(1)


def _row(item: str, found: str, remedy: str = "") -> Finding:
    return {"item": item, "found": found, "remedy": remedy}


def _findings() -> tuple[list[Finding], bool]:
    """What there is, and whether torch can be used."""
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from patchscale import __version__

    rows = [
        _row("patchscale", __version__),
        _row("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    missing = False
    for package in ("numpy", "scipy", "pandas", "torch", "torchvision", "timm", "triton", "safetensors"):
        try:
            rows.append(_row(package, version(package)))
        except PackageNotFoundError:
            if package == "triton":
                rows.append(
                    _row(package, "missing", "optional; on a CUDA device it makes the scan several times faster")
                )
                continue
            missing = True
            rows.append(_row(package, "missing", "needed to train: pip install 'patchscale[train]'"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    rows.append(_row("cpu cores", f"{cores}, OMP_NUM_THREADS {threads}"))
    if missing:
        return rows, False
    more, torch_works = _torch_findings()
    return rows + more, torch_works


def _torch_findings() -> tuple[list[Finding], bool]:
    from pathlib import Path

    try:
        import torch
    except (ImportError, OSError) as error:
        return [_row("torch import", f"fails: {error}", "install it again: pip install --force-reinstall torch")], False
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        remedy = "torch and torchvision do not match; install both in one command from one index"
        return [_row("torchvision import", f"fails: {error}", remedy)], False
    from patchscale.training.device import available_devices

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        devices = f"{torch.cuda.device_count()} x {properties.name}, {memory}, CUDA {torch.version.cuda}"
    elif torch.backends.mps.is_available():
        devices = "Apple GPU (mps)"
    else:
        devices = "none: training runs on the CPU"
    debian = Path("/usr/share/datasets/fashion-mnist")
    rows = [
        _row("accelerator", devices),
        *(_row(f"state-space scan on {kind}", _scan_words(kind)) for kind in available_devices()),
        _row(
            "fashion_mnist offline",
            str(debian) if debian.is_dir() else "not installed",
            "" if debian.is_dir() else "optional; Debian package dataset-fashion-mnist, else it is downloaded once",
        ),
    ]
    return rows, True


def _scan_words(device: str) -> str:
    import torch

    from patchscale.models.ssd.selection import backend_and_reason

    backend, reason = backend_and_reason(torch.device(device))
    return f"{backend}: {reason}"


def _self_test() -> list[Finding]:
    """One finding a check, with "passed" beside the words."""
    import sys
    import time

    from patchscale.measurements.self_test import self_test

    print("testing this machine ...", file=sys.stderr, flush=True)
    started = time.perf_counter()
    findings = [
        _row(f"self-test: {check.name}", f"{'pass' if check.passed else 'FAIL'}: {check.words}")
        | {"passed": check.passed}
        for check in self_test()
    ]
    failed = sum(not finding["passed"] for finding in findings)
    words = f"{len(findings) - failed} of {len(findings)} checks passed in {time.perf_counter() - started:.1f} s"
    return [*findings, _row("self-test", words, "" if not failed else "do not train here before this is mended")]
