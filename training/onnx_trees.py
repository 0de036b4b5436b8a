"""LightGBM trees as an ONNX model that gives exactly their sum for 32-bit features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import lightgbm as lgb
import numpy as np
import onnx
from onnx import TensorProto, helper


def to_onnx(boosters: Sequence[lgb.Booster], features: int) -> bytes:
    """A model with input `features` (n, features) and output `margin` (n, 1): their mean raw score.

    Thresholds are rounded down to 32 bits: no 32-bit feature lies between a threshold and the
    rounded one, so that every payment takes the same branch as in LightGBM.
    """
    nodes: dict[str, list[Any]] = defaultdict(list)
    leaves: dict[str, list[Any]] = defaultdict(list)
    made = [tree for booster in boosters for tree in booster.dump_model()["tree_info"]]
    for number, tree in enumerate(made):
        _add(nodes, leaves, number, tree["tree_structure"], 1 / len(boosters))
    trees = helper.make_node(
        "TreeEnsembleRegressor",
        ["features"],
        ["margin"],
        domain="ai.onnx.ml",
        n_targets=1,
        aggregate_function="SUM",
        post_transform="NONE",
        **nodes,
        **leaves,
    )
    graph = helper.make_graph(
        [trees],
        "fraud",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", features])],
        [helper.make_tensor_value_info("margin", TensorProto.FLOAT, ["n", 1])],
    )
    model = helper.make_model(
        graph,
        producer_name="tallystick",
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
        ir_version=8,
    )
    onnx.checker.check_model(model)
    serialized: bytes = model.SerializeToString(deterministic=True)
    return serialized


def _add(
    nodes: dict[str, list[Any]],
    leaves: dict[str, list[Any]],
    tree: int,
    root: dict[str, Any],
    weight: float,
) -> None:
    next_id = 0

    def visit(node: dict[str, Any]) -> int:
        nonlocal next_id
        me, next_id = next_id, next_id + 1
        at = len(nodes["nodes_nodeids"])
        leaf = "leaf_value" in node
        nodes["nodes_treeids"].append(tree)
        nodes["nodes_nodeids"].append(me)
        nodes["nodes_modes"].append("LEAF" if leaf else "BRANCH_LEQ")
        nodes["nodes_featureids"].append(0 if leaf else node["split_feature"])
        nodes["nodes_values"].append(0.0 if leaf else _rounded_down(node["threshold"]))
        nodes["nodes_hitrates"].append(1.0)
        nodes["nodes_missing_value_tracks_true"].append(0)
        nodes["nodes_truenodeids"].append(0)
        nodes["nodes_falsenodeids"].append(0)
        if leaf:
            leaves["target_treeids"].append(tree)
            leaves["target_nodeids"].append(me)
            leaves["target_ids"].append(0)
            leaves["target_weights"].append(weight * float(node["leaf_value"]))
        else:
            assert node["decision_type"] == "<="
            nodes["nodes_truenodeids"][at] = visit(node["left_child"])
            nodes["nodes_falsenodeids"][at] = visit(node["right_child"])
        return me

    visit(root)


def _rounded_down(threshold: float) -> float:
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return float(rounded)
