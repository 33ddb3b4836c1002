"""Tiny images for the doors."""

import doors
import pytest


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    return doors.write_images(tmp_path_factory.mktemp("images") / "images.npz")


@pytest.fixture(scope="session")
def unlabelled(tmp_path_factory):
    return doors.write_images(tmp_path_factory.mktemp("images") / "pixels.npz", labels=False)
