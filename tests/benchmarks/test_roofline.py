"""Bytes of a compiled program, and shares of what a device can do, from known numbers."""

import jax
import jax.numpy as jnp
import pytest
from measured import roofline

# 1024 floats are 4096 bytes. The loop runs five times and reads one row of 16 in each.
PROGRAM = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[1024]{0})->f32[16]{0}}

%fused_slice (param_0: f32[16,1024], param_1: s32[]) -> f32[1024] {
  %param_0 = f32[16,1024]{1,0} parameter(0)
  %param_1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %cut = f32[1,1024]{1,0} dynamic-slice(%param_0, %param_1, %zero), dynamic_slice_sizes={1,1024}
  ROOT %flat = f32[1024]{0} bitcast(%cut)
}

%body (carried: (s32[], f32[16,1024], f32[1024])) -> (s32[], f32[16,1024], f32[1024]) {
  %carried = (s32[], f32[16,1024]{1,0}, f32[1024]{0}) parameter(0)
  %i = s32[] get-tuple-element(%carried), index=0
  %table = f32[16,1024]{1,0} get-tuple-element(%carried), index=1
  %row = f32[1024]{0} fusion(%table, %i), kind=kLoop, calls=%fused_slice
  ROOT %next = (s32[], f32[16,1024]{1,0}, f32[1024]{0}) tuple(%i, %table, %row)
}

%test (carried.1: (s32[], f32[16,1024], f32[1024])) -> pred[] {
  %carried.1 = (s32[], f32[16,1024]{1,0}, f32[1024]{0}) parameter(0)
  ROOT %more = pred[] constant(true)
}

ENTRY %main (x: f32[1024], y: bf16[1024], start: (s32[], f32[16,1024], f32[1024])) -> f32[1024] {
  %x = f32[1024]{0} parameter(0)
  %y = bf16[1024]{0:T(1024)(2,1)} parameter(1)
  %start = (s32[], f32[16,1024]{1,0}, f32[1024]{0}) parameter(2)
  %sum = (f32[1024]{0}, u8[0]{0}) custom-call(%x, bf16[1024]{0} %y), custom_call_target="__cudnn$convForward"
  %loop = (s32[], f32[16,1024]{1,0}, f32[1024]{0}) while(%start), condition=%test, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %whole = f32[16,1024]{1,0} get-tuple-element(%loop), index=1
  %zeros = s32[] constant(0)
  %one = f32[1,1024]{1,0} bitcast(%x)
  %put = f32[16,1024]{1,0} dynamic-update-slice(%whole, %one, %zeros, %zeros)
  ROOT %result = f32[1024]{0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_bytes_of_a_program_written_by_hand():
    call = 4096 + 2048 + 4096  # a custom call reads both and writes one
    turn = 4096 + 4 + 4096  # a row is read, with its number, and written
    put = 2 * 4096  # read and written, in its place
    assert roofline.moved_bytes(PROGRAM) == call + 5 * turn + put


def test_bytes_of_a_program_compiled_here():
    x = jnp.zeros((512, 512))
    compiled = jax.jit(lambda x: x + 1).lower(x).compile()
    found = roofline.of_compiled(compiled, steps=2)
    assert found["moved_bytes"] == x.nbytes  # read and written, for two steps
    assert found["cost_flops"] == pytest.approx(x.size / 2)
    assert found["memory_bytes"] >= 2 * x.nbytes


def test_shares():
    # 0.2 s: of 800 TFLOP/s are used 400, of 4 TB/s 3.
    found = roofline.shares(0.2, flops=80e12, moved=0.6e12, flops_per_s=800e12, bytes_per_s=4e12)
    want = {"of_flops": 0.5, "of_bytes": 0.75, "of_roofline": 0.75, "flops_per_byte": 80 / 0.6}
    assert found == pytest.approx(want)
