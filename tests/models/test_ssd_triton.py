"""The Triton kernels of the scan where there is no GPU: in Triton's interpreter, and compiled for a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

CASES = Path(__file__).with_name("ssd_triton_cases.py")


def test_kernels_in_the_interpreter() -> None:
    """In a process of its own: who imports triton first decides for all whether kernels are interpreted."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(CASES)],
        env=inherited | {"TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]


@pytest.mark.skipif(triton.knobs.runtime.interpret, reason="kernels are interpreted in this process")
def test_kernels_compile_for_an_h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """All kernels of forward and backward at 50,178 tokens of Adventurer-Base, in bfloat16, without a GPU."""
    from patchscale.models.ssd import triton as kernels

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernels, "_multiprocessors", lambda device: 132)
    launches: dict[tuple[str, bool], tuple[Any, ...]] = {}

    def record(scan: Any, kernel: Any, programs: int, *args: Any, **constants: Any) -> None:
        launches[kernel.__name__, constants.get("REVERSE", False)] = (kernel, args, constants)

    monkeypatch.setattr(kernels._Scan, "_launch", record)
    with torch.device("meta"):
        x, B, C, dt = torch.empty(1, 50178, 1688, dtype=torch.bfloat16).split([1536, 64, 64, 24], dim=-1)
        x, B, C = x.unflatten(-1, (24, 64)), B.unsqueeze(2), C.unsqueeze(2)
        scan = kernels._Scan(x, dt, torch.empty(24), B, C, torch.empty(24), torch.empty(24), True, 0)
        scan.forward(None, return_final_state=False)
        scan.backward(torch.empty_like(x), None, None)

    assert len(launches) == 9  # steps, forward, backward; and in both directions: segments, pass, keys
    for kernel, args, constants in launches.values():
        compiled = compile_for(90, kernel, args, constants)
        assert compiled.asm["cubin"]
        assert compiled.metadata.shared <= 227 * 1024


def compile_for(capability: int, kernel: Any, args: tuple[Any, ...], constants: dict[str, Any]) -> Any:
    """Compile as a launch with these arguments would."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from patchscale.models.ssd.triton import LAUNCH

    types = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
    signature, fixed, attributes = {}, {}, {}
    values = dict(zip(kernel.arg_names, args, strict=False)) | constants
    for position, name in enumerate(kernel.arg_names):
        value = values[name]
        is_tensor = isinstance(value, torch.Tensor)
        if name in constants or value is None or (not is_tensor and value == 1):
            signature[name] = "constexpr"
            fixed[(position,)] = value
        else:
            signature[name] = types[value.dtype] if is_tensor else "i32" if value < 2**31 else "i64"
            if is_tensor or value % 16 == 0:
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, fixed, attributes)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=LAUNCH)
