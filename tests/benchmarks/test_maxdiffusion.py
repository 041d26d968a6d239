"""The yardstick's script without the yardstick: what it says when their code is not there."""

from benchmarks import maxdiffusion


def test_a_folder_without_their_code_is_refused(tmp_path, capsys):
    assert maxdiffusion.main([f"--checkout={tmp_path}"]) == 2
    assert capsys.readouterr().err == f"--checkout={tmp_path}: no src/maxdiffusion in it\n"
