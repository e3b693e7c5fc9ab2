"""Each engine's profile is sorted into kinds and modules."""

from dataclasses import replace

import pytest

import shvit
from shvit.bench.case import open_model
from shvit.engines import ENGINES, operations
from shvit.errors import InputError
from shvit.study.breakdown import (
    DEPTHWISE,
    ELEMENTWISE,
    FUSED,
    MEMORY_BOUND,
    MOVE,
    NORM,
    OTHER,
    PRODUCT,
    SOFTMAX,
    Breakdown,
    PartTime,
    operation_kind,
    pick_profilers,
    time_breakdown,
)


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("Conv", PRODUCT),
        ("FusedConv", PRODUCT),
        ("FusedMatMul", PRODUCT),
        ("addmm", PRODUCT),
        ("FullyConnected", PRODUCT),
        ("Softmax", SOFTMAX),
        ("LayerNormalization", NORM),
        ("native_batch_norm", NORM),
        ("MVN", NORM),
        ("ScaledDotProductAttentionWithKVCache", FUSED),
        ("Transpose", MOVE),
        ("Reorder", MOVE),
        ("Split", MOVE),
        ("copy_", MOVE),
        ("Relu", ELEMENTWISE),
        ("GlobalAveragePool", ELEMENTWISE),
        ("Eltwise", ELEMENTWISE),
        ("Convert", ELEMENTWISE),
        ("upsample_bilinear2d", ELEMENTWISE),
        ("Nonsense", OTHER),
    ],
)
def test_kinds_by_the_names_of_operations(operation, kind):
    assert operation_kind(operation) == kind


def test_shares_are_of_the_time_and_of_the_parts_asked_for():
    spent = (
        PartTime("stem.0", PRODUCT, 2.0),
        PartTime("stages.0.0.local", DEPTHWISE, 1.0),
        PartTime("stages.1.0.mixer.branch.norm", NORM, 3.0),
        PartTime("stages.1.0.mixer.branch.qkv", PRODUCT, 1.0),
        PartTime("head", PRODUCT, 0.5),
        PartTime("network", ELEMENTWISE, 0.5),
        PartTime("", MOVE, 0.25),
    )
    one = Breakdown("m", "onnx", 1, 32, spent, ("stages.1.0.mixer.branch",))
    assert one.seconds() == 8.25
    assert one.memory_bound() == pytest.approx(4.75 / 8.25)
    assert one.attention.shares() == {kind: {NORM: 0.75, PRODUCT: 0.25}.get(kind, 0.0) for kind in one.shares()}
    assert replace(one, attention_modules=("nowhere", "stages.1.0.mixer.bra")).attention.memory_bound() is None
    assert one.stage_seconds() == {"stem": 2.0, "stage 1": 1.0, "stage 2": 4.0, "head": 1.0, "pixels to floats": 0.25}


@pytest.mark.parametrize("engine", operations.PROFILERS)
def test_a_networks_time_goes_to_its_modules(engine):
    if reason := ENGINES[engine].unavailable("cpu"):
        pytest.skip(reason)
    model = open_model("study/s1-multi-head", 64)
    result = time_breakdown(model, engine, batch_size=1, threads=1)
    assert sum(result.shares().values()) == pytest.approx(1)
    modules = {name for name, _ in shvit.fuse(model.model).named_modules()}
    inside = {row.part for row in result.spent if row.part.split(".")[0] in ("stem", "stages", "head")}
    assert {row.part for row in result.spent} - inside <= {"", "network", "normalize"}
    assert {part.split(".")[0] for part in inside} == {"stem", "stages", "head"}
    assert len(inside & modules) > 20
    shares = result.shares()
    assert shares[PRODUCT] > 0
    assert shares[DEPTHWISE] > 0
    mixers = result.attention.shares()
    assert mixers[SOFTMAX] + mixers[FUSED] > 0
    assert mixers[DEPTHWISE] == 0
    assert {"stem", "stage 1", "stage 2", "stage 3", "head"} <= set(result.stage_seconds())
    assert result.memory_bound() == pytest.approx(sum(shares[kind] for kind in MEMORY_BOUND))


def test_an_engine_without_a_profile_is_refused():
    with pytest.raises(InputError, match=r"'executorch': it has no profiler\. Choose from: "):
        pick_profilers(["executorch"])
