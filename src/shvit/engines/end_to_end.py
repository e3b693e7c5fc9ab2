"""Graphs that turn an image of any size into a network's input, and its outputs into results. Written in ONNX.

An end-to-end export is the composition of three graphs: preprocessing, the exported network, and the results of the
task (`Task.results_graph`). OpenVINO reads the same graphs.
"""

import math
from typing import TYPE_CHECKING

import numpy as np

from ..data.transforms import MARGIN, REACH, Preprocess
from ..errors import InputError
from ..modelfile import ModelFile
from ..tasks import task_of
from ..tasks.base import Task
from .exported import IMAGE_INPUT, EngineError

if TYPE_CHECKING:
    import onnx

OPSET, IR_VERSION = 18, 9
"""The first version of ONNX with antialiasing, and its oldest file format, which old runtimes can read."""
_THIN = 64
"""With ONNX's Resize, an image is cut before it is resized if its resized longer side would exceed this many times
`image_size`."""
_MODES = {"bicubic": "cubic", "bilinear": "linear"}
"""ONNX's names of the interpolations that can be antialiased."""

_SIZES = {
    "crop": """
    least = ReduceMin <keepdims=0> (size)
    enlarged = Mul (size, shorter)
    resized = Div (enlarged, least)
    surplus = Sub (resized, square)
    half = Div (surplus, two)
    odd = Mod (surplus, two)
    half_odd = Mod (half, two)
    up = Mul (odd, half_odd)
    first = Add (half, up)
    shown = Identity (square)
    """,
    "stretch": """
    resized = Identity (square)
    first = Identity (zeros)
    shown = Identity (square)
    """,
    "letterbox": """
    longer = ReduceMax <keepdims=0> (size)
    enlarged = Mul (size, twice_side)
    doubled = Add (enlarged, longer)
    twice_longer = Mul (longer, two)
    nearest = Div (doubled, twice_longer)
    remainder = Mod (doubled, twice_longer)
    tied = Equal (remainder, zero)
    tie = Cast <to=7> (tied)
    nearest_odd = Mod (nearest, two)
    down = Mul (tie, nearest_odd)
    even = Sub (nearest, down)
    resized = Max (even, one)
    first = Identity (zeros)
    shown = Identity (resized)
    """,
}
"""The size of the resized image, and the part of it that is used: `shown` pixels, from the pixel `first` on.

`crop`: the center square, as timm and torchvision round its edges (a half to the nearest even number).
`letterbox`: the longer side is `side`; the shorter side is rounded in the same way.
"""
_WHOLE = """
    part = Identity (image)
    part_resized = Identity (resized)
    skipped = Identity (zeros)
"""
_NEEDED = """
    least_reach = Mul (least, reach)
    more_reach = Div (least_reach, shorter)
    margin = Add (more_reach, reach_and_two)
    first_least = Mul (first, least)
    first_pixel = Div (first_least, shorter)
    early = Sub (first_pixel, margin)
    from_needed = Max (early, zeros)
    end = Add (first, shown)
    end_least = Mul (end, least)
    end_pixel = Div (end_least, shorter)
    late = Add (end_pixel, margin)
    to_needed = Min (late, size)
"""
"""With fit `crop`: the part of the image that influences the center square. No product exceeds 32 bits, since
OpenVINO's integers are that short."""
_PART = """
    longest = ReduceMax <keepdims=0> (resized)
    thin = Greater (longest, thin_side)
    from = Where (thin, from_needed, zeros)
    to = Where (thin, to_needed, size)
    part = Slice (image, from, to)
    from_enlarged = Mul (from, shorter)
    skipped = Div (from_enlarged, least)
    to_enlarged = Mul (to, shorter)
    to_resized = Div (to_enlarged, least)
    part_resized = Sub (to_resized, skipped)
"""
"""A very long image is cut before it is resized, to save memory. The result may then be shifted by up to one pixel."""
_OPERATION = """
    planes = Transpose <perm=[2, 0, 1]> (part)
    batch = Unsqueeze (planes, zero_axis)
    whole = Resize <mode="MODE", antialias=1, cubic_coeff_a=-0.5, axes=[2, 3]> (batch, , , part_resized)
    start = Sub (first, skipped)
    stop = Add (start, shown)
    pixels = Slice (whole, start, stop, image_axes)
"""
_PRODUCTS = """
    part = Slice (image, from_needed, to_needed)
    planes = Transpose <perm=[2, 0, 1]> (part)
    values = Cast <to=1> (planes)
{vertical}
{horizontal}
    turned = Transpose <perm=[0, 2, 1]> (weights_1)
    rows = MatMul (values, turned)
    rows_half = Add (rows, half_f)
    rows_floor = Floor (rows_half)
    rows_rounded = Clip (rows_floor, zero_f, white_f)
    columns = MatMul (weights_0, rows_rounded)
    columns_half = Add (columns, half_f)
    columns_floor = Floor (columns_half)
    columns_rounded = Clip (columns_floor, zero_f, white_f)
    bytes = Cast <to=2> (columns_rounded)
    pixels = Unsqueeze (bytes, zero_axis)
"""
"""As in Pillow, the values are rounded after each of the two passes."""
_WEIGHTS = """
    size_{n} = Gather (size, index_{n})
    size_f_{n} = Cast <to=1> (size_{n})
    resized_{n} = Gather (resized, index_{n})
    resized_f_{n} = Cast <to=1> (resized_{n})
{inverse}
    scale_{n} = Mul (size_f_{n}, inverse_{n})
    backwards_{n} = Mul (scale_{n}, minus_known_one)
    width_{n} = Max (scale_{n}, known_one)
    double_{n} = Add (width_{n}, width_{n})
{narrow}
    from_{n} = Gather (from_needed, index_{n})
    to_{n} = Gather (to_needed, index_{n})
    first_{n} = Gather (first, index_{n})
    shown_{n} = Gather (shown, index_{n})
    last_{n} = Add (first_{n}, shown_{n})
    out_{n} = Range (first_{n}, last_{n}, one)
    out_column_{n} = Reshape (out_{n}, column)
    out_twice_{n} = Mul (out_column_{n}, two)
    out_odd_{n} = Add (out_twice_{n}, one)
    out_f_{n} = Cast <to=1> (out_odd_{n})
    centers_{n} = Mul (out_f_{n}, backwards_{n})
    in_{n} = Range (from_{n}, to_{n}, one)
    in_row_{n} = Reshape (in_{n}, row)
    in_twice_{n} = Mul (in_row_{n}, two)
    in_odd_{n} = Add (in_twice_{n}, one)
    in_f_{n} = Cast <to=1> (in_odd_{n})
    distance_{n} = Add (in_f_{n}, centers_{n})
    relative_{n} = Mul (distance_{n}, narrow_{n})
    t_{n} = Abs (relative_{n})
{filter}
    sums_{n} = ReduceSum <keepdims=1> (raw_{n}, two_axis)
{per_sum}
    weights_{n} = Mul (raw_{n}, per_sum_{n})
"""
"""The weight of each pixel of the image (columns) in each pixel of the result (rows), as Pillow computes them. Centers
of pixels are at half pixels, so twice their positions are odd numbers."""
_CLOSER = """
    product_{to} = Mul ({value}, {guess})
    negative_{to} = Mul (product_{to}, minus_known_one)
    rest_{to} = Add (negative_{to}, known_one)
    step_{to} = Mul ({guess}, rest_{to})
    {to} = Add ({guess}, step_{to})
"""
"""A step of Newton's method from a guess towards 1 / value."""
_KNOWN = """
    smallest = ReduceMin <keepdims=0> (size)
    one_again = Div (smallest, smallest)
"""
"""The number 1, but no constant. Operations of floating-point numbers with constants lose the mark `precise`, because
OpenVINO replaces them, so all constants are computed from this number."""
_NUMBERS = {"minus_known_one": -1, "known_one": 1, "known_two": 2, "known_three": 3, "known_four": 4, "known_five": 5}
_NUMBERS |= {"minus_known_two": -2, "minus_known_five": -5, "minus_known_eight": -8}
_FILTERS = {
    "bilinear": """
    less_{n} = Mul (t_{n}, minus_known_two)
    inner_{n} = Add (less_{n}, known_two)
    raw_{n} = Relu (inner_{n})
    """,
    "bicubic": """
    t_near_{n} = Min (t_{n}, known_one)
    near_a_{n} = Mul (t_near_{n}, known_three)
    near_b_{n} = Add (near_a_{n}, minus_known_five)
    near_c_{n} = Mul (t_near_{n}, t_near_{n})
    near_d_{n} = Mul (near_b_{n}, near_c_{n})
    near_{n} = Add (near_d_{n}, known_two)
    t_far_{n} = Min (t_{n}, known_two)
    far_a_{n} = Mul (t_far_{n}, minus_known_one)
    far_b_{n} = Add (far_a_{n}, known_five)
    far_c_{n} = Mul (far_b_{n}, t_far_{n})
    far_d_{n} = Add (far_c_{n}, minus_known_eight)
    far_e_{n} = Mul (far_d_{n}, t_far_{n})
    far_{n} = Add (far_e_{n}, known_four)
    is_near_{n} = Less (t_{n}, known_one)
    raw_{n} = Where (is_near_{n}, near_{n}, far_{n})
    """,
}
"""Twice the value of Pillow's filters at the distance t: a triangle, and the cubic convolution with a = -0.5."""
_PAD = """
    room = Sub (square, resized)
    BEFORE
    after = Sub (room, before)
    pads = Concat <axis=0> (zeros, before, zeros, after)
    values_f = Cast <to=1> (pixels)
    differences = Add (values_f, minus_color)
    padded = Pad (differences, pads)
    canvas = Add (padded, color)
    placed = Cast <to=2> (canvas)
"""
_PLACED = {
    "crop": "placed = Identity (pixels)",
    "stretch": "placed = Identity (pixels)",
    "letterbox": _PAD.replace("BEFORE", "before = Div (room, two)"),
    "whole": _PAD.replace("BEFORE", "before = Identity (zeros)"),
}


def preprocessing(preprocess: Preprocess, products: bool = False) -> "onnx.ModelProto":
    """The graph from an image (height, width, 3) to the network's input.

    Its outputs are `images`, uint8 (1, 3, side, side); `size`, the height and width of the image; and `resized`, the
    height and width after resizing. `images` equals the result of `EvalReader` (for detectors: `read_whole`), up to
    rounding.

    Args:
        preprocess: The preprocessing of the model. Its interpolation must be a key of `_MODES`.
        products: Whether to resize by products with matrices of weights instead of ONNX's Resize, for OpenVINO. Its
            own operation prepares itself for a second whenever the image's size changes (LOG.md).

    Raises:
        EngineError: The interpolation is not available.
    """
    interpolation = "bilinear" if preprocess.fit == "whole" else preprocess.interpolation
    if interpolation not in _MODES:
        raise EngineError(
            f"--end-to-end resizes with {' or '.join(_MODES)}, but the model uses {interpolation}: leave it out"
        )
    if products:
        weights = _WEIGHTS.replace("{filter}", _FILTERS[interpolation])
        for name, value in (("inverse", "resized_f"), ("narrow", "double"), ("per_sum", "sums")):
            weights = weights.replace(f"{{{name}}}", _inverse(name, value))
        cut = _NEEDED if preprocess.fit == "crop" else "from_needed = Identity (zeros)\n to_needed = Identity (size)"
        axes = {"vertical": weights.replace("{n}", "0"), "horizontal": weights.replace("{n}", "1")}
        known = "".join(
            f"{name}_whole = Mul (one_again, {name}_int)\n {name} = Cast <to=1> ({name}_whole)\n" for name in _NUMBERS
        )
        resize = _KNOWN + known + _PRODUCTS.format(**axes)
    else:
        cut = _NEEDED + _PART if preprocess.fit == "crop" else _WHOLE
        resize = _OPERATION.replace("MODE", _MODES[interpolation])
    steps = f"""
    shape = Shape (image)
    size = Slice (shape, zero_axis, two_axis)
    {_SIZES["letterbox" if preprocess.fit == "whole" else preprocess.fit]}
    {cut}
    {resize}
    {_PLACED[preprocess.fit]}
    images = Reshape (placed, input_shape)
    """
    side = preprocess.image_size
    outputs = f"uint8[1, 3, {side}, {side}] images, int64[2] size, int64[2] resized"
    return graph(f"uint8[height, width, 3] {IMAGE_INPUT}", outputs, steps, _constants(preprocess))


def _inverse(name: str, value: str) -> str:
    """Nodes that compute 1 / value in fp32, even if OpenVINO computes powers in bf16.

    The sum of twice the weights is close to twice the width of the filter, except near the edges of the image.
    """
    known = name == "per_sum"
    guess, steps = ("narrow_{n}", 5) if known else (f"guess_{name}_{{n}}", 1)
    nodes = "" if known else f"{guess} = Pow ({value}_{{n}}, minus_one_f)\n"
    for step in range(steps, 0, -1):
        to = f"{name}_{{n}}" if step == 1 else f"{name}_{step}_{{n}}"
        nodes += _CLOSER.replace("{to}", to).replace("{value}", f"{value}_{{n}}").replace("{guess}", guess)
        guess = to
    return nodes


def _constants(preprocess: Preprocess) -> dict[str, np.ndarray]:
    """The constants of the preprocessing graph, by name."""
    side = preprocess.image_size
    color = np.array(MARGIN, np.float32).reshape(1, 3, 1, 1)
    whole_numbers = {
        **{"zero": 0, "one": 1, "two": 2, "index_0": 0, "index_1": 1},
        **{f"{name}_int": value for name, value in _NUMBERS.items()},
        **{
            "zero_axis": [0],
            "two_axis": [2],
            "image_axes": [2, 3],
            "zeros": [0, 0],
            "column": [1, -1, 1],
            "row": [1, 1, -1],
        },
        **{
            "twice_side": 2 * side,
            "thin_side": _THIN * side,
            "square": [side, side],
            "input_shape": [1, 3, side, side],
        },
        **{"shorter": math.floor(side / preprocess.crop), "reach": REACH, "reach_and_two": REACH + 2},
    }
    numbers = {
        **{"zero_f": 0, "half_f": 0.5, "minus_one_f": -1, "white_f": 255, "color": color, "minus_color": -color},
    }
    of_type = (whole_numbers, np.int64), (numbers, np.float32)
    return {name: np.array(value, kind) for group, kind in of_type for name, value in group.items()}


def graph(inputs: str, outputs: str, steps: str, constants: dict[str, np.ndarray]) -> "onnx.ModelProto":
    """A model from the text of its nodes. `constants` that no node uses are left out."""
    import onnx
    import onnx.numpy_helper
    import onnx.parser

    model = onnx.parser.parse_model(
        f'<ir_version: {IR_VERSION}, opset_import: ["" : {OPSET}]> g ({inputs}) => ({outputs}) {{ {steps} }}'
    )
    used = {name for node in model.graph.node for name in node.input}
    tensors = [onnx.numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    model.graph.initializer.extend(tensors)
    onnx.checker.check_model(model)
    return model


def results(task: Task) -> "onnx.ModelProto":
    """The graph from a network's raw outputs to the results of the task; see `Task.results_graph`."""
    text = task.results_graph()
    return graph(text.inputs, text.outputs, text.steps, dict(text.constants))


def check_image(image: np.ndarray) -> None:
    """Raise InputError unless this is one RGB image: uint8 (height, width, 3), at least one pixel."""
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"an end-to-end file takes uint8 RGB (height, width, 3), got {image.dtype} {image.shape}")


def around(network: "onnx.ModelProto", model_file: ModelFile) -> "onnx.ModelProto":
    """The network, which takes one image of the model's size, together with its preprocessing and results."""
    from onnx import compose

    task = task_of(model_file)
    before, after = preprocessing(model_file.preprocess), results(task)
    parts = [
        compose.add_prefix(part, f"{name}/", rename_inputs=False, rename_outputs=False)
        for name, part in (("preprocessing", before), ("network", network), ("results", after))
    ]
    for part in parts:
        part.ir_version = IR_VERSION
    parts[1].graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del parts[1].graph.value_info[:]  # shapes with any batch size
    joined = compose.merge_models(parts[0], parts[1], [("images", "images")])
    needed = [(end.name, end.name) for end in after.graph.input]
    joined = compose.merge_models(joined, parts[2], needed, outputs=list(task.result_names))
    for names, ends in (((IMAGE_INPUT,), joined.graph.input), (task.result_names, joined.graph.output)):
        if [end.name for end in ends] != list(names):
            raise AssertionError(f"the composed graph has {[end.name for end in ends]} instead of {names}")
    return joined
