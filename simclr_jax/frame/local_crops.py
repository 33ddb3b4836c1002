"""How a method passes local crops, if its recipe has any; the law of losses is `losses.multi_crop`.

    outputs = {"taps": taps, "z": taps[-1], **local_crops.asking(net, views)}       # in forward
    loss = nt_xent(*by_view(outputs["z"]), local=local_crops.of(outputs), ...)      # in loss

All local crops of a batch pass together and after the global ones. They are normalised by their own
statistics, and move the averages of them as the pass before did, as in SwAV, where each size is a
pass. They go to the trained network alone: no average of it, no probe and no evaluation sees them.
"""

from __future__ import annotations

import jax

from simclr_jax.declaration import LOCAL
from simclr_jax.frame.method import Views
from simclr_jax.frame.net import Net, by_view, image_major, project, view_major
from simclr_jax.train.stage import Outputs


def asking(net: Net, views: Views, *parts: str) -> Outputs:
    """Return what the network makes of local crops, `{"local": [n, V, dim]}`; {} without any.

    Args:
      net: with the parts `encoder` and `head`.
      views: of the batch.
      parts: which the projections then pass through, such as a predictor.
    """
    if LOCAL not in views:
        return {}
    made = project(net, views[LOCAL])[-1]  # [n, V, dim]
    for part in parts:
        made = image_major(net(part, view_major(made))[-1], len(made))
    return {LOCAL: made}


def of(outputs: Outputs) -> list[jax.Array]:
    """Return each local crop of `asking` as losses take them, `[n, dim]` each."""
    return by_view(outputs[LOCAL]) if LOCAL in outputs else []
