"""SimSiam (arXiv 2011.10566): predict what the same network makes of the other view.

    python -m simclr_jax.main --config=configs/simsiam.py              digits, minutes on a CPU
    python -m simclr_jax.main --config=configs/simsiam.py:cifar10      data as configs/cifar10.py
    python -m simclr_jax.main --config=configs/simsiam.py:imagenet     data: docs/imagenet.md

| argument | what | published linear top-1 |
|---|---|---|
| `cifar10` | ResNet-18, 800 epochs, batch 512, projector of 2 layers | 91.8 (paper, appendix D) |
| `imagenet` | ResNet-50, 100 epochs, batch 512 | 68.1 (paper, table 1; official README) |
| `imagenet,batch=256` | | 68.3 (official README) |
| `imagenet,epochs=200` | another length | 70.0 (400: 70.8, 800: 71.3; paper, table 4) |

All of these are published; we have run none of them. Views are MoCo v2's, by our operations and not
torchvision's: docs/fidelity.md.
"""

from simclr_jax import recipes


def get_config(arg=""):
    a = recipes.arguments(arg, cifar10=False, imagenet=False, batch=0, epochs=0)
    c = recipes.base("simsiam")
    if a.cifar10:
        recipes.on_cifar10(c)
        for view in c.augment.views.values():
            view.strength = 1.0  # the method has strengths of its own
        c.train.epochs, c.checkpoint.every_steps = 800.0, 970
        c.head.layers, c.head.hidden = 2, 2048
        c.optim.base_lr, c.optim.weight_decay = 0.03, 5e-4
        return c.lock()
    recipes.on_digits(c)
    c.head.layers, c.head.hidden, c.head.dim, c.simsiam.hidden = 2, 256, 256, 64
    c.optim.base_lr, c.optim.weight_decay, c.optim.warmup_epochs = 0.1, 5e-4, 0.0
    return c.lock()
