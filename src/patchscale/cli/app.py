"""The `patchscale` command: one verb, one file; heavy imports happen inside the verbs."""

import sys
from typing import Any

import typer

from patchscale.cli import (
    bench,
    convert,
    cost,
    data,
    doctor,
    evaluate,
    fit,
    plan,
    published,
    quickstart,
    report,
    runs,
    sweep,
    train,
    vlm,
)
from patchscale.errors import RunFailed, UserError

app = typer.Typer(
    name="patchscale",
    help="How finely should the image be cut? Train, measure, fit and plan at any patch size.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.command("quickstart")(quickstart.quickstart)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("sweep")(sweep.sweep)
app.command("convert")(convert.convert)
app.add_typer(data.data)
app.command("cost")(cost.cost)
app.command("vlm")(vlm.vlm)
app.command("fit")(fit.fit)
app.command("plan")(plan.plan)
app.command("report")(report.report)
app.command("runs")(runs.runs)
app.command("published")(published.published)
app.command("bench")(bench.bench)
app.command("doctor")(doctor.doctor)

USAGE_ERROR: Any = typer.BadParameter.__base__
"""What the option parser raises; the package it comes from differs between versions of typer."""


def main() -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed, 2 the user's mistake, 130 interrupted."""
    try:
        # not standalone: mistakes in options come here, to be told in one line like all others
        sys.exit(app(standalone_mode=False))
    except USAGE_ERROR as error:
        if not sys.argv[1:]:  # the help, as an answer to nothing
            error.show()
            sys.exit(2)
        where = error.ctx.command_path if error.ctx else "patchscale"
        _fail(f"{error.format_message().rstrip('.')} (`{where} -h` shows the options)", 2)
    except typer.Abort:
        _fail("aborted", 1)
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(f"run failed ({error.kind}): {error}", 1)
    except BrokenPipeError:  # the reader of a pipe has gone, which is not a mistake
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}; check the path, its rights and the disk", 2)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)
