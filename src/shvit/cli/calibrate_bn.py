"""`shvit calibrate-bn`."""

from ..console import say
from ..errors import counted
from ..requests.calibrate_bn import CalibrateRequest
from .app import Json, console_for, finish


def calibrate_bn(request: CalibrateRequest, *, json: Json = False) -> None:
    """Adapt a model to another image size without training, by recomputing its BatchNorm statistics."""
    from ..calibrate import calibrate_bn as run

    console = console_for(json)
    result = run(request)
    before, after = result.before, result.after
    say(
        console,
        f"top-1 at {request.image_size} pixels: {before['top1']:.2%} before, {after['top1']:.2%} after, on "
        f"{counted(after['images'], 'image')}; BatchNorm statistics from {counted(result.images, 'training image')}",
    )
    say(console, f"wrote {result.out}")
    finish(json, {"out": str(result.out), **result.to_dict()})
