"""Large matrix products by oneDNN, where that is the faster library."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from tests.sparse import DETECTS
from torchjac.evaluation.programs import products
from torchjac.evaluation.programs.products import use_faster_products

pytestmark = pytest.mark.skipif(
    not DETECTS or not hasattr(torch.ops.mkldnn, "_linear_pointwise"),
    reason="PyTorch without plans, or without oneDNN",
)
OURS = "torchjac.product.default"


def rewritten(monkeypatch, func, *args):
    monkeypatch.setattr(products, "_onednn_is_faster", lambda threads: True)
    graph = make_fx(func, tracing_mode="fake")(*args)
    use_faster_products(graph)
    names = [str(node.target) for node in graph.graph.nodes]
    torch.testing.assert_close(graph(*args), func(*args), rtol=1e-4, atol=1e-3)
    return names


@pytest.mark.parametrize(
    "right", [torch.randn(200, 160), torch.randn(160, 200).T], ids=["rows", "columns"]
)
def test_a_large_product_is_replaced(monkeypatch, right):
    left = torch.randn(110, 200)
    assert OURS in rewritten(monkeypatch, torch.mm, left, right)


def test_a_large_linear_layer_is_replaced(monkeypatch):
    bias, left, right = torch.randn(160), torch.randn(110, 200), torch.randn(200, 160)
    assert OURS in rewritten(monkeypatch, torch.addmm, bias, left, right)


def test_a_matrix_times_itself_is_replaced(monkeypatch):
    assert OURS in rewritten(monkeypatch, lambda x: x @ x, torch.randn(256, 256))


@pytest.mark.parametrize(
    ("func", "args"),
    [
        (torch.mm, (torch.randn(8, 8), torch.randn(8, 8))),
        (torch.mm, (torch.randn(200, 110).T, torch.randn(200, 160))),
        (torch.mm, (torch.randn(110, 200).double(), torch.randn(200, 160).double())),
        (torch.addmm, (torch.randn(110, 160), torch.randn(110, 200), torch.randn(200, 160))),
        (
            lambda b, x, y: torch.addmm(b, x, y, beta=2),
            (torch.randn(160), *[torch.randn(160, 160)] * 2),
        ),
    ],
    ids=["small", "turned", "double", "matrix term", "scaled term"],
)
def test_what_is_left_to_blas(monkeypatch, func, args):
    assert OURS not in rewritten(monkeypatch, func, *args)


def test_the_libraries_are_tried_once():
    products._onednn_is_faster.cache_clear()
    assert products._onednn_is_faster(1) in (True, False)
    products._onednn_is_faster(1)
    assert products._onednn_is_faster.cache_info().hits == 1
