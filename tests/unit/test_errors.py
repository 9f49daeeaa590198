"""How commands begin and end."""

import gc

import pytest

from ccts_dist.errors import quick_imports


def test_collector_rests_during_imports_and_not_after_them_even_if_one_fails():
    before = gc.get_freeze_count()
    with quick_imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before
    with pytest.raises(ImportError), quick_imports():
        raise ImportError("no such module")
    assert gc.isenabled()
