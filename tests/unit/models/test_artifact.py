"""What a model file may be: data of the standard operators, complete in itself."""

import pytest
from onnx import TensorProto, helper

from macadam.errors import InvalidInput
from macadam.models import artifact
from macadam.models.signature import Input, Output, Signature

SIGNATURE = Signature(
    inputs=(Input(name="x", kind="number"),),
    outputs=(Output(name="value", kind="number", tensor="out", column=0),),
)


def tensor(name, *, external):
    made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1, 1])
    if external:
        made.data_location = TensorProto.EXTERNAL
        made.external_data.add(key="location", value="somebody-elses-file")
    else:
        made.float_data.append(1)
    return made


def constant(external):
    return [helper.make_node("Constant", [], ["out"], value=tensor("c", external=external))], []


def initializer(external):
    return [helper.make_node("Identity", ["w"], ["out"])], [tensor("w", external=external)]


def branch(external):
    def graph(name):
        result = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [1, 1])
        node = helper.make_node("Identity", [f"{name}_w"], [f"{name}_out"])
        return helper.make_graph([node], name, [], [result], [tensor(f"{name}_w", external=external)])

    yes = helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("t", TensorProto.BOOL, [], [True]))
    choose = helper.make_node("If", ["yes"], ["out"], then_branch=graph("then"), else_branch=graph("else"))
    return [yes, choose], []


def model(nodes, weights):
    given = helper.make_tensor_value_info("features", TensorProto.FLOAT, [None, 1])
    gives = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 1])
    graph = helper.make_graph(nodes, "g", [given], [gives], weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made.SerializeToString()


@pytest.mark.parametrize("place", [constant, initializer, branch])
def test_a_model_that_reads_a_file_from_any_place_in_it_is_refused(place, tmp_path, monkeypatch):
    (tmp_path / "somebody-elses-file").write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)  # ONNX Runtime looks there
    artifact.check(model(*place(external=False)), SIGNATURE)
    with pytest.raises(InvalidInput, match="files beside it"):
        artifact.check(model(*place(external=True)), SIGNATURE)
