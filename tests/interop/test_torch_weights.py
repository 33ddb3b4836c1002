"""Weights of PyTorch's ResNets become encoders that compute what torchvision has recorded."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from interop import here, record_torch, torch_networks

from simclr_jax.errors import UserError
from simclr_jax.interop import convert, convert_torch, torch_files, torch_model
from simclr_jax.interop.written import Options

safetensors = pytest.importorskip("safetensors.numpy", reason="safetensors is not installed")

RECORDED = np.load(record_torch.RECORDED)


@pytest.fixture(scope="module", params=record_torch.CASES)
def case(request):
    return request.param


def arrays(case="resnet18"):
    """Return the recorded network, by torchvision's names."""
    return record_torch.values(record_torch.shapes_of(RECORDED, case))


def write(directory, arrays, name="weights.safetensors", **said):
    contiguous = {key: np.ascontiguousarray(x) if x.ndim else x for key, x in arrays.items()}
    safetensors.save_file(contiguous, directory / name, **said)
    return directory / name


def renamed(arrays, law):
    return {law(name): x for name, x in arrays.items()}


def tree(path, options=here.NONE):
    return convert_torch.open_model(path, options).read()


def assert_equal_trees(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def test_what_torchvision_computes(case, tmp_path):
    path = write(tmp_path, arrays(case))
    there = RECORDED[f"{case}/h"]
    assert np.abs(there[0] - there[1]).max() > 1
    images = torch_networks.images(record_torch.SIZE)
    np.testing.assert_allclose(here.h_of(path, images), there, rtol=0, atol=1e-4)


def in_a_row(name):
    """Return the name that `nn.Sequential(*resnet.children())` gives."""
    place = ("conv1", "bn1", "", "", "layer1", "layer2", "layer3", "layer4", "", "fc")
    first, _, rest = name.partition(".")
    return f"{place.index(first)}.{rest}"


NAMES = {
    "DistributedDataParallel": lambda n: f"module.{n}",
    "MoCo": lambda n: f"module.encoder_q.{n}",
    "MoCo v3": lambda n: f"module.base_encoder.{n}",
    "SimSiam": lambda n: f"module.encoder.{n}",
    "VISSL": lambda n: f"_feature_blocks.{n}",
    "lightly": lambda n: f"backbone.{in_a_row(n)}",
    "in a row, alone": in_a_row,
    "shortcut": lambda n: n.replace("downsample", "shortcut").replace("fc.", "linear."),
    "online_encoder": lambda n: f"online_encoder.net.{n}",
    "a prefix that nobody has used": lambda n: f"some.thing.else_{n.count('x')}.{n}",
}


@pytest.mark.parametrize("law", NAMES.values(), ids=NAMES)
def test_names_of_programs_are_the_same_arrays(law, tmp_path):
    plain = write(tmp_path, arrays(), "plain.safetensors")
    other = write(tmp_path, renamed(arrays(), law))
    assert_equal_trees(tree(plain), tree(other))


def test_each_array_goes_where_it_belongs(tmp_path):
    given = arrays("resnet50")
    found = tree(write(tmp_path, given))
    encoder, moved = found["params"]["encoder"], found["batch_stats"]["encoder"]
    block = encoder["group2_block1"]
    np.testing.assert_array_equal(
        block["conv2"]["conv"]["kernel"], given["layer2.0.conv2.weight"].transpose(2, 3, 1, 0)
    )
    np.testing.assert_array_equal(
        block["shortcut_bn"]["scale"], given["layer2.0.downsample.1.weight"]
    )
    np.testing.assert_array_equal(
        moved["group4_block3"]["bn3"]["var"], given["layer4.2.bn3.running_var"]
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_precisions_are_read_as_float32(dtype, tmp_path):
    rounded = {n: x.astype(dtype) if x.ndim else x for n, x in arrays().items()}
    back = {n: x.astype(np.float32) if x.ndim else x for n, x in rounded.items()}
    path = write(tmp_path, rounded)
    plain = write(tmp_path, back, "plain.safetensors")
    assert_equal_trees(tree(path), tree(plain))
    lines = list(convert_torch.open_model(path, here.NONE).about)
    kind = np.dtype(dtype).name
    assert f"precision  100 arrays {kind}: all are float32 from here on" in lines


def test_of_several_encoders_the_one_that_learns(tmp_path):
    """And another by its name; what is left aside is said."""
    query, key = arrays(), {n: x + 1 if x.ndim else x for n, x in arrays().items()}
    both = renamed(query, lambda n: f"module.encoder_q.{n}")
    both |= renamed(key, lambda n: f"module.encoder_k.{n}")
    path = write(tmp_path, both | {"module.queue": np.zeros((4, 8), np.float32)})
    model = convert_torch.open_model(path, here.NONE)
    plain = write(tmp_path, query, "plain.safetensors")
    assert_equal_trees(model.read(), tree(plain))
    said = "\n".join(model.about)
    for line in (
        "(PyTorch, as MoCo: names begin with module.encoder_q.)",
        "note       other encoders in it: module.encoder_k. (--prefix)",
        "left out   head (module.encoder_q.fc), 2: module.encoder_q.fc.bias, module.encoder_q.fc",
        "left out   module.encoder_k, 122: module.encoder_k.bn1.bias",
        "left out   module.queue, 1: module.queue",
        "counters of batches (num_batches_tracked), 20",
    ):
        assert line in said, said
    keys = write(tmp_path, key, "key.safetensors")
    for prefix in ("module.encoder_k.", "encoder_k"):
        assert_equal_trees(tree(path, Options(prefix=prefix)), tree(keys))


def test_two_names_of_one_encoder_are_no_doubt(tmp_path):
    twice = renamed(arrays(), lambda n: f"net.{n}")
    twice |= renamed(arrays(), lambda n: f"online_encoder.net.{n}")
    plain = write(tmp_path, arrays(), "plain.safetensors")
    path = write(tmp_path, twice)
    assert_equal_trees(tree(path), tree(plain))
    twice["net.layer4.1.bn2.bias"] = twice["net.layer4.1.bn2.bias"] + 1
    with pytest.raises(UserError, match=r"holds 2 encoders: .*=net\. or --prefix=online_encoder"):
        tree(write(tmp_path, twice))


def test_gray_images(tmp_path):
    given = arrays()
    given["conv1.weight"] = given["conv1.weight"][:, :1]
    path = write(tmp_path, given)
    model = convert_torch.open_model(path, here.NONE)
    assert model.config.model.input == "rgb" and model.channels == 1
    with pytest.raises(UserError, match=r"input=normalised is made of images of 3 channels, .* 1:"):
        convert_torch.open_model(path, Options(input="normalised"))


def test_a_run_says_what_it_is(tmp_path):
    path = write(tmp_path, arrays("resnet18_small"))
    convert.run(str(path), str(tmp_path / "run"), here.NONE)
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["stage"] == "convert" and record["data"]["image_size"] == 32
    assert record["model"] == {
        **{"depth": 18, "width": 0.125, "stem": "cifar", "sk_ratio": 0.0, "se_ratio": 0.0},
        **{"variant": "torchvision", "input": "normalised"},
    }
    assert record["converted"] == {
        "source": str(path),
        "flavour": "torchvision or timm",
        "classes": 0,
        "classifier_tap": None,
        "known": ["model"],
    }


def folder(directory, **said):
    """Write a folder of Hugging Face's hub as timm does."""
    write(directory, arrays(), "model.safetensors")
    (directory / "config.json").write_text(json.dumps(said))
    return torch_files.find(str(directory))


def test_timm_says_size_and_normalisation_beside(tmp_path):
    images = {"input_size": [3, 160, 160], "mean": [0.485, 0.456, 0.406]}
    images["std"] = [0.229, 0.224, 0.225]
    path = folder(tmp_path, architecture="resnet18", pretrained_cfg=images)
    config = convert_torch.open_model(path, here.NONE).config
    assert config.data.image_size == 160 and config.model.input == "normalised"
    images |= {"mean": [0, 0, 0], "std": [1, 1, 1]}
    config = convert_torch.open_model(folder(tmp_path, pretrained_cfg=images), here.NONE).config
    assert config.model.input == "rgb"
    given = convert_torch.open_model(path, Options(image_size=64, input="standardised")).config
    assert given.data.image_size == 64 and given.model.input == "standardised"


@pytest.mark.parametrize(
    "said, message",
    [
        (
            {"architecture": "resnetblur50", "pretrained_cfg": {"mean": None}},
            "says architecture=.resnetblur50",
        ),
        ({"pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}, r"says mean=\[0.5, 0.5, 0.5\]"),
        ({"pretrained_cfg": {"mean": "x", "std": {}}}, "says mean=x and std"),
        ({"model_type": "simclr_jax"}, "is a model folder of this program"),
    ],
)
def test_a_folder_of_another_network_is_refused(said, message, tmp_path):
    with pytest.raises(UserError, match=message):
        convert_torch.open_model(folder(tmp_path, **said), here.NONE)


def test_what_this_program_exported_says_of_itself(tmp_path):
    recipe = {"model": {"variant": "torchvision", "input": "rgb"}, "data": {"image_size": 48}}
    about = {"about": json.dumps({"program": "simclr_jax", "recipe": recipe})}
    config = convert_torch.open_model(write(tmp_path, arrays(), metadata=about), here.NONE).config
    assert config.model.input == "rgb" and config.data.image_size == 48
    recipe["model"]["variant"] = "official"
    about = {"about": json.dumps({"recipe": recipe})}
    with pytest.raises(UserError, match=r"model.variant=official, whose max-pool is not PyTorch's"):
        convert_torch.open_model(write(tmp_path, arrays(), metadata=about), here.NONE)
    for text in ("{", "[]", '{"recipe": 3}', '{"recipe": {"model": 1, "data": 2}}'):
        path = write(tmp_path, arrays(), metadata={"about": text})
        assert convert_torch.open_model(path, here.NONE).config.model.input == "normalised"


def test_found_is_what_names_and_shapes_say(case, tmp_path):
    found = torch_model.infer(torch_files.open_weights(write(tmp_path, arrays(case))))
    depth, stem = {"resnet18": (18, "imagenet"), "resnet50": (50, "imagenet")}.get(
        case, (18, "cifar")
    )
    built = found.architecture
    assert (built.depth, built.width, built.stem) == (depth, 0.125, stem)
    assert found.features == RECORDED[f"{case}/h"].shape[-1]
