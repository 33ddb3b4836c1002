"""Networks of PyTorch programs with random weights, and the files that those programs write.

torchvision, timm and lightly build their own; the others are rebuilt here with the names that the
cited file gives to their parts.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from interop import torch_packages

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # torchvision's documentation


@dataclasses.dataclass
class Written:
    """What a program writes, and what it computes.

    Attributes:
      content: for `torch.save`; a plain state dict may be written as safetensors too.
      encoder: maps normalised images `[n, 3, h, w]` to `h`.
      size: side of its images.
    """

    content: dict[str, Any]
    encoder: Callable[[Any], Any]
    size: int = 96


def images(size: int) -> np.ndarray:
    """Return two images, `[2, size, size, 3]` uint8, of coarse and of fine structure."""
    random = np.random.RandomState(0)
    fine = random.randint(0, 256, (size, size, 3))
    coarse = np.kron(random.randint(0, 256, (8, 8, 3)), np.ones((size // 8, size // 8, 1)))
    return np.stack([coarse, (fine + 3 * coarse) / 4]).astype(np.uint8)


def h_of(written: Written, images: np.ndarray) -> np.ndarray:
    """Return h of images `[n, h, w, 3]` uint8, as a user of the program prepares them."""
    torch = torch_packages.torch()
    torch_packages.torchvision()
    from torchvision.transforms import functional

    batch = [functional.normalize(functional.to_tensor(x), MEAN, DEVIATION) for x in images]
    with torch.no_grad():
        return written.encoder(torch.stack(batch)).flatten(1).numpy()


def randomised(module, seed: int = 0):
    """Give a network statistics and scales as training leaves them, and put it in evaluation."""
    torch = torch_packages.torch()
    torch.manual_seed(seed)
    last = [getattr(part, "bn3", getattr(part, "bn2", None)) for part in module.modules()]
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            scale = 0.2 if any(part is end for end in last) else 1  # or sums grow block by block
            torch.nn.init.uniform_(part.weight, 0.5 * scale, 1.5 * scale)
            torch.nn.init.normal_(part.bias, 0, 0.1)
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
            part.num_batches_tracked.fill_(7)
    return module.eval()


def resnet(name: str = "resnet18", small: bool = False, **fields):
    """Return a ResNet of torchvision; `small` has the usual stem for CIFAR."""
    nn = torch_packages.torch().nn
    network = getattr(torch_packages.torchvision().models, name)(**fields)
    if small:
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    return randomised(network)


def headless(network):
    """Return a ResNet whose classifier is the identity."""
    network = copy.deepcopy(network)
    network.fc = torch_packages.torch().nn.Identity()
    return network


def torchvision(name: str = "resnet18", small: bool = False) -> Written:
    network = resnet(name, small)
    return Written(network.state_dict(), headless(network))


def timm(name: str = "resnet18") -> Written:
    network = randomised(torch_packages.timm().create_model(name))
    return Written(
        network.state_dict(), lambda x: network.forward_head(network.forward_features(x), True)
    )


def lightly_simclr(name: str = "resnet18") -> Written:
    """As lightly's examples/pytorch/simclr.py: the children of a ResNet in a row, and a head."""
    nn, heads = torch_packages.torch().nn, torch_packages.lightly()
    network = resnet(name)

    class SimCLR(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(network.children())[:-1])
            self.projection_head = heads.SimCLRProjectionHead(512, 512, 128)

    model = SimCLR().eval()
    return Written(model.state_dict(), model.backbone)


def lightly_byol() -> Written:
    """As examples/pytorch_lightning/byol.py: Lightning's checkpoint, with the moving average."""
    nn, heads = torch_packages.torch().nn, torch_packages.lightly()
    network = resnet()

    class BYOL(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = nn.Sequential(*list(network.children())[:-1])
            self.projection_head = heads.BYOLProjectionHead(512, 1024, 256)
            self.prediction_head = heads.BYOLPredictionHead(256, 1024, 256)
            self.backbone_momentum = copy.deepcopy(self.backbone)
            self.projection_head_momentum = copy.deepcopy(self.projection_head)

    model = BYOL().eval()
    randomised(model.backbone_momentum, seed=1)
    content = {"epoch": 3, "global_step": 12, "state_dict": model.state_dict()}
    return Written(content | {"callbacks": {}, "optimizer_states": []}, model.backbone)


def lightly_generator(name: str = "resnet-18") -> Written:
    """lightly's own ResNet for CIFAR (lightly/models/resnet.py), whole."""
    torch_packages.lightly()
    from lightly.models import ResNetGenerator

    network = randomised(ResNetGenerator(name))
    state = dict(network.state_dict())
    network.linear = torch_packages.torch().nn.Identity()
    return Written(state, network, size=32)


def solo_learn(momentum: bool = False) -> Written:
    """solo/methods/base.py and simclr.py: backbone, classifier, projector; Lightning's file."""
    nn = torch_packages.torch().nn

    class Method(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = headless(resnet())
            self.classifier = nn.Linear(512, 100)
            self.projector = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 16))
            if momentum:
                self.momentum_backbone = randomised(headless(resnet()), seed=1)
                self.momentum_projector = copy.deepcopy(self.projector)

    model = Method().eval()
    return Written({"epoch": 399, "state_dict": model.state_dict()}, model.backbone)


def moco(name: str = "resnet18") -> Written:
    """facebookresearch/moco: moco/builder.py in DistributedDataParallel, main_moco.py's file."""
    torch = torch_packages.torch()
    nn = torch.nn

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            for part in ("encoder_q", "encoder_k"):
                network = randomised(resnet(name), seed=part == "encoder_k")
                width = network.fc.in_features
                network.fc = nn.Sequential(
                    nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 128)
                )
                setattr(self, part, network)
            self.register_buffer("queue", torch.randn(128, 64))
            self.register_buffer("queue_ptr", torch.zeros(1, dtype=torch.long))

    model = MoCo().eval()
    optimizer = torch.optim.SGD(model.encoder_q.parameters(), 0.03, momentum=0.9)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 200, "arch": name, "state_dict": state}
    return Written(content | {"optimizer": optimizer.state_dict()}, headless(model.encoder_q))


def moco_v3() -> Written:
    """facebookresearch/moco-v3: moco/builder.py, likewise."""
    nn = torch_packages.torch().nn

    def mlp(inputs, hidden, outputs):
        return nn.Sequential(
            nn.Linear(inputs, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, outputs, bias=False),
            nn.BatchNorm1d(outputs, affine=False),
        )

    class MoCo(nn.Module):
        def __init__(self):
            super().__init__()
            self.base_encoder, self.momentum_encoder = resnet(), randomised(resnet(), seed=1)
            self.base_encoder.fc = mlp(512, 64, 16)
            self.momentum_encoder.fc = mlp(512, 64, 16)
            self.predictor = mlp(16, 64, 16)

    model = MoCo().eval()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 300, "arch": "resnet50", "state_dict": state, "scaler": {"scale": 65536.0}}
    return Written(content, headless(model.base_encoder))


def simsiam() -> Written:
    """facebookresearch/simsiam: simsiam/builder.py, main_simsiam.py's file."""
    nn = torch_packages.torch().nn

    class SimSiam(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder = resnet()
            self.encoder.fc = nn.Sequential(
                nn.Linear(512, 512, bias=False),
                nn.BatchNorm1d(512),
                nn.ReLU(),
                nn.Linear(512, 64),
                nn.BatchNorm1d(64, affine=False),
            )
            self.predictor = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 64))

    model = SimSiam().eval()
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    content = {"epoch": 100, "arch": "resnet50", "state_dict": state}
    return Written(content, headless(model.encoder))


def vissl(width: int = 1) -> Written:
    """facebookresearch/vissl: vissl/models/trunks/resnext.py, a checkpoint of its trainer."""
    nn = torch_packages.torch().nn
    bottleneck = torch_packages.torchvision().models.resnet.Bottleneck
    model = resnet("resnet50")
    model.inplanes = 64 * width
    blocks = nn.ModuleDict(
        {
            "conv1": nn.Conv2d(3, 64 * width, 7, 2, 3, bias=False),
            "bn1": nn.BatchNorm2d(64 * width),
            "conv1_relu": model.relu,
            "maxpool": model.maxpool,
            "layer1": model._make_layer(bottleneck, 64 * width, 3),
            "layer2": model._make_layer(bottleneck, 128 * width, 4, stride=2),
            "layer3": model._make_layer(bottleneck, 256 * width, 6, stride=2),
            "layer4": model._make_layer(bottleneck, 512 * width, 3, stride=2),
            "avgpool": model.avgpool,
            "flatten": nn.Flatten(1),
        }
    )
    randomised(blocks)
    trunk = {f"_feature_blocks.{key}": value for key, value in blocks.state_dict().items()}
    heads = {"0.clf.0.weight": torch_packages.torch().zeros(128, 2048 * width)}
    inner = {"model": {"trunk": trunk, "heads": heads}, "meters": {"train": {}}}
    content = {
        "classy_state_dict": {"base_model": inner, "train": True},
        "phase_idx": 799,
        "iteration": 1_000_000,
        "type": "checkpoint",
    }
    return Written(content, nn.Sequential(*blocks.values()))


def byol_pytorch() -> Written:
    """lucidrains/byol-pytorch: the network twice, alone and as online_encoder.net."""
    nn = torch_packages.torch().nn

    class Wrapper(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.projector = nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 16))

    class BYOL(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = resnet()
            self.online_encoder = Wrapper(self.net)
            self.online_predictor = nn.Linear(16, 16)
            self.target_encoder = Wrapper(randomised(resnet(), seed=1))

    model = BYOL().eval()
    return Written(model.state_dict(), headless(model.net))


def data_parallel_half() -> Written:
    """Half precision and `module.`: what exact values of it are, the encoder computes with."""
    network = headless(resnet())
    for array in (*network.parameters(), *network.buffers()):
        if array.is_floating_point():
            array.data = array.data.half().float()
    state = {f"module.{key}": value.half() for key, value in network.state_dict().items()}
    return Written({"model": state}, network)


PROGRAMS: dict[str, Callable[[], Written]] = {
    "torchvision resnet18": torchvision,
    "torchvision resnet34": lambda: torchvision("resnet34"),
    "torchvision resnet50": lambda: torchvision("resnet50"),
    "torchvision resnet101": lambda: torchvision("resnet101"),
    "torchvision resnet152": lambda: torchvision("resnet152"),
    "torchvision resnet18, 3x3 stem": lambda: torchvision("resnet18", True),
    "timm resnet18": timm,
    "timm resnet50": lambda: timm("resnet50"),
    "timm seresnet50": lambda: timm("seresnet50"),
    "lightly SimCLR": lightly_simclr,
    "lightly BYOL": lightly_byol,
    "lightly resnet-18": lightly_generator,
    "lightly resnet-9": lambda: lightly_generator("resnet-9"),
    "solo-learn": solo_learn,
    "solo-learn, momentum": lambda: solo_learn(True),
    "MoCo v2 resnet50": lambda: moco("resnet50"),
    "MoCo v3": moco_v3,
    "SimSiam": simsiam,
    "VISSL resnet50": vissl,
    "VISSL resnet50, width 2": lambda: vissl(2),
    "byol-pytorch": byol_pytorch,
    "half precision, module.": data_parallel_half,
}
