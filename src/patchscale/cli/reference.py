"""Generate docs/cli.md from the program: `python -m patchscale.cli.reference`."""

import click
import typer

from patchscale.cli.app import app

HEADER = """# Command reference

Generated from the program by `make docs`; a test compares the two.
"""


def reference() -> str:
    """The help of every verb, as one Markdown page."""
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    parts = [HEADER]
    for name, command in group.commands.items():
        parts.append(f"## patchscale {name}\n\n{_description(command)}\n\n{_parameters(command)}")
    return "\n".join(parts)


def _description(command: click.Command) -> str:
    return "\n".join(line.strip() for line in (command.help or "").strip().splitlines())


def _parameters(command: click.Command) -> str:
    rows = ["| argument | meaning |", "| --- | --- |"]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            name = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            text = parameter.help or ""
        else:
            name = f"`{parameter.human_readable_name}`"
            text = getattr(parameter, "help", "") or ""
        default = parameter.default
        if default not in (None, False, "", ()) and not callable(default) and "Sentinel" not in repr(default):
            text += f" Default: `{default}`."
        rows.append(f"| {name} | {text.strip().replace('|', '/')} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
