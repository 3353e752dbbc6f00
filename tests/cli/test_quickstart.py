def test_quickstart_trains_fits_and_reports_in_one_command(call, tmp_path):
    tiny = (
        "model=[adventurer_test,vit_test]",
        "patch_size=[8,12,16,24]",
        "training.steps=3",
        "training.batch_size=8",
        "data.train_images=32",
        "data.val_images=8",
        "data.test_images=16",
    )
    code, out, err = call("quickstart", *tiny, "--workers", "2")
    assert code == 0, err
    report = tmp_path / "runs" / "quickstart" / "report.html"
    assert str(report) in out
    assert report.read_text().startswith("<!doctype html>")
    for words in ("24 px       4", "8 px      36", "adventurer_test", "vit_test", "8 runs in"):
        assert words in out

    code, again, err = call("quickstart", *tiny)
    assert code == 0
    assert "skipped: 8 done" in err
    table = out.partition("\n\n")[2].partition("\n\n")[0]
    assert table in again
