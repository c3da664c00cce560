"""What a proof computes in float64, whatever the network casts to."""

import pytest
import torch

from integral_nn.coupling.precision import double_throughout

X = torch.rand(3, 4, dtype=torch.float64)


@pytest.mark.parametrize(
    "compute",
    [
        lambda: X.float(),
        lambda: X.to(torch.bfloat16),
        lambda: X.to(dtype=torch.float32),
        lambda: X.type(torch.float16),
        lambda: X.type("torch.FloatTensor"),
        lambda: X.softmax(-1, dtype=torch.float32),
        lambda: torch.zeros(3),
        lambda: torch.arange(3, dtype=torch.float32) / 3,
        lambda: X @ torch.eye(4),
    ],
)
def test_everything_is_float64(compute):
    with double_throughout():
        assert compute().dtype == torch.float64
    assert torch.get_default_dtype() == torch.float32
    with double_throughout():
        assert X.long().dtype == torch.int64 and X.to(torch.bool).dtype == torch.bool


def test_an_error_restores_the_default():
    with pytest.raises(ZeroDivisionError), double_throughout():
        _ = 1 / 0
    assert torch.get_default_dtype() == torch.float32
