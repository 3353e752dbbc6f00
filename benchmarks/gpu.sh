#!/bin/sh
# Everything that needs a GPU, in one go: the marked tests, then the timings; JSON goes to $OUT (default: benchmarks/results).
set -eu
cd "$(dirname "$0")/.."
OUT=${OUT:-benchmarks/results}
PYTHON=${PYTHON:-python3}
mkdir -p "$OUT"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}"
$PYTHON -m pytest -m gpu -q || [ $? -eq 5 ] # 5: no test carries the mark
$PYTHON benchmarks/mixers.py --device cuda --precision bf16 --models vit_small adventurer_small \
    --img-size 224 --patch-sizes 16 8 4 --batch-size 8 --output "$OUT/mixers_cuda.json"
