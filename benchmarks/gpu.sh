#!/bin/sh
# Everything that needs a CUDA device, the most valuable first, within BUDGET_S seconds (default 520) and without network.
# Each part has its own limit, and the others go on when one fails. JSON, log and table go to $OUT (default:
# benchmarks/results). Exit code 1 if a correctness part failed, or could not run.
#     BUDGET_S=520 OUT=/tmp/gpu sh benchmarks/gpu.sh
# PATCHSCALE_COMMIT names the commit where the files are there without their repository.
# PARTS="costs tests" runs only those; costs needs about 7 minutes for all its rows.
# TINY=1 DEVICE=cpu tries the scripts themselves on a machine without a GPU.
set -u
cd "$(dirname "$0")/.." || exit 2
OUT=${OUT:-benchmarks/results}
PYTHON=${PYTHON:-python3}
DEVICE=${DEVICE:-cuda}
TINY=${TINY:+--tiny}
NAME=${DEVICE}_$(date +%F)
LOG=$OUT/gpu_$NAME.log
END=$(($(date +%s) + ${BUDGET_S:-520}))
mkdir -p "$OUT" || exit 2
: >"$LOG"
export PYTHONPATH="src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error
FAILED=

# part NAME SECONDS KIND COMMAND...; KIND is "must" where a failure decides the exit code.
part() {
    name=$1 limit=$2 kind=$3
    shift 3
    case " ${PARTS:-$name} " in *" $name "*) ;; *) return ;; esac
    left=$((END - $(date +%s)))
    [ "$left" -lt "$limit" ] && limit=$left
    echo "== $name (at most $limit s)"
    if [ "$limit" -lt 20 ]; then
        echo "left out: no time left"
        [ "$kind" = must ] && FAILED="$FAILED $name"
        return
    fi
    begun=$(date +%s)
    timeout -k 5 "$limit" "$@" >"$OUT/part.tmp" 2>&1
    code=$?
    { echo "== $name"; cat "$OUT/part.tmp"; } >>"$LOG"
    tail -n "${LINES_SHOWN:-40}" "$OUT/part.tmp" | cut -c 1-220
    rm -f "$OUT/part.tmp"
    echo "-- $name: exit code $code after $(($(date +%s) - begun)) s"
    [ "$code" -ne 0 ] && [ "$kind" = must ] && FAILED="$FAILED $name"
}

# The files with marked tests; those that read configs need pydantic, which a bare CUDA machine may lack.
gpu_tests() {
    folders="tests/models tests/measurements"
    $PYTHON -c 'import pydantic' 2>/dev/null && folders=tests
    # shellcheck disable=SC2046,SC2086 # lists of words
    part tests 110 must $PYTHON -m pytest -q -m gpu -p no:cacheprovider $(grep -rl 'mark\.gpu' $folders)
}

scan="$PYTHON benchmarks/gpu_scan.py --device $DEVICE $TINY"
models="$PYTHON benchmarks/gpu_models.py --device $DEVICE $TINY"
costs="$PYTHON benchmarks/cost_accuracy.py --device $DEVICE $TINY --skip counts timm table6"
# shellcheck disable=SC2086 # lists of words
{
    part correctness 150 must $scan --part correctness --time-limit-s 140 --output "$OUT/gpu_scan_correctness_$NAME.json"
    part models 180 may $models --part main --time-limit-s 165 --output "$OUT/gpu_models_$NAME.json"
    if $PYTHON -c 'import pytest' 2>/dev/null; then gpu_tests; else echo "== tests: pytest is not installed"; fi
    part speed 60 may $scan --part speed --time-limit-s 50 --output "$OUT/gpu_scan_speed_$NAME.json"
    [ -n "${PARTS:-}" ] && limit=$((END - $(date +%s))) || limit=120
    part costs "$limit" may $costs --output "$OUT/gpu_costs_$NAME.json"
    part peers 90 may $scan --part peers --time-limit-s 80 --output "$OUT/gpu_scan_peers_$NAME.json"
    left=$((END - $(date +%s)))
    part more "$left" may $models --part more --time-limit-s $((left - 10)) --output "$OUT/gpu_models_more_$NAME.json"
}
[ -z "$FAILED" ] && exit 0
echo "failed:$FAILED"
exit 1
