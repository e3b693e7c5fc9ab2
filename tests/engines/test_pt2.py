"""A `.pt2` file can name more than a network. Whatever it names, nothing of it runs."""

import json
import pickle
import zipfile

import pytest
import torch

from conftest import reseal, tiny_architecture, trained_looking
from shvit import engines
from shvit.data.transforms import Preprocess
from shvit.engines.base import ExportJob
from shvit.engines.exported import EngineError
from shvit.engines.torch import TorchEngine
from shvit.modelfile import ModelFile

MODEL = "models/model.json"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "m.pt2"
    model_file = ModelFile(trained_looking(tiny_architecture().build()), ("a", "b"), Preprocess(32))
    TorchEngine.export(ExportJob(model_file, path, "fp32"))
    return path


class Payload:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def spoiled(good, bad, name=None, change=None, more=None, drop=()):
    """A copy of the file with one JSON document changed and members added, its digest that of the copy."""
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(bad, "w") as new:
        root = old.namelist()[0].split("/")[0]
        for entry in old.infolist():
            data = old.read(entry)
            if name and entry.filename == f"{root}/{name}":
                document = json.loads(data)
                change(document)
                data = json.dumps(document).encode()
            if entry.filename.removeprefix(f"{root}/") not in drop:
                new.writestr(entry.filename, data)
        for member, data in (more or {}).items():
            new.writestr(member.format(root=root), data)
        new.comment = old.comment
    reseal(bad)
    return bad


def graph(document):
    return document["graph_module"]["graph"]


def set_size(text):
    def change(document):
        output = graph(document)["outputs"][0]["as_tensor"]["name"]
        graph(document)["tensor_values"][output]["sizes"][0]["as_expr"]["expr_str"] = text

    return change


def refused(path, marker):
    with pytest.raises(EngineError) as caught:
        engines.load(engines.read(path), device="cpu")(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert not marker.exists()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "text",
    [
        "open({marker!r}, 'w').close() or 1",
        "Symbol('s0').__class__",
        "Symbol(open({marker!r}, 'w').name)",
        "(lambda: 1)()",
        "Integer(__import__('os').system('touch ' + {marker!r}))",
        "Pow(Pow(Pow(9, 8), 8), 8)",
        "Pow(9, 99999999999)",
        "9**9**9**9",
        "[1 for _ in range(10**12)]",
        "(" * 5000,
    ],
    ids=range(10),
)
def test_sizes_are_never_evaluated(good, tmp_path, text):
    marker = tmp_path / "marker"
    bad = spoiled(good, tmp_path / "m.pt2", MODEL, set_size(text.replace("{marker!r}", repr(str(marker)))))
    assert "not a plain size" in refused(bad, marker)


def test_pickles_are_never_loaded(good, tmp_path):
    marker, data = tmp_path / "marker", pickle.dumps(Payload(tmp_path / "marker"))
    entry = {"is_param": False, "use_pickle": True, "tensor_meta": None}

    def add(name):
        return lambda document: document["config"].update(extra={"path_name": name, **entry})

    def use_pickle(document):
        next(iter(document["config"].values()))["use_pickle"] = True

    cases = [
        ({"name": CONSTANTS, "change": add("opaque_obj_0")}, {"{root}/data/constants/opaque_obj_0": data}),
        ({"name": CONSTANTS, "change": add("custom_obj_0")}, {"{root}/data/constants/custom_obj_0": data}),
        ({"name": CONSTANTS, "change": add("tensor_9")}, {"{root}/data/constants/tensor_9": data}),
        ({"name": WEIGHTS, "change": use_pickle}, {}),
        ({"drop": [WEIGHTS]}, {"{root}/data/weights/model.pt": data}),
        ({"drop": ["data/sample_inputs/model.pt"]}, {"{root}/data/sample_inputs/model.pt": data}),
        ({}, {"serialized_state_dict.pt": data, "version": b"8.8"}),
        ({}, {"{root}/data/aotinductor/model/model.so": data}),
    ]
    for place, (options, more) in enumerate(cases):
        bad = spoiled(good, tmp_path / f"{place}.pt2", **options, more=more)
        assert "is refused" in refused(bad, marker), place


def test_operations_are_those_of_networks(good, tmp_path):
    marker = tmp_path / "marker"

    def first(target, **argument):
        def change(document):
            node = graph(document)["nodes"][0]
            node["target"] = target
            node["inputs"] += [{"name": name, "arg": {"as_string": text}, "kind": 1} for name, text in argument.items()]

        return change

    for target, argument in (
        ("torch.os.system", {"command": f"touch {marker}"}),
        ("torch.ops.aten.from_file.default", {"filename": "/etc/passwd"}),
        ("torch.load", {"f": "m.pt"}),
        ("_operator.methodcaller", {"name": "x"}),
        ("#namespace:op", {}),
    ):
        bad = spoiled(good, tmp_path / "m.pt2", MODEL, first(target, **argument))
        assert "is refused" in refused(bad, marker)


def test_names_are_no_code(good, tmp_path):
    """torch writes names of inputs and arguments, and guards, into Python that it runs."""
    marker = tmp_path / "marker"
    code = f"x=open({str(marker)!r}, 'w')"

    def rename(document):
        text = json.dumps(document["graph_module"]).replace('"images"', json.dumps(code))
        document["graph_module"] = json.loads(text)

    def argument(document):
        graph(document)["nodes"][0]["inputs"][0]["name"] = code

    for change in (rename, argument):
        refused(spoiled(good, tmp_path / "m.pt2", MODEL, change), marker)


def test_guards_and_shapes_of_calls_are_left_out(good, tmp_path):
    marker = tmp_path / "marker"
    spec = {"type": "collections.defaultdict", "context": json.dumps({"default_factory_module": "antigravity"})}

    def change(document):
        document["guards_code"] = [f"open({str(marker)!r}, 'w')"]
        [entry] = [entry for entry in document["graph_module"]["module_call_graph"] if entry["signature"]]
        entry["signature"]["in_spec"] = json.dumps([1, {**spec, "children_spec": []}])

    bad = spoiled(good, tmp_path / "m.pt2", MODEL, change)
    images = torch.full((3, 3, 32, 32), 7, dtype=torch.uint8)
    torch.testing.assert_close(
        engines.load(engines.read(bad), device="cpu")(images), engines.load(engines.read(good), device="cpu")(images)
    )
    assert not marker.exists()
    with pytest.raises(EngineError, match=r"does not run on images of shape \(3, 3, 40, 32\)"):
        engines.load(engines.read(good), device="cpu")(torch.zeros(3, 3, 40, 32, dtype=torch.uint8))


def test_archives_of_another_kind(good, tmp_path):
    marker = tmp_path / "marker"
    twice = tmp_path / "twice.pt2"
    with pytest.warns(UserWarning, match="Duplicate name"):
        spoiled(good, twice, more={"{root}/byteorder": b"big"})
    assert "two members with the same name" in refused(twice, marker)
    packed = tmp_path / "packed.pt2"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/byteorder", b"\0" * 10**7)
    assert "is compressed" in refused(packed, marker)
    nested = tmp_path / "nested.pt2"
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(nested, "w") as new:
        for entry in old.infolist():
            data = b"[" * 100_000 if entry.filename.endswith(MODEL) else old.read(entry)
            new.writestr(entry.filename, data)
        new.comment = old.comment
    reseal(nested)
    refused(nested, marker)
