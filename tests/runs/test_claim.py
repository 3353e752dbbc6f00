"""At most one process holds a run, whoever dies when; and none that is dead holds it for ever."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from patchscale.runs.claim import Claim, ClaimLost, beating, holder, last_number, take_claim

COMPETITOR = """
import sys, time
from pathlib import Path
from patchscale.runs.claim import take_claim
folder, start = Path(sys.argv[1]), float(sys.argv[2])
time.sleep(max(0, start - time.time()))
claim = take_claim(folder)
print("none" if claim is None else claim.number, flush=True)
if claim is not None:
    time.sleep(60)  # until it is killed
"""


def start(folder, at=0.0):
    return subprocess.Popen([sys.executable, "-c", COMPETITOR, str(folder), str(at)], stdout=subprocess.PIPE, text=True)


def first_line(process):
    return process.stdout.readline().strip()


def elsewhere(claim: Claim, beat_age_s: float) -> None:
    """Make a claim one of a process on another machine whose last beat was so long ago."""
    path = claim.folder / f"{claim.number:06d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "other", "boot_id": "another"}))
    beat = claim.folder / f"{claim.number:06d}.beat"
    then = time.time() - beat_age_s
    os.utime(beat, (then, then))


def test_one_of_many_gets_it(tmp_path):
    for repetition in range(3):
        folder, at = tmp_path / str(repetition), time.time() + 1.0
        processes = [start(folder, at) for _ in range(6)]
        found = [first_line(process) for process in processes]
        for process in processes:
            process.kill()
            process.wait()
        assert sorted(found) == ["1", *["none"] * 5]
        assert take_claim(folder).number == 2


def test_a_killed_owner_is_dead_at_once_here(tmp_path):
    process = start(tmp_path)
    assert first_line(process) == "1"
    assert take_claim(tmp_path) is None
    assert holder(tmp_path).pid == process.pid
    process.kill()
    process.wait()
    assert holder(tmp_path) is None
    assert take_claim(tmp_path).number == 2


def test_a_stopped_owner_here_still_holds_it(tmp_path):
    process = start(tmp_path)
    assert first_line(process) == "1"
    os.kill(process.pid, signal.SIGSTOP)
    assert take_claim(tmp_path, stale_after_s=0) is None
    process.kill()
    process.wait()


def test_a_process_of_the_same_number_is_not_the_owner(tmp_path):
    claim = take_claim(tmp_path)
    path = tmp_path / "000001.json"
    owner = json.loads(path.read_text())
    path.write_text(json.dumps(owner | {"started_ticks": owner["started_ticks"] - 1}))
    assert holder(tmp_path) is None
    assert take_claim(tmp_path).number == claim.number + 1


@pytest.mark.parametrize(("beat_age_s", "held"), [(30, True), (61, False)])
def test_an_owner_elsewhere_is_dead_when_it_no_longer_beats(tmp_path, beat_age_s, held):
    elsewhere(take_claim(tmp_path), beat_age_s)
    assert (holder(tmp_path) is not None) == held
    assert (take_claim(tmp_path) is None) == held


def test_one_that_was_taken_for_dead_learns_it(tmp_path):
    claim = take_claim(tmp_path)
    elsewhere(claim, beat_age_s=100)
    other = take_claim(tmp_path)
    assert other.number == 2
    with pytest.raises(ClaimLost, match="taken for dead"):
        claim.beat()
    other.beat()
    with beating(claim, every_s=0.01) as lost:
        assert lost.wait(5)
    with beating(other, every_s=0.01) as lost:
        assert not lost.wait(0.1)


def test_a_released_run_is_free(tmp_path):
    first = take_claim(tmp_path)
    first.release()
    assert holder(tmp_path) is None
    second = take_claim(tmp_path)
    assert second.number == 2
    first.release()  # again: nothing of the second one
    assert take_claim(tmp_path) is None


def test_beats_keep_an_owner_elsewhere_alive(tmp_path):
    claim = take_claim(tmp_path)
    elsewhere(claim, beat_age_s=100)
    with beating(claim, every_s=0.02):
        time.sleep(0.2)
        assert holder(tmp_path) is not None


def test_a_claim_cut_off_in_writing_goes_stale(tmp_path):
    (tmp_path / "000001.json").write_text('{"token": ')
    assert take_claim(tmp_path) is None
    os.utime(tmp_path / "000001.json", (time.time() - 100,) * 2)
    assert take_claim(tmp_path).number == 2


def test_nothing_is_left_behind_but_claims(tmp_path):
    for _ in range(3):
        take_claim(tmp_path).release()
    assert last_number(tmp_path) == 3
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".beat", ".released"}
    assert last_number(tmp_path / "absent") == 0
    assert holder(tmp_path / "absent") is None


def test_a_folder_that_cannot_be_written_raises(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"File exists|Not a directory"):
        take_claim(Path(tmp_path / "file"))


@pytest.mark.skipif(
    subprocess.call(["unshare", "--pid", "--fork", "true"], stderr=subprocess.DEVNULL) != 0,
    reason="may not make a namespace of processes",
)
def test_a_process_in_another_container_is_judged_by_its_beats(tmp_path):
    """It runs on this machine, but its number means nothing here."""
    inside = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-c", COMPETITOR]
    process = subprocess.Popen([*inside, str(tmp_path), "0"], stdout=subprocess.PIPE, text=True)
    assert first_line(process) == "1"
    assert not holder(tmp_path).is_here
    assert take_claim(tmp_path) is None
    process.kill()
    process.wait()
    assert take_claim(tmp_path) is None, "nobody here can tell yet"
    beat = tmp_path / "000001.beat"
    os.utime(beat, (time.time() - 100,) * 2)
    assert take_claim(tmp_path).number == 2


def test_a_link_that_was_made_though_the_server_says_it_was_there_is_ones_own(tmp_path, monkeypatch):
    """NFS repeats a request whose answer was lost, and then finds what it has made itself."""
    link = os.link

    def link_twice(*paths):
        link(*paths)
        link(*paths)

    monkeypatch.setattr(os, "link", link_twice)
    assert take_claim(tmp_path).number == 1
    assert take_claim(tmp_path) is None
    assert last_number(tmp_path) == 1


HIDDEN = """
mount -t proc -o hidepid=2 proc /proc || exit 77
exec setpriv --reuid=65534 --regid=65534 --clear-groups {python} -c '
import sys
from pathlib import Path
from patchscale.runs.claim import holder
for age in sys.argv[2:]:
    print(holder(Path(sys.argv[1]), stale_after_s=float(age)) is not None)
' {folder} 60 0
"""


def test_an_owner_whose_process_is_hidden_is_judged_by_its_beats(tmp_path):
    """/proc may be mounted so that users see their own processes only."""
    claim = take_claim(tmp_path)
    tmp_path.chmod(0o755)
    for folder in tmp_path.parents[:-2]:
        folder.chmod(folder.stat().st_mode | 0o055)
    time.sleep(0.01)
    script = HIDDEN.format(python=sys.executable, folder=tmp_path)
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and not done.stdout:
        pytest.skip(f"may not mount /proc anew, or not read this Python as another user: {done.stderr[-300:]}")
    assert done.stdout.split() == ["True", "False"]
    claim.release()


WRITERS = {
    "checkpoint": "run.beat()",
    "status": "run.write_status('running', step=5)",
    "result": "run.write_json('result.json', {})",
}

TAKEN_FOR_DEAD = """
import sys
from pathlib import Path
from patchscale.runs.record import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.lock():
    print("held", flush=True)
    sys.stdin.readline()
    {write}
    print("wrote", flush=True)
"""


@pytest.mark.parametrize("what", WRITERS)
def test_one_that_was_taken_for_dead_writes_nothing_more(tmp_path, what):
    """Though its next beat is seconds away."""
    command = [sys.executable, "-c", TAKEN_FOR_DEAD.format(write=WRITERS[what]), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert first_line(process) == "held"
        claims = tmp_path / "claims"
        elsewhere(Claim(claims, 1, holder(claims)), beat_age_s=100)
        assert take_claim(claims).number == 2
        output, _ = process.communicate("\n")
    assert output == ""
    assert process.returncode == os.EX_TEMPFAIL
    assert not (tmp_path / "status.json").exists()
    assert not (tmp_path / "result.json").exists()
