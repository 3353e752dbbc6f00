from pathlib import Path

from patchscale.cli.reference import reference


def test_the_command_reference_is_up_to_date():
    committed = Path(__file__).parents[2] / "docs" / "cli.md"
    assert committed.read_text() == reference(), "docs/cli.md is stale: run `make docs` and read the difference"
