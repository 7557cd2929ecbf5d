"""`import`: printed, or written to a file that does not exist."""


def test_a_configuration_is_printed_or_written(neoplug, tmp_path):
    file, target = tmp_path / "sft.yaml", tmp_path / "recipe.yaml"
    file.write_text("model_name_or_path: a/b\ndataset_name: c/d\nneftune_noise_alpha: 5\n")
    printed = neoplug("import", file)
    assert printed.code == 0
    assert "model: a/b # model_name_or_path" in printed.out.replace('"', "")
    written = neoplug("import", file, "--output", target)
    assert target.read_text() == printed.out
    assert "neftune_noise_alpha: 5" in written.out
    assert neoplug("import", file, "--output", target).code == 2
    assert neoplug("import", tmp_path / "missing.yaml").code == 2


def test_an_unknown_kind_is_refused_with_the_nearest(neoplug, tmp_path):
    (tmp_path / "x.yaml").write_text("a: 1\n")
    assert "did you mean `trl-gkd`?" in neoplug("import", tmp_path / "x.yaml", "--from", "trl-gdk").err
