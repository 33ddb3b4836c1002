"""Kernels of a trace by kind and part: a trace written by hand, and one that is recorded here."""

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData
from measured import kernels

# Names of kernels and operations that run on NVIDIA's cards under XLA.
NAMES = [
    ("sm90_xmma_fprop_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc", "cudnn-conv.3", "convolution"),
    ("cutlass__5x_cudnn::Kernel<cutlass_tensorop_bf16_s16816dgrad>", "", "convolution"),
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "cudnn-conv-bw-filter.1", "convolution"),
    ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NNT", "cublas-gemm.1", "matrix product"),
    ("gemm_fusion_dot_7", "gemm_fusion_dot.7", "matrix product"),
    ("void cudnn::ops::nchwToNhwcKernel<__nv_bfloat16>", "cudnn-conv.31", "copy, transpose"),
    ("loop_transpose_fusion_25", "loop_transpose_fusion.25", "copy, transpose"),
    ("MemcpyD2D", "copy.319", "copy, transpose"),
    ("input_multiply_reduce_fusion_6", "input_multiply_reduce_fusion.6", "reduction"),
    ("loop_reduce_window_fusion", "loop_reduce_window_fusion", "pooling, scatter"),
    ("input_scatter_fusion_1", "input_scatter_fusion.1", "pooling, scatter"),
    ("loop_convert_fusion_3", "loop_convert_fusion.3", "elementwise, normalisation"),
    ("loop_select_fusion", "loop_select_fusion", "elementwise, normalisation"),
    ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "all-reduce-start.1", "collective"),
    ("ncclDevKernel_ReduceScatter_Sum_f32_RING_LL", "reduce-scatter.1", "collective"),
    ("something_new", "custom-call.9", "other"),
]  # fmt: skip


@pytest.mark.parametrize(("kernel", "op", "kind"), NAMES, ids=lambda x: x[:30])
def test_kinds(kernel, op, kind):
    assert kernels.kind_of(kernel, op) == kind


# Two streams; a line that repeats them, and what the host did meanwhile. Times in picoseconds.
TRACE = """
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #13(Compute)"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 6000000 stats { metadata_id: 1 str_value: "cudnn-conv.3" } }
    events { metadata_id: 2 offset_ps: 6000000 duration_ps: 3000000 }
  }
  lines {
    name: "Stream #14(MemcpyD2D)"
    events { metadata_id: 3 offset_ps: 8000000 duration_ps: 1000000 }
    events { metadata_id: 3 offset_ps: 19000000 duration_ps: 1000000 }
  }
  lines { name: "XLA Modules" events { metadata_id: 4 offset_ps: 0 duration_ps: 20000000 } }
  event_metadata { key: 1 value { id: 1 name: "sm90_xmma_fprop_implicit_gemm" } }
  event_metadata { key: 2 value { id: 2 name: "loop_add_fusion_7" } }
  event_metadata { key: 3 value { id: 3 name: "MemcpyD2D" } }
  event_metadata { key: 4 value { id: 4 name: "jit_steps" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
planes {
  name: "/host:CPU"
  lines { name: "python" events { metadata_id: 1 offset_ps: 0 duration_ps: 90000000 stats { metadata_id: 1 str_value: "dot.1" } } }
  event_metadata { key: 1 value { id: 1 name: "dot.1" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""  # noqa: E501
TEXT = """
  %cudnn-conv.3 = bf16[8]{0} custom-call(%a), metadata={op_name="jit(steps)/transpose(jvp(ResNet))/stem_conv/conv"}
  ROOT %loop_add_fusion.7 = f32[8]{0} fusion(%b), kind=kLoop, metadata={op_name="jit(steps)/jvp(vmap())/add" source_file="x"}
"""  # noqa: E501


def test_a_trace_of_a_card():
    serialized = ProfileData.text_proto_to_serialized_xspace(TRACE)
    found = kernels.events(ProfileData.from_serialized_xspace(serialized))
    made = kernels.summary(found, steps=2, named=kernels.names(TEXT))
    # 6 + 3 + 1 + 1 us of kernels, in 20 us of which the second copy's first 10 are idle.
    assert made["kinds"] == {
        kind: {
            "share": pytest.approx(us / 11),
            "ms_a_step": pytest.approx(us / 2000),
            "kernels_a_step": count / 2,
        }
        for kind, us, count in (
            ("convolution", 6, 1),
            ("elementwise, normalisation", 3, 1),
            ("copy, transpose", 2, 2),
        )
    }
    shares = {part: row["share"] for part, row in made["parts"].items()}
    want = {"encoder, backward": 6 / 11, "views": 3 / 11, "other": 2 / 11}
    assert shares == pytest.approx(want)
    assert made["busy"] == pytest.approx(10 / 20)
    assert [row["kind"] for row in made["longest"]] == list(made["kinds"])
    assert made["longest"][0]["where"].endswith("stem_conv/conv")


def test_a_tpu_has_one_line_of_operations():
    text = TRACE.replace("GPU", "TPU").replace("Stream #13(Compute)", "XLA Ops")
    serialized = ProfileData.text_proto_to_serialized_xspace(text)
    found = kernels.events(ProfileData.from_serialized_xspace(serialized))
    assert [event.length for event in found] == [6000, 3000]


HOST = """
planes {
  name: "/host:CPU"
  lines {
    name: "tf_XLAEigen/1"
    events { metadata_id: 1 offset_ps: 0 duration_ps: 9000000 stats { metadata_id: 1 str_value: "while.1" } }
    events { metadata_id: 2 offset_ps: 1000000 duration_ps: 5000000 stats { metadata_id: 1 str_value: "dot.1" } }
    events { metadata_id: 3 offset_ps: 6000000 duration_ps: 5000000 }
  }
  event_metadata { key: 1 value { id: 1 name: "while.1" } }
  event_metadata { key: 2 value { id: 2 name: "dot.1" } }
  event_metadata { key: 3 value { id: 3 name: "ThreadpoolListener::Record" } }
  stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }
}
"""  # noqa: E501


def test_a_cpu_has_operations_among_much_else():
    serialized = ProfileData.text_proto_to_serialized_xspace(HOST)
    found = kernels.events(ProfileData.from_serialized_xspace(serialized))
    assert [(event.op, event.length) for event in found] == [("dot.1", 5000)]


def test_nothing_recorded_is_no_error():
    made = kernels.summary([], steps=1, named={})
    assert (made["kinds"], made["longest"], made["busy"]) == ({}, [], 0.0)


def test_a_trace_recorded_here(tmp_path):
    @jax.jit
    def work(x, w):
        made = jnp.maximum(jax.lax.conv(x, w, (1, 1), "SAME"), 0).reshape(8, -1)
        return made @ made.T

    x, w = jnp.ones((8, 4, 32, 32)), jnp.ones((8, 4, 3, 3))
    work(x, w).block_until_ready()
    with jax.profiler.trace(str(tmp_path)):
        for _ in range(3):
            work(x, w).block_until_ready()
    made = kernels.summary(kernels.read(tmp_path), 3, {})
    assert made["kinds"]["convolution"]["kernels_a_step"] >= 1
    assert sum(row["share"] for row in made["kinds"].values()) == pytest.approx(1)
    assert 0 < made["busy"] <= 1
