"""Generate docs/cli.md from the program: `python -m patchscale.cli.reference`."""

from typing import Any

import typer

from patchscale.cli.app import app

HEADER = """# Command reference

Generated from the program by `make docs`; a test compares the two.
"""


def reference() -> str:
    """The help of every verb, as one Markdown page."""
    group: Any = typer.main.get_command(app)  # typer brings its own click, which has no public name
    parts = [HEADER]
    commands: dict[str, Any] = {}
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        commands |= {f"{name} {verb}": part for verb, part in inner.items()} if inner else {name: command}
    for name, command in commands.items():
        parts.append(f"## patchscale {name}\n\n{_description(command)}\n\n{_parameters(command)}")
    return "\n".join(parts)


def _description(command: Any) -> str:
    return "\n".join(line.strip() for line in (command.help or "").strip().splitlines())


def _parameters(command: Any) -> str:
    rows = ["| argument | meaning |", "| --- | --- |"]
    for parameter in command.params:
        if parameter.param_type_name == "option":
            name = ", ".join(f"`{option}`" for option in (*parameter.opts, *parameter.secondary_opts))
            text = parameter.help or ""
        else:
            name = f"`{(parameter.metavar or parameter.name).upper()}`"
            text = getattr(parameter, "help", "") or ""
        default = parameter.default
        if default is True:  # of a pair such as --train, --infer
            default = parameter.opts[0]
        if default not in (None, False, "", ()) and not callable(default) and "Sentinel" not in repr(default):
            text += f" Default: `{default}`."
        rows.append(f"| {name} | {text.strip().replace('|', '/')} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
