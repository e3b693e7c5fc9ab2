"""Compile all Triton kernels of the `cuda` engine for a GPU, without a GPU, and report their resources.

For each kernel, the report lists tile sizes, registers, register spills, shared memory, whether the shared memory
fits into a multiprocessor, and the number of matrix instructions. Kernels that spill or do not fit need not be timed
on a GPU.

    python benchmarks/compile_kernels.py shvit_s1 shvit_s4 --batch-size 1 1024 --arch 90
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from shvit.bench.case import open_model
from shvit.engines.cuda.network import KernelNetwork
from shvit.engines.cuda.plan import OPTIONS, Launch
from shvit.engines.portable import portable

TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.uint8: "*u8",
    torch.int32: "*i32",
}
SHARED_MEMORY = {80: 163 * 1024, 86: 99 * 1024, 89: 99 * 1024, 90: 227 * 1024}
"""Maximum bytes per kernel, by compute capability. Source: CUDA C++ Programming Guide, technical specifications."""
PROCESSORS = 132
TILES = ("BLOCK", "BM", "BN", "BK", "BH", "BC", "TILE", "TOGETHER", "SPLITS", "num_warps", "num_stages")
ALIGNED = [["tt.divisibility", 16]]
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@dataclass(frozen=True)
class Compiled:
    """Resources of one compiled kernel."""

    model: str
    batch_size: int
    layer: str
    way: int
    """Index of the alternative implementation of this part of the network."""
    registers: int
    stack: int
    """Bytes per thread that do not fit into registers."""
    shared_memory: int
    fits: bool
    matrix_instructions: int
    tiles: dict[str, int]


def compiled(launch: Launch, arch: int) -> tuple[int, int, int, int]:
    """Compile a launch. Returns registers, stack, shared memory and the number of matrix instructions."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1):
            signature[parameter.name] = "constexpr"
            constants[index,] = value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = TYPES[value.dtype]
            attributes[index,] = ALIGNED
        else:
            signature[parameter.name] = "i32"
            if value % 16 == 0:
                attributes[index,] = ALIGNED
    options = {name: value for name, value in launch.arguments.items() if name.startswith("num_")} | OPTIONS
    source = ASTSource(launch.kernel, signature, constants, attributes)
    kernel: Any = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        used = _said(TOOLS / "cuobjdump", "--dump-resource-usage", file.name)
        code = _said(TOOLS / "nvdisasm", file.name)
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", used).groups())  # pyright: ignore
    return registers, stack, kernel.metadata.shared, len(re.findall(r"\bH(?:G)?MMA\b", code))


def _said(*command: Any) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def jobs(name: str, batch: int, first: bool) -> list[tuple[int, Launch]]:
    """All kernel launches that the engine can choose from for this network, each once."""
    model_file = open_model(name)
    side = model_file.preprocess.image_size
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(batch, -1, -1, -1)
    plan, _ = KernelNetwork(portable(model_file), torch.float16, "cpu").plan(images, PROCESSORS)
    parts = {part.key: part for part in plan.parts}.values()
    return [
        (number, launch)
        for part in parts
        for number, way in enumerate(part.ways[: 1 if first else None])
        for launch in way
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="shvit_s1 to shvit_s4, or model files")
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1024])
    parser.add_argument("--arch", type=int, default=90, help="compute capability, without the point")
    parser.add_argument("--first", action="store_true", help="compile only the first alternative for each part")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a .json file")
    args = parser.parse_args()

    rows: list[Compiled] = []
    for name in args.models:
        for batch in args.batch_size:
            todo = jobs(name, batch, args.first)
            with ThreadPoolExecutor(args.threads) as pool:
                made = pool.map(lambda job: compiled(job[1], args.arch), todo)
                for (way, launch), (registers, stack, shared, products) in zip(todo, made, strict=True):
                    tiles = {key: launch.arguments[key] for key in TILES if key in launch.arguments}
                    fits = shared <= SHARED_MEMORY[args.arch]
                    row = Compiled(name, batch, launch.layer, way, registers, stack, shared, fits, products, tiles)
                    rows.append(row)
                    print(", ".join(f"{key} {value}" for key, value in asdict(row).items()), flush=True)
    bad = [row for row in rows if row.stack or not row.fits]
    print(f"{len(rows)} kernels for sm_{args.arch}: {len(bad)} spill or do not fit", file=sys.stderr)
    if args.out:
        args.out.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
