"""Flat vectors: layout and buffers."""

import pytest
import torch

from hpcopt.math.flat import HUGE_PAGE, Layout, buffer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(0,), (3,), (HUGE_PAGE,), (3, 300_001)])
def test_buffers_are_tensors_like_any_other(shape, dtype):
    tensor = buffer(shape, like=torch.empty(0, dtype=dtype))
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    assert tensor.is_contiguous()
    tensor.fill_(2)
    assert tensor.sum() == 2 * tensor.numel()
    if tensor.numel() * tensor.element_size() >= HUGE_PAGE:
        assert tensor.data_ptr() % HUGE_PAGE == 0


def test_private_parameters_come_last_and_views_share_memory():
    layout = Layout.of([("head.w", (2, 2)), ("a", (3,)), ("head.b", (2,)), ("b", (1,))], ["head.*"])
    assert layout.names == ("a", "b", "head.w", "head.b")
    assert (layout.dim, layout.shared, layout.private) == (10, slice(0, 4), slice(4, 10))
    flat = torch.arange(10.0)
    views = layout.views(flat)
    views["head.w"][1, 1] = -1
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 6, -1, 8, 9]
    assert layout.views(torch.zeros(5, 10))["head.w"].shape == (5, 2, 2)
