"""One image over several processes computes what one process computes: outputs and all gradients."""

import json
from pathlib import Path

import pytest
from tests.training.conftest import start_process

FLIPS = ("alternate", "released", "pairs", "none")
LIMITS = {"float64": 1e-9, "float32": 1e-5}

CASES = {
    f"{name}-{dtype}": {"dtype": dtype, **case}
    for dtype in LIMITS
    for name, case in {
        **{model: {"model": model} for model in ("vit_class", "vit_registers", "vit_average")},
        "vit_checkpointing": {"model": "vit_class", "checkpointing": True},
        "vit_map": {"model": "vit_registers", "output": "map"},
        "vit_drop_path": {"model": "vit_class", "drop_path_rate": 0.5, "copied": True},
        **{f"adventurer_{flips}": {"model": "adventurer", "depth": 4, "flip_schedule": flips} for flips in FLIPS},
        **{
            f"adventurer_{flips}_checkpointing": {
                "model": "adventurer",
                "depth": 4,
                "flip_schedule": flips,
                "checkpointing": True,
                "drop_path_rate": 0.5,
            }
            for flips in FLIPS
        },
        "adventurer_map": {"model": "adventurer", "depth": 2, "output": "map", "pos_embed": "sincos2d"},
        "adventurer_stretches": {"model": "adventurer", "depth": 3, "stretches": True, "grid": (24, 23)},
    }.items()
}
CASES["adventurer_fewest_tokens-float64"] = {
    "model": "adventurer",
    "dtype": "float64",
    "depth": 2,
    "grid": (4, 3),
    "copied": True,
}
TIMM = {"test_vit": 2, "test_vit2": 2, "test_vit3": 3}  # by ranks, which must divide heads; pooled in three ways


@pytest.fixture(scope="module")
def worker():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parent)  # where new processes find what they are to run
        import sequence_on_ranks

        yield sequence_on_ranks


def run(function, ranks, *arguments):
    """Call a function of the worker module in `ranks` processes."""
    processes = [start_process(function, rank, ranks, *arguments) for rank in range(ranks)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * ranks


@pytest.fixture(scope="module")
def all_errors(tmp_path_factory, worker):
    """{ranks: {case: [errors of each rank]}}; processes take long to start, so all cases share them."""
    folder = tmp_path_factory.mktemp("ranks")
    found = {}
    for ranks in (2, 3, 4):
        timm = {name: {"model": name, "dtype": "float64"} for name, divisor in TIMM.items() if divisor == ranks}
        run(worker.run_cases, ranks, str(folder), timm | (CASES if ranks != 3 else {}))
        found[ranks] = [json.loads((folder / f"errors-{ranks}-{rank}.json").read_text()) for rank in range(ranks)]
    return found


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("case", CASES)
def test_equals_one_process(all_errors, case, ranks):
    for of_rank in all_errors[ranks]:
        assert len(of_rank[case]) > 10
        assert max(of_rank[case].values()) < LIMITS[CASES[case]["dtype"]]


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_equal_one_process(all_errors, name):
    for of_rank in all_errors[TIMM[name]]:
        assert max(of_rank[name].values()) < LIMITS["float64"]


def test_groups_within_the_job(tmp_path, worker):
    run(worker.in_subgroups, 4, str(tmp_path))
    for rank in range(4):
        found = json.loads((tmp_path / f"subgroup-{rank}.json").read_text())
        assert max(error for of_model in found.values() for error in of_model.values()) < LIMITS["float64"]


def test_ddp_averages_as_promised(tmp_path, worker):
    run(worker.in_ddp, 2, str(tmp_path))
    for rank in range(2):
        assert max(json.loads((tmp_path / f"ddp-{rank}.json").read_text()).values()) < LIMITS["float64"]


def test_what_cannot_be_divided_is_said(tmp_path, worker):
    run(worker.refusals, 2, str(tmp_path))
    heads, tokens, reach, family, twice = json.loads((tmp_path / "refusals-0.json").read_text())
    assert "'vit_nano' has 3 heads, which 2 ranks cannot divide; use 1 or 3 ranks" in heads
    assert "2 ranks are more than the 1 patches of an image" in tokens
    assert "2 ranks are too many for 4 patches: each needs 3" in reach
    assert "cannot divide 'beit_base_patch16_224'; supported are Adventurer" in family
    assert "divided already" in twice
    assert all("\n" not in words for words in (heads, tokens, reach, family, twice))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vit_tiny_of_4_heads", "adventurer_nano"])
def test_memory_falls_with_the_number_of_ranks(tmp_path, worker, name):
    peaks = {}
    for ranks in (1, 2, 4):
        run(worker.measure_memory, ranks, str(tmp_path), name, 96)
        peaks[ranks] = max(json.loads((tmp_path / f"memory-{ranks}-{rank}.json").read_text()) for rank in range(ranks))
    print(name, {ranks: f"{peak / 2**20:.0f} MiB" for ranks, peak in peaks.items()})
    assert peaks[2] < 0.65 * peaks[1]
    assert peaks[4] < 0.4 * peaks[1]
