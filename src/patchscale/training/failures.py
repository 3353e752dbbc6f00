"""How an attempt at a run ended: every exception becomes a state in status.json and, if need be, a `RunFailed`."""

import errno
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from patchscale.config import RunConfig
from patchscale.errors import RunFailed, UserError
from patchscale.runs.record import RunDirectory
from patchscale.training.device import is_out_of_memory
from patchscale.training.distributed import Ranks
from patchscale.training.interrupt import Interrupted
from patchscale.training.journal import Journal, Watcher

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""What a system says of a disk that takes no more: it is full, over quota, read-only, or limits the size of a file."""


@contextmanager
def ending_recorded(run: RunDirectory, config: RunConfig, journal: Journal, ranks: Ranks) -> Iterator[None]:
    """Record failed (with its kind) or interrupted.

    A user's mistake passes through, anything else that is not an interruption comes out as `RunFailed`. Of several
    ranks the first that fails records it, whichever it is.
    """
    first = RunDirectory(run.path), Journal(RunDirectory(run.path), Watcher())
    try:
        yield
    except UserError as error:
        if ranks.watch.first_to_fail():
            _record_failure(*first, "config", str(error))
        raise
    except KeyboardInterrupt as error:
        message = str(error) if isinstance(error, Interrupted) else "stopped at once; the last step is lost"
        run.write_status("interrupted", message=message)
        journal.say(message)
        if isinstance(error, Interrupted):
            ranks.wait()  # torchrun ends all as soon as one has ended: not before this is written
        raise
    except Exception as error:
        failure = ranks.watch.lost_rank(error) or _as_failure(error, config)
        if ranks.watch.first_to_fail():
            _record_failure(*first, failure.kind, str(failure))
            with suppress(OSError):
                first[1].keep(traceback.format_exc())
        if failure is error:
            raise
        raise failure from error


def hang_recorded(run: RunDirectory, failure: RunFailed) -> None:
    """Record a failure found beside the training thread, which will not come back."""
    _record_failure(RunDirectory(run.path), Journal(RunDirectory(run.path), Watcher()), failure.kind, str(failure))


def _record_failure(run: RunDirectory, journal: Journal, kind: str, message: str) -> None:
    with suppress(OSError):  # a full disk must not hide the failure that it caused
        run.write_status("failed", kind=kind, message=message)
        journal.keep(f"failed ({kind}): {message}")


def _as_failure(error: Exception, config: RunConfig) -> RunFailed:
    if isinstance(error, RunFailed):
        return error
    if is_out_of_memory(error):
        advice = ["give a smaller execution.micro_batch_size (results stay the same)", "use a larger model.patch_size"]
        if config.execution.activation_checkpointing != "on":
            advice.insert(0, "set execution.activation_checkpointing=on")
        if config.training.precision == "fp32":
            advice.append("set training.precision=bf16")
        return RunFailed("out_of_memory", f"out of memory; {', or '.join(advice)} ({_first_line(error)})")
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        words = f"{error.filename or 'a file of the run'} cannot be written ({error.strerror}); make room and go on"
        return RunFailed("storage", words)
    return RunFailed("crash", f"{type(error).__name__}: {_first_line(error)} (traceback in log.txt)")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
