from __future__ import annotations

import pytest

from simclr_jax.augment.policy import Policy
from simclr_jax.errors import UserError


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("size", 0),
        ("grid", "halfpixel"),
        ("crop_law", "width"),
        ("brightness_mode", "multiplicative"),
        ("flip", 1.5),
        ("jitter", -0.1),
        ("grayscale", float("nan")),
        ("blur", 2),
        ("solarize", -0.5),
        ("solarize_threshold", 1.1),
        ("min_object_covered", 1.1),
        ("brightness", -0.1),
        ("contrast", 1.1),
        ("saturation", 1.1),
        ("hue", 0.6),
        ("area", (0.5, 0.1)),
        ("area", (0.0, 1.0)),
        ("area", (0.1, 1.1)),
        ("area", (0.1,)),
        ("aspect", (2.0, 1.0)),
        ("blur_sigma", (0.0, 2.0)),
    ],
)
def test_a_value_out_of_range_is_named(field, value):
    with pytest.raises(UserError, match=f"augmentation {field} is"):
        Policy(**{"size": 32, field: value})


def test_equal_policies_are_one_static_argument():
    """Recipes hand over lists; a policy that compared unequal would compile again every step."""
    assert hash(Policy(32, area=[0.08, 1.0])) == hash(Policy(32))
    assert Policy(32, area=[0.08, 1.0]) == Policy(32)
