"""Local crops, views of another size in a group of their own, with methods that look at none."""

from __future__ import annotations

import pytest

from simclr_jax import declaration, recipes, validation
from simclr_jax.errors import UserError


@pytest.mark.parametrize("method", declaration.known())
def test_who_does_not_look_at_local_crops_refuses_them_by_name(method):
    """Rather than to draw them and pay for them; other views of the method stay as they are."""
    c = recipes.base(method)
    validation.validate(c, 1)
    with c.unlocked():
        c.augment.views.local = recipes.view()
    c.augment.views.local.update({"group": "local", "copies": 6, "size": 96})
    looks = "local" in declaration.find(method).views
    try:
        validation.validate(c, 1)
    except UserError as refused:
        said = f"views of the group local, at which method {method} does not look: it knows"
        assert said in str(refused) and not looks
    else:
        assert looks
