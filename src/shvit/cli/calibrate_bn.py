"""`shvit calibrate-bn`."""

from ..console import say
from ..errors import counted
from ..requests.calibrate_bn import CalibrateRequest
from .app import Json, console_for, finish
from .export import beside_model


def calibrate_bn(request: CalibrateRequest, *, json: Json = False) -> None:
    """Adapt a model to another image size without training, by recomputing its BatchNorm statistics."""
    from ..calibrate import calibrate_bn as run
    from ..modelfile import save
    from ..pretrained import load_model
    from ..tasks.labelled_data import open_as_trained

    console = console_for(json)
    model_file = load_model(request.model)
    source = open_as_trained(request.data, model_file)
    size, loading = request.image_size, (request.batch_size, request.workers, request.device)
    result = run(model_file, source, size, request.images, *loading)
    out = request.out or beside_model(request.model, ".safetensors", str(size))
    save(result.model_file, out)
    before, after = result.before, result.after
    say(
        console,
        f"top-1 at {size} pixels: {before['top1']:.2%} before, {after['top1']:.2%} after, on "
        f"{counted(after['images'], 'image')}; BatchNorm statistics from {counted(result.images, 'training image')}",
    )
    say(console, f"wrote {out}")
    finish(json, {"out": str(out), **result.to_dict()})
