# Labels images: python reader.py [MODEL [IMAGE ...]]
# Install: pip install onnxruntime numpy pillow

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

model = sys.argv[1] if len(sys.argv) > 1 else "best.onnx"
session = onnxruntime.InferenceSession(model)
facts = json.loads(session.get_modelmeta().custom_metadata_map["shvit"])
sample = facts["sample"]


def run(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode[0] in "IF":
        sys.exit(f"{path}: save it with 8 bits per value")
    image = image.convert("RGBA")  # transparent pixels are blended with white
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return session.run(["scores"], {"image": np.array(image)})[0]


scores = run(Path(model).with_name(sample["image"]))
if not np.allclose(scores[sample["classes"]], sample["scores"], rtol=0, atol=0.01):
    sys.exit(f"self-check failed: {model} gives other scores for {sample['image']} than at its export")
print("self-check passed")
for path in sys.argv[2:]:
    scores = run(path)
    print(f"{path}: {facts['classes'][scores.argmax()]} {scores.max():.4f}")
