"""How commands begin and end."""

import gc

import pytest

from ccts_dist.errors import PeerLostError, quick_imports, run_main, without_controls


def test_collector_rests_during_imports_and_not_after_them_even_if_one_fails():
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("no such module")
    assert gc.isenabled()


def test_rank_that_lost_its_peers_says_so_itself(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setenv("RANK", "3")

    def main(_: list[str] | None) -> int:
        raise PeerLostError("rank 0 has not come")

    assert run_main(main) == 1
    assert capsys.readouterr().err == "error: rank 0 has not come\n"


def test_control_characters_do_not_reach_a_terminal():
    assert without_controls("a\x1b[2Jb\x9bc\u2028\u202ed\udce9\té\u3000") == (
        "a\\x1b[2Jb\\x9bc\\u2028\\u202ed\\udce9\\x09é\u3000"
    )
    assert without_controls("a\nb", keep="\n") == "a\nb"
