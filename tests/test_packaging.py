import esper


def test_version_is_public():
    assert esper.__version__.count(".") == 2
