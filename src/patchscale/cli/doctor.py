"""`patchscale doctor`: what this machine has, and what is missing for which use."""

from typing import Annotated

import typer


def doctor(
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Show versions, devices, data and the scan that would run, with a remedy for what is missing."""
    from patchscale.cli.output import print_json, print_table

    findings = _findings()
    if json:
        print_json(findings)
    else:
        print_table(findings, columns=["item", "found", "remedy"])


def _findings() -> list[dict[str, str]]:
    import os
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from patchscale import __version__

    def row(item: str, found: str, remedy: str = "") -> dict[str, str]:
        return {"item": item, "found": found, "remedy": remedy}

    rows = [
        row("patchscale", __version__),
        row("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    missing = False
    for package in ("numpy", "scipy", "pandas", "torch", "torchvision", "timm", "safetensors"):
        try:
            rows.append(row(package, version(package)))
        except PackageNotFoundError:
            missing = True
            rows.append(row(package, "missing", "needed to train: pip install 'patchscale[train]'"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    rows.append(row("cpu cores", f"{cores}, OMP_NUM_THREADS {threads}"))
    if not missing:
        rows += _torch_findings(row)
    return rows


def _torch_findings(row):  # type: ignore[no-untyped-def]
    from pathlib import Path

    try:
        import torch
    except (ImportError, OSError) as error:
        return [row("torch import", f"fails: {error}", "install it again: pip install --force-reinstall torch")]
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError) as error:
        remedy = "torch and torchvision do not match; install both in one command from one index"
        return [row("torchvision import", f"fails: {error}", remedy)]
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        memory = f"{properties.total_memory / 2**30:.0f} GiB"
        devices = f"{torch.cuda.device_count()} x {properties.name}, {memory}, CUDA {torch.version.cuda}"
    elif torch.backends.mps.is_available():
        devices = "Apple GPU (mps)"
    else:
        devices = "none: training runs on the CPU"
    debian = Path("/usr/share/datasets/fashion-mnist")
    return [
        row("accelerator", devices),
        row("state-space scan", "chunked (plain torch, any device)"),
        row(
            "fashion_mnist offline",
            str(debian) if debian.is_dir() else "not installed",
            "" if debian.is_dir() else "optional; Debian package dataset-fashion-mnist, else it is downloaded once",
        ),
    ]
