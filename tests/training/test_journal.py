import json

from patchscale.runs.record import RunDirectory
from patchscale.training.journal import Journal, Watcher, truncate_metrics


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_after_the_checkpoint_and_a_torn_line_are_dropped(tmp_path):
    journal = Journal(RunDirectory(tmp_path), Watcher())
    for step in (1, 2, 2, 3, 4):
        journal.row("train", step, loss=0.5)
    path = tmp_path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    truncate_metrics(path, 3)
    assert [row["step"] for row in rows(path)] == [1, 2, 2, 3]


def test_whole_files_are_left_as_they_are(tmp_path):
    path = tmp_path / "metrics.jsonl"
    truncate_metrics(path, 3)
    assert not path.exists()
    path.write_text('{"kind": "val", "step": 3}\n')
    before = path.stat().st_mtime_ns
    truncate_metrics(path, 3)
    assert path.stat().st_mtime_ns == before


def test_a_run_from_the_beginning_has_no_earlier_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "val", "step": 3}\n')
    truncate_metrics(path, 0)
    assert path.read_text() == ""


def test_what_is_said_is_kept_and_heard(tmp_path):
    heard = []

    class Listener(Watcher):
        def message(self, text):
            heard.append(text)

    journal = Journal(RunDirectory(tmp_path), Listener())
    journal.say("step 3 of 4")
    journal.keep("Traceback ...")
    assert heard == ["step 3 of 4"]
    log = (tmp_path / "log.txt").read_text()
    assert "step 3 of 4" in log
    assert "Traceback" in log
