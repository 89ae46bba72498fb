from pathlib import Path

import pytest
import strip
from nbformat.v4 import new_output
from notebook_tools import ROOT
from sample import a_notebook


def machine(*parts: str) -> str:
    return "/" + "/".join(parts)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"read {ROOT}/data/x.csv", "read data/x.csv"),
        (f"in {ROOT}, twice", "in ., twice"),
        (
            machine("root", "env", "site-packages", "torch", "nn.py:3"),
            "site-packages/torch/nn.py:3",
        ),
        (f"see {Path.home()}/.cache/mde_utils", "see ~/.cache/mde_utils"),
        (f"({machine('tmp', 'ipykernel_12', '345.py')}:1)", "(345.py:1)"),
        (
            "/kaggle/input/nyu and https://a.b/" + "home/x",
            "/kaggle/input/nyu and https://a.b/" + "home/x",
        ),
        ("δ1 0.79, 3/4 of home/work", "δ1 0.79, 3/4 of home/work"),
    ],
)
def test_machine_paths_become_relative(text, clean):
    assert strip.without_machine_paths(text) == clean


def test_strip_keeps_outputs_and_counts():
    nb = a_notebook("1 + 1")
    private = machine("tmp", "x", "picture")
    nb.metadata["papermill"] = {"input_path": private}
    nb.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    nb.metadata["kaggle"] = {"dataSources": []}
    nb.metadata["kernelspec"] = {"display_name": "mine", "name": "mine", "language": "python"}
    cell = nb.cells[-1]
    cell.execution_count = 3
    cell.metadata |= {"papermill": {"duration": 1.0}, "execution": {}, "scrolled": True}
    cell.outputs = [
        new_output("stream", text=f"wrote {private}"),
        new_output("display_data", data={"image/png": private, "text/plain": private}),
    ]
    clean = strip.strip(nb)
    assert clean.cells[-1].execution_count == 3
    assert clean.cells[-1].outputs[0].text == "wrote picture"
    assert clean.cells[-1].outputs[1].data == {"image/png": private, "text/plain": "picture"}
    assert clean.metadata.keys() == {"kaggle", "kernelspec", "language_info"}
    assert clean.metadata.kernelspec.name == "python3"
    assert clean.cells[-1].metadata == {}
    assert strip.strip(clean) == clean
