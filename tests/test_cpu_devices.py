"""Who decides how many devices the CPU counts as."""

import pytest
from ml_collections import ConfigDict

from simclr_jax import cpu_devices, parallel, recipes
from simclr_jax.errors import UserError

COUNT = "--xla_force_host_platform_device_count"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    parallel.make_mesh()  # of the devices that this process has, before its environment is another
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    return monkeypatch


def recipe(**fields):
    c = recipes.base()
    recipes.on_cifar10(c)
    c.update_from_flattened_dict({k.replace("__", "."): v for k, v in fields.items()})
    return c


def test_environment_then_flag_then_the_run_then_the_rule(environment):
    c, before = recipe(), {"cpu_devices": 2}
    assert cpu_devices.choose(c, None, None) == cpu_devices.by_rule(c) > 1
    assert cpu_devices.choose(c, None, before) == 2
    assert cpu_devices.choose(c, 4, before) == 4
    environment.setenv("JAX_NUM_CPU_DEVICES", "3")
    assert cpu_devices.choose(c, None, before) is None
    environment.setenv("XLA_FLAGS", f"{COUNT}=5 {COUNT}=6")  # XLA takes the last
    assert cpu_devices.in_environment() == 6
    assert cpu_devices.choose(c, 6, before) is None
    with pytest.raises(UserError, match="--cpu_devices is 4, but XLA_FLAGS"):
        cpu_devices.choose(c, 4, None)


@pytest.mark.parametrize("before", [{}, {"cpu_devices": "8"}, {"cpu_devices": 0}])
def test_a_run_that_does_not_say_goes_on_as_jax_has_it(before):
    assert cpu_devices.choose(recipe(), None, before) is None


def test_of_several_processes_there_is_no_rule():
    assert cpu_devices.choose(recipe(), None, None, distributed=True) is None
    assert cpu_devices.choose(recipe(), 2, None, distributed=True) == 2


def test_more_devices_than_images_are_refused():
    with pytest.raises(UserError, match="--cpu_devices is 513, more than the 512 images"):
        cpu_devices.choose(recipe(), 513, None)
    assert cpu_devices.choose(recipe(), 512, None) == 512


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"train__batch_size": 512}, 8),
        ({"train__batch_size": 1024}, 8),
        ({"train__batch_size": 2048}, 1),  # 256 a device: one would wait too long for another
        ({"train__batch_size": 64}, 8),
        ({"train__batch_size": 32}, 4),
        ({"train__batch_size": 36}, 4),
        ({"train__batch_size": 510}, 1),  # 2 would leave 255 to each
        ({"train__batch_size": 250}, 2),
        ({"train__batch_size": 15}, 1),
        ({"train__accumulate": 4, "bn__groups": 4, "train__batch_size": 64}, 2),
        ({"bn__groups": 0}, 1),  # other groups would be another result
        ({"model__stem": "imagenet"}, 1),
    ],
)
def test_the_rule(fields, count):
    assert cpu_devices.by_rule(recipe(**fields)) == count


def test_the_rule_divides_what_is_to_be_divided():
    for parts in (1, 3, 4):
        c = recipe(train__accumulate=parts)
        for c.train.batch_size in range(2, 600):
            count, batch = cpu_devices.by_rule(c), c.train.batch_size
            assert count in (1, 2, 4, 8) and (count == 1 or batch % (count * parts) == 0)


def test_what_the_images_will_decide_leaves_one():
    c = recipe()
    with c.unlocked():
        c.train.batch_size = None
    assert cpu_devices.choose(c, None, None) == 1


def test_runs_of_a_pipeline_have_one_number():
    runs = {"small": recipe(train__batch_size=32), "large": recipe()}
    pipeline = ConfigDict({"stage": "pipeline", "runs": runs})
    assert cpu_devices.choose(pipeline, None, None) == 4
    with pytest.raises(UserError, match="more than the 32 images"):
        cpu_devices.choose(pipeline, 64, None)


def test_what_is_kept_and_said(environment):
    mesh = parallel.make_mesh()
    assert cpu_devices.record(mesh) == {"cpu_devices": 8}
    assert cpu_devices.record(mesh, {"cpu_devices": 2}) == {"cpu_devices": 2}  # it began so
    said = cpu_devices.notes(mesh, {"cpu_devices": 2, "bn": {"groups": 0}})[0]
    assert "another run, since with bn.groups=0" in said
    assert "counts as 8 devices" in cpu_devices.notes(mesh, None)[0]
    assert cpu_devices.notes(mesh, {}) == cpu_devices.notes(mesh, {"cpu_devices": 8}) == []
    assert (
        "began on 2 CPU device(s) and goes on on 8"
        in cpu_devices.notes(mesh, {"cpu_devices": 2})[0]
    )
    environment.setenv("XLA_FLAGS", f"{COUNT}=8")
    assert cpu_devices.notes(mesh, None) == []
