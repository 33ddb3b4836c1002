"""What tests of TFDS share."""

import pytest


@pytest.fixture(scope="session")
def tfds_root(tmp_path_factory):
    """Return a data_dir with one data set of each kind."""
    sets = pytest.importorskip("data.tfds_sets")
    root = tmp_path_factory.mktemp("tfds")
    sets.write(root)
    return root
