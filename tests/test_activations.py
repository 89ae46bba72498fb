import pytest
import torch
from torch import nn

from mde_utils.activations import edit, find_layer, tap


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)
        self.b = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.unused = nn.Conv2d(1, 1, 1)
        self.taps = {"first": "a"}

    def forward(self, x):
        return self.b(self.a(x))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.Identity()

    def forward(self, x):  # (B, 3, 4, 6) -> a class token and 24 patches
        tokens = x.flatten(2).mT
        return self.block(torch.cat([tokens.mean(1, keepdim=True), tokens], 1))


@pytest.fixture
def model():
    return Small()


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_taps_and_module_paths(model):
    x = torch.randn(2, 3, 5, 6)
    with tap(model, ["first", "b.0"]) as acts:
        model(x)
        assert torch.equal(acts["first"], model.a(x))
    assert set(acts) == {"first", "b.0"} and not acts["first"].requires_grad
    with tap(model, ["first"], detach=False) as acts:
        model(x)
        assert acts["first"].requires_grad


def test_every_forward_starts_anew(model):
    with tap(model, ["first"]) as acts:
        for n in (1, 3):
            model(torch.randn(n, 3, 2, 2))
            assert acts["first"].shape[0] == n


def test_no_hook_is_left_behind(model):
    x = torch.randn(1, 3, 2, 2)
    with tap(model, ["first", "b"]), edit(model, {"b.0": lambda a: a}):
        model(x)
        assert hooks(model) > 0
    assert hooks(model) == 0
    with pytest.raises(RuntimeError), tap(model, ["first"]), edit(model, {"first": lambda a: a}):
        raise RuntimeError
    assert hooks(model) == 0
    with pytest.raises(ValueError), tap(model, ["first", "absent"]):
        pass
    assert hooks(model) == 0


def test_edit_replaces_the_output(model):
    x = torch.randn(2, 3, 4, 4)
    with edit(model, {"first": lambda a: a * 0}):
        edited = model(x)
    torch.testing.assert_close(edited, model.b(torch.zeros(2, 4, 4, 4)))
    with pytest.raises(ValueError, match="keep the shape"), edit(model, {"a": lambda a: a[:1]}):
        model(x)


def test_edits_act_in_order_and_before_the_hooks_of_others(model):
    seen = []
    handle = model.a.register_forward_hook(lambda _m, _i, out: seen.append(out))
    with tap(model, ["a"]) as acts, edit(model, {"a": lambda a: a * 0 + 1}):
        with edit(model, {"a": lambda a: a * 3}):
            model(torch.rand(2, 3, 8, 8))
    handle.remove()
    assert bool((seen[0] == 3).all()) and bool((acts["a"] == 3).all())


def test_tap_sees_what_edit_made(model):
    with edit(model, {"first": torch.zeros_like}), tap(model, ["first"]) as acts:
        model(torch.randn(1, 3, 2, 2))
        assert not acts["first"].any()


@pytest.mark.parametrize(
    "layers, message",
    [
        (["fist"], "Unknown layer 'fist' of Small. Close: first. Known taps: first; any module"),
        (["b.7"], "Unknown layer 'b.7'"),
        ([""], "Unknown layer ''"),
        ([], "No layers given"),
        (["first", "first"], "more than once: first"),
    ],
)
def test_bad_layers(model, layers, message):
    with pytest.raises(ValueError, match=message), tap(model, layers):
        pass


def test_a_layer_that_never_runs(model):
    with tap(model, ["unused"]) as acts:
        model(torch.randn(1, 3, 2, 2))
        with pytest.raises(KeyError, match="unused"):
            acts["unused"]


def test_a_layer_that_runs_twice_is_ambiguous():
    shared = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(shared, shared)
    with pytest.raises(ValueError, match="more than once"), tap(model, ["0"]):
        model(torch.randn(1, 3, 2, 2))
    with tap(model, ["0"]) as acts:  # outside a forward of the model the last one counts
        shared(torch.randn(1, 3, 2, 2))
        shared(torch.randn(2, 3, 2, 2))
        assert len(acts["0"]) == 2


def test_tokens_need_their_grid():
    model, x = Tokens(), torch.randn(2, 3, 4, 6)
    with tap(model, ["block"], grids={"block": (1, 4, 6)}) as acts:
        model(x)
        torch.testing.assert_close(acts["block"], x)
    for grids, message in [
        (None, r"gives tokens \(2, 25, 3\); say how its 25 tokens lie"),
        ({"block": (4, 6)}, r"25 tokens, but the grid \(4, 6\) holds 24.*give \(1, 4, 6\)"),
        ({"blok": (4, 6)}, "not tapped"),
    ]:
        with pytest.raises(ValueError, match=message), tap(model, ["block"], grids=grids):
            model(x)
    flat = nn.Sequential(nn.Flatten())
    with pytest.raises(ValueError, match="needs a map"), tap(flat, ["0"]):
        flat(x)


def test_find_layer_takes_any_module():
    model = nn.Sequential(nn.Conv2d(3, 3, 1))
    assert find_layer(model, "0") is model[0]


def test_layers_that_overwrite_in_place():
    conv = nn.Conv2d(3, 4, 1)
    model = nn.Sequential(conv, nn.ReLU(inplace=True))
    x = torch.randn(1, 3, 8, 8)
    with tap(model, ["0"]) as acts:
        model(x)
        assert (acts["0"] < 0).any()
        torch.testing.assert_close(acts["0"], conv(x).detach())
    with pytest.raises(ValueError, match="'0' is overwritten in place"):
        with tap(model, ["0"], detach=False):
            model(x)
    assert hooks(model) == 0
