"""What verbs that measure tell meanwhile: progress and words on stderr, apart from the data on stdout."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Tell = Callable[[str], None]


def say(text: str) -> None:
    """A line for people, apart from the data on stdout."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(total: int | None) -> Iterator[Tell]:
    """Call the result with what is being measured now: a bar (if a total is known) on a terminal, a line elsewhere."""
    if not sys.stderr.isatty():
        done = 0

        def tell_line(what: str) -> None:
            nonlocal done
            done += 1
            say(f"[{done}/{total}] {what}" if total else what)

        yield tell_line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    counted = (BarColumn(), MofNCompleteColumn()) if total else ()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("starting", total=total, completed=-1)

        def tell_bar(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        yield tell_bar
