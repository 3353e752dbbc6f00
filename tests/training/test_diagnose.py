import pytest
import torch
from torch import nn

from patchscale.training.diagnose import first_non_finite


class Blow(nn.Module):
    """Makes the value `bad` appear in its output."""

    def __init__(self, bad):
        super().__init__()
        self.bad = bad

    def forward(self, x):
        return {"tokens": [x, x * self.bad]}


class Net(nn.Module):
    def __init__(self, blow=None):
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.middle = nn.Sequential(nn.GELU(), blow or nn.Identity())
        self.last = nn.Linear(4, 1)

    def forward(self, x):
        x = self.middle(self.first(x))
        return self.last(x["tokens"][1] if isinstance(x, dict) else x)


def diagnose(net, images=None, loss=lambda y: y.mean()):
    images = torch.ones(2, 3) if images is None else images
    return first_non_finite(net, images, lambda: loss(net(images)))


def test_bad_input_comes_first():
    assert diagnose(Net(), torch.tensor([[1.0, float("inf"), 0.0]])) == "inf in the input images"


def test_a_bad_parameter_is_named():
    net = Net()
    with torch.no_grad():
        net.last.weight[0, 1] = float("nan")
    assert diagnose(net) == "nan in parameter last.weight"


@pytest.mark.parametrize("bad", ["nan", "inf"])
def test_the_innermost_module_is_named(bad):
    net = Net(Blow(float(bad)))
    with torch.no_grad():
        net.first.weight.fill_(1)
        net.first.bias.fill_(1)
    assert diagnose(net) == f"{bad} in middle.1 output"
    assert not any(module._forward_hooks for module in net.modules())


def test_a_bad_loss_is_named():
    assert diagnose(Net(), loss=lambda y: y.mean() / 0 - y.mean() / 0) == "nan in the loss itself"


def test_a_bad_gradient_is_named():
    # The square root is 0 at 0, its slope there is not finite.
    assert diagnose(Net(), loss=lambda y: (y - y.detach()).sqrt().sum()).startswith("inf in the gradient of last.")


def test_a_sound_step_is_not_blamed():
    assert diagnose(Net()) is None
