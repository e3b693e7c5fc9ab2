"""`shvit models`."""

from ..console import say, show_table
from .app import Json, console_for, finish


def models(*, json: Json = False) -> None:
    """List the SHViT models and their published weights."""
    from ..model.architecture import Architecture, list_models
    from ..model.cost import cost
    from ..modelfile import empty
    from ..pretrained import PUBLISHED_TOP1

    rows = []
    for name in list_models():
        model = empty(Architecture(name))
        total = cost(model, (model.image_size, model.image_size))
        published = f"{name}.in1k"
        rows.append(
            {
                "name": name,
                "image_size": model.image_size,
                "params": total.params,
                "macs": total.macs,
                "published_weights": published,
                "published_top1": PUBLISHED_TOP1[published] / 100,
            }
        )
    console = console_for(json)
    table = [
        [r["name"], str(r["image_size"]), f"{r['params'] / 1e6:.1f} M", f"{r['macs'] / 1e6:.0f} M",
         r["published_weights"], f"{r['published_top1']:.1%}"]
        for r in rows
    ]  # fmt: skip
    show_table(console, ["name", "image size", "params", "MACs", "published weights", "top-1"], table)
    say(console, "Top-1 on ImageNet-1K, from timm's results. Any timm model can be used as timm/NAME.")
    finish(json, rows)
