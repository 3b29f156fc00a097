"""Bytes, loops and collectives of programs whose text is written out here."""

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from benchmarks.accelerators import hlo
from benchmarks.accelerators.operations import count_operations
from unseg_jax.backbones import attention

LOOP = """HloModule jit_run, is_scheduled=true

%double (p: f32[8,64]) -> f32[8,64] {
  %p = f32[8,64]{1,0:T(8,128)} parameter(0)
  ROOT %twice = f32[8,64]{1,0:T(8,128)} add(%p, %p)
}

%body (t: (s32[], f32[8,64], s32[])) -> (s32[], f32[8,64], s32[]) {
  %t = (s32[]{:T(128)}, f32[8,64]{1,0:T(8,128)}, /*index=2*/s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%t), index=0
  %x = f32[8,64]{1,0:T(8,128)} get-tuple-element(%t), index=1
  %limit = s32[]{:T(128)} get-tuple-element(%t), index=2
  %one = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)S(6)} add(%i, %one)
  %near = f32[8,64]{1,0:T(8,128)S(1)} copy(%x), backend_config={"estimated_cycles":"100"}
  %y = f32[8,64]{1,0:T(8,128)} fusion(%near), calls=%double, c={"estimated_cycles":"50"}
  ROOT %r = (s32[]{:T(128)}, f32[8,64]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%next, %y, %limit)
}

%condition (c: (s32[], f32[8,64], s32[])) -> pred[] {
  %c = (s32[]{:T(128)}, f32[8,64]{1,0:T(8,128)}, s32[]{:T(128)}) parameter(0)
  %at = s32[]{:T(128)} get-tuple-element(%c), index=0
  %end = s32[]{:T(128)} get-tuple-element(%c), index=2
  ROOT %less = pred[]{:T(512)} compare(%at, %end), direction=LT
}

ENTRY %main (a: f32[8,64]) -> f32[8,64] {
  %a = f32[8,64]{1,0:T(8,128)} parameter(0)
  %zero = s32[]{:T(128)} constant(1)
  %ten = s32[]{:T(128)} constant(10)
  %start = (s32[]{:T(128)}, f32[8,64]{1,0:T(8,128)}, s32[]{:T(128)}) tuple(%zero, %a, %ten)
  %loop = (s32[], f32[8,64], s32[]) while(%start), condition=%condition, body=%body
  ROOT %out = f32[8,64]{1,0:T(8,128)} get-tuple-element(%loop), index=1
}
"""

ARRAY = 8 * 64 * 4
TILED = 8 * 128 * 4


def test_the_body_of_a_loop_counts_as_often_as_it_runs():
    cost = hlo.measure(hlo.parse(LOOP))
    (loop,) = cost.loops
    assert loop.trips == 5  # 1, 3, 5, 7, 9
    # The copy reads HBM and writes VMEM; the fusion reads VMEM and writes HBM; the counter's sum
    # reads 2 numbers in HBM.
    assert loop.body.bytes == 2 * ARRAY + 2 * 4
    assert loop.body.padded_bytes == 2 * TILED + 2 * 4
    assert loop.body.fast_bytes == 2 * ARRAY + 4
    assert cost.bytes == 5 * loop.body.bytes
    assert cost.cycles == 5 * 150
    assert loop.body.kernels == 3
    assert cost.opcodes == {"copy": 5, "fusion": 5, "add": 5}
    assert cost.unknown_loops == []


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("direction=LT", "direction=LE", 5),
        ("direction=LT", "direction=GT", None),
        ("%ten = s32[]{:T(128)} constant(10)", "%ten = s32[]{:T(128)} copy(%zero)", 0),
        ("%one = s32[]{:T(128)} constant(2)", "%one = s32[]{:T(128)} copy(%i)", None),
        ("body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}\n', 7),
    ],
)
def test_trips_come_from_the_condition_or_are_unknown(old, new, trips):
    assert old in LOOP
    cost = hlo.measure(hlo.parse(LOOP.replace(old, new)))
    assert cost.loops[0].trips == trips
    assert cost.unknown_loops == (["loop"] if trips is None else [])


def test_a_condition_may_lie_in_a_fusion():
    attention = """%less_inside (q: s32[], w: s32[]) -> pred[] {
  %q = s32[] parameter(0)
  %w = s32[] parameter(1)
  ROOT %inside = pred[] compare(%w, %q), direction=GT
}

%condition ("""
    text = LOOP.replace("%condition (", attention, 1).replace(
        "compare(%at, %end), direction=LT", "fusion(%at, %end), kind=kLoop, calls=%less_inside"
    )
    assert hlo.measure(hlo.parse(text)).loops[0].trips == 5


SLICED = """HloModule sliced

%take (p: f32[12,16,128], i: s32[]) -> f32[16,128] {
  %p = f32[12,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  %part = f32[1,16,128]{2,1,0} dynamic-slice(%p, %i, %z, %z), dynamic_slice_sizes={1,16,128}
  ROOT %flat = f32[16,128]{1,0} bitcast(%part)
}

%put (p: f32[12,16,128], x: f32[1,16,128], i: s32[]) -> f32[12,16,128] {
  %p = f32[12,16,128]{2,1,0} parameter(0)
  %x = f32[1,16,128]{2,1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %whole = f32[12,16,128]{2,1,0} dynamic-update-slice(%p, %x, %i, %z, %z)
}

ENTRY %main (p: f32[12,16,128], i: s32[]) -> f32[12,16,128] {
  %p = f32[12,16,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %row = f32[16,128]{1,0} fusion(%p, %i), kind=kLoop, calls=%take
  %shaped = f32[1,16,128]{2,1,0} bitcast(%row)
  ROOT %new = f32[12,16,128]{2,1,0} fusion(%p, %shaped, %i), kind=kLoop, calls=%put
}
"""


def test_only_the_slices_of_an_array_count():
    cost = hlo.measure(hlo.parse(SLICED))
    part = 16 * 128 * 4
    # Read and write of the slice; read and write of the update; the index, twice.
    assert cost.bytes == 4 * part + 2 * 4
    assert cost.kernels == 2


def test_collectives_and_host_calls_are_named():
    text = """HloModule exchange

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(%a, %b)
}

ENTRY %main (x: f32[256]) -> f32[256] {
  %x = f32[256]{0} parameter(0)
  %begun = f32[256]{0} all-reduce-start(%x), replica_groups={{0,1}}, to_apply=%sum
  %done = f32[256]{0} all-reduce-done(%begun)
  %all = f32[256]{0} all-gather(%done), dimensions={0}, metadata={op_name="jit(f)/vmap()/eigh"}
  %space = f32[256]{0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %called = f32[256]{0} custom-call(%all), custom_call_target="xla_ffi_python_cpu_callback"
}
"""
    cost = hlo.measure(hlo.parse(text))
    assert cost.collectives == {"all-reduce": 1, "all-gather (eigh)": 1}
    assert cost.host_calls == ["xla_ffi_python_cpu_callback"]
    assert cost.kernels == 3


def test_arrays_are_padded_to_their_tiles():
    (array,) = hlo._arrays("bf16[64,784,2]{1,2,0:T(2,128)(2,1)S(1)}")
    assert (array.dtype, array.shape, array.order) == ("bf16", (64, 784, 2), (1, 2, 0))
    assert (array.tile, array.space) == ((2, 128), 1)
    assert array.bytes == 64 * 784 * 2 * 2
    assert array.padded_bytes == 64 * 896 * 2 * 2  # nodes are the fast axis: 784 → 7 · 128
    (wasteful,) = hlo._arrays("f32[784,2]{1,0:T(8,128)}")
    assert wasteful.padded_bytes == 784 * 128 * 4


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("not a module")


def test_the_text_of_this_jax_is_understood():
    def run(x):
        def step(x, _):
            return jnp.tanh(x @ x), x.sum()

        return jax.lax.scan(step, x, None, length=6)

    shape = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    lowered = jax.jit(run).lower(shape)
    cost = hlo.measure(hlo.parse(lowered.compile().as_text()))
    assert [loop.trips for loop in cost.loops] == [6]
    # At the least, x is read and written each time.
    assert cost.loops[0].body.bytes >= 2 * 32 * 32 * 4


def test_operations_are_counted_through_loops_and_by_precision():
    a, b = jnp.ones((4, 8)), jnp.ones((8, 16))
    half = a.astype(jnp.bfloat16)

    def run(a, b, half):
        def step(carry, _):
            return carry + jnp.sum(a @ b), None

        total, _ = jax.lax.scan(step, 0.0, None, length=3)
        exact = jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
        turned = jax.vmap(lambda row: b.T @ row)(a)
        return total, exact, turned, half @ b.astype(jnp.bfloat16)

    found = count_operations(jax.make_jaxpr(jax.jit(run))(a, b, half))
    product = 2 * 4 * 8 * 16
    assert found.default == 3 * product + product
    assert (found.exact, found.half, found.open_loops) == (product, product, 0)


def test_operations_of_a_convolution_and_of_an_open_loop():
    x, kernel = jnp.ones((2, 3, 16, 16)), jnp.ones((5, 3, 4, 4))

    def run(x, kernel):
        x = jax.lax.while_loop(lambda x: x.sum() > 0, lambda x: x - 1, x)
        return jax.lax.conv(x, kernel, (4, 4), "VALID")

    found = count_operations(jax.make_jaxpr(run)(x, kernel))
    assert found.total == 2 * (2 * 5 * 4 * 4) * (3 * 4 * 4)
    assert found.open_loops == 1


def test_operations_of_attention_in_one_kernel(monkeypatch):
    batch, tokens, heads, width = 2, 300, 4, 64
    qkv = jnp.zeros((batch, tokens, 3 * heads * width), jnp.bfloat16)
    found = count_operations(jax.make_jaxpr(lambda q: attention.attend_on_tpu(q, heads))(qkv))
    # Two parts of 256 rows: those beyond the tokens are computed too.
    assert found.half == 2 * 2 * batch * heads * 512 * tokens * width
    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)
    found = count_operations(jax.make_jaxpr(lambda q: attention.attend_on_gpu(q, heads))(qkv))
    assert found.half == 2 * 2 * batch * heads * tokens * tokens * width


def test_operations_of_shares_are_those_of_all_devices():
    automatic = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ("images",), axis_types=automatic)
    whole, share = jax.sharding.PartitionSpec(), jax.sharding.PartitionSpec("images")
    run = jax.shard_map(lambda b, a: a @ b, mesh=mesh, in_specs=(whole, share), out_specs=share)
    found = count_operations(jax.make_jaxpr(run)(jnp.ones((16, 2)), jnp.ones((8, 16))))
    assert found.total == 2 * 8 * 16 * 2
