"""A segmenter as an ART estimator: values and gradients, defences, training, layers, and users' mistakes."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from strategies import KINDS, make_batch
from torch import nn

from advseg_adapters.art.attacks import as_estimator
from advseg_adapters.art.toolkit import ART, EVASION, PreprocessorPyTorch, PyTorchEstimator
from advseg_bench import losses
from advseg_bench.attacks.gradient import FGSM
from advseg_bench.errors import DataError, IncompatibleError, PluginError, SpecError
from advseg_bench.instruments.guard import ModelGuard
from advseg_bench.metrics import predict
from advseg_bench.types import Budget, Task

DEFENCES = ART.defences.preprocessor  # ART is imported by the adapter, which keeps its traces away
BASES = ART.estimators.estimator
SPACES = {"2-D": (7, 5), "3-D": (4, 3, 5)}
OF_KIND = {"binary": ("bce", "dice", "focal", "dice_focal"), "multiclass": ("ce", "dice", "focal", "dice_focal")}
OF_KIND["multilabel"] = OF_KIND["binary"]


def make_network(batch, seed=0, dropout=0.0):
    """Two convolutions with batch norm, of as many space axes as the images have."""
    axes = batch.x.dim() - 2
    conv, norm, drop = ((nn.Conv2d, nn.BatchNorm2d, nn.Dropout2d), (nn.Conv3d, nn.BatchNorm3d, nn.Dropout3d))[axes - 2]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            conv(batch.x.shape[1], 6, 3, padding=1),
            norm(6),
            nn.ReLU(),
            drop(dropout),
            conv(6, len(batch.task.classes), 3, padding=1),
        ).eval()


def make(kind="multilabel", space=(7, 5), void=0.0, seed=0, **settings):
    batch, _ = make_batch(kind, n=4, space=space, void=void, seed=seed)
    model = make_network(batch)
    arguments = {"task": batch.task, "input_shape": batch.x.shape[1:]} | settings
    return as_estimator(model, **arguments), model, batch


def masks(batch, ignore=None):
    """Labels as an ART user has them: numbers, and a value where nothing counts."""
    y = batch.y.numpy().astype(np.int64)
    if ignore is None:
        return y
    valid = batch.valid.numpy() if batch.task.kind == "multiclass" else batch.valid.numpy()[:, None]
    return np.where(valid, y, ignore)


def autograd(model, batch, loss):
    x = batch.x.clone().requires_grad_()
    value = loss(model(x), batch.y, batch.valid, batch.task)
    return value.detach().numpy(), torch.autograd.grad(value.sum(), x)[0].numpy()


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("kind", KINDS)
def test_fgm_is_our_fgsm_bit_for_bit(kind, space):
    for name in OF_KIND[kind]:
        for norm, eps in (("linf", 0.03), ("l2", 0.5)):
            estimator, model, batch = make(kind, space, void=0.2, loss=name, ignore=255)
            found = EVASION.FastGradientMethod(
                estimator, eps=eps, norm={"linf": np.inf, "l2": 2}[norm], batch_size=3
            ).generate(batch.x.numpy(), masks(batch, 255))
            ours = FGSM(loss=getattr(losses, name))(model, batch, budget=Budget(norm, eps), generators=[])
            if norm == "linf":
                assert np.array_equal(found, ours.numpy()), name
            else:
                np.testing.assert_allclose(found, ours.numpy(), atol=1e-6)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients_are_those_of_autograd(kind, space):
    for name in OF_KIND[kind]:
        estimator, model, batch = make(kind, space, void=0.3, loss=name, ignore=-1)
        value, gradient = autograd(model, batch, getattr(losses, name))
        y = masks(batch, -1)
        assert np.array_equal(estimator.loss_gradient(batch.x.numpy(), y), gradient)
        of_tensor = estimator.loss_gradient(batch.x, torch.from_numpy(y))
        assert isinstance(of_tensor, torch.Tensor)
        assert np.array_equal(of_tensor.numpy(), gradient)
        np.testing.assert_allclose(estimator.compute_loss(batch.x.numpy(), y, batch_size=3), value, rtol=1e-5)
        assert estimator.compute_loss(batch.x.numpy(), y, reduction="mean") == pytest.approx(value.mean(), rel=1e-5)
        assert estimator.compute_loss(batch.x.numpy(), y, reduction="sum") == pytest.approx(value.sum(), rel=1e-5)
        logits = estimator.predict(batch.x.numpy())
        np.testing.assert_allclose(estimator.compute_loss_from_predictions(logits, y), value, rtol=1e-5)


def test_the_loss_of_a_tensor_has_its_graph():
    estimator, model, batch = make(loss="dice")
    x = batch.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(estimator.compute_loss(x, batch.y, reduction="sum"), x)
    np.testing.assert_allclose(gradient.numpy(), autograd(model, batch, losses.dice)[1], atol=1e-7)


def test_it_is_an_estimator_of_art_and_no_classifier():
    estimator, model, batch = make(clip_values=(-1, 2), optimizer=None)
    assert isinstance(estimator, (PyTorchEstimator, BASES.LossGradientsMixin, BASES.NeuralNetworkMixin))
    assert not isinstance(estimator, ART.estimators.classification.classifier.ClassifierMixin)
    assert estimator.model is model
    assert estimator.input_shape == (2, 7, 5)
    assert tuple(estimator.clip_values) == (-1, 2)
    assert estimator.device_type == "cpu"
    assert estimator.channels_first
    assert estimator.layer_names == ["0", "1", "2", "3", "4"]
    assert estimator.optimizer is None
    assert estimator.get_params()["task"] == batch.task
    assert "SegmentationEstimator" in repr(estimator)


def test_predictions_are_logits_in_batches():
    estimator, model, batch = make("multiclass")
    rows = []
    handle = model.register_forward_hook(lambda module, args, out: rows.append(len(args[0])))
    logits = estimator.predict(batch.x.numpy(), batch_size=3)
    handle.remove()
    assert rows == [3, 1]
    assert logits.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(logits, model(batch.x).numpy(), atol=1e-6)
    assert np.array_equal(estimator.predict_masks(batch.x), predict(torch.from_numpy(logits), batch.task).numpy())


@pytest.mark.parametrize("kind", KINDS)
def test_an_attack_without_the_truth(kind):
    estimator, _, batch = make(kind)
    x = batch.x.numpy()
    found = EVASION.FastGradientMethod(estimator, eps=0.03).generate(x, estimator.predict_masks(x))
    ours = FGSM(loss=losses.ce if kind == "multiclass" else losses.bce, label="predicted")
    expected = ours(estimator.model, batch, budget=Budget("linf", 0.03), generators=[])
    assert np.array_equal(found, expected.numpy())
    with pytest.raises(DataError, match=r"Without `y` ART uses the prediction: give y=estimator\.predict_masks"):
        EVASION.FastGradientMethod(estimator, eps=0.03).generate(
            x
        ) if kind != "multiclass" else estimator.loss_gradient(x, estimator.predict(x)[:, 0])


def test_a_task_may_be_given_by_its_kind_and_a_model_as_a_function():
    _, model, batch = make("multiclass")
    estimator = as_estimator(lambda x: model(x), task="multiclass", input_shape=(2, 7, 5))
    assert estimator.task == Task("multiclass", tuple(f"class {i}" for i in range(4)))
    value, gradient = autograd(model, batch, losses.ce)
    assert np.array_equal(estimator.loss_gradient(batch.x, batch.y), gradient)
    assert value.shape == (4,)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.int64, np.float32, np.float64])
def test_masks_of_any_type(dtype):
    estimator, model, batch = make("binary")
    gradient = autograd(model, batch, losses.bce)[1]
    y = batch.y.numpy().astype(dtype)
    y.flags.writeable = False
    assert np.array_equal(estimator.loss_gradient(batch.x.numpy(), y), gradient)
    assert np.array_equal(estimator.loss_gradient(batch.x.numpy(), y[:, 0]), gradient)


def test_pixels_that_do_not_count_have_no_gradient():
    estimator, _, batch = make("multilabel", ignore=255)
    y = masks(batch)
    y[0] = 255
    y[1, 2, 0, 0] = 255
    gradient = estimator.loss_gradient(batch.x.numpy(), y)
    assert not gradient[0].any()
    assert gradient[1].any()
    assert estimator.compute_loss(batch.x.numpy(), y)[0] == 0
    other = y.copy()
    other[1, :2, 0, 0] = 1 - np.minimum(other[1, :2, 0, 0], 1)
    assert np.array_equal(estimator.loss_gradient(batch.x.numpy(), other), gradient)


def test_nothing_of_the_model_changes():
    estimator, model, batch = make()
    model.train()
    model[1].eval()
    modes = [m.training for m in model.modules()]
    guard = ModelGuard(model)
    x, y = batch.x.numpy(), batch.y.numpy()
    estimator.loss_gradient(x, y)
    estimator.predict(x)
    estimator.get_activations(x, "0")
    EVASION.ProjectedGradientDescent(estimator, eps=0.1, max_iter=2, verbose=False).generate(x, y)
    assert not guard.restore()
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    trained = estimator.predict(x, training_mode=True)
    model.load_state_dict(model.state_dict())
    assert not np.allclose(trained, estimator.predict(x))


class Square(DEFENCES.preprocessor.Preprocessor):
    """x -> x^2, with its true gradient."""

    def __call__(self, x, y=None):
        return x * x, y

    def estimate_gradient(self, x, grad):
        return 2 * x * grad


class Sine(PreprocessorPyTorch):
    def forward(self, x, y=None):
        return torch.sin(x), y


class Rounded(PreprocessorPyTorch):
    """Rounds, and says that its gradient is that of half the identity."""

    def forward(self, x, y=None):
        return (4 * x).round() / 4, y

    def estimate_forward(self, x, y=None):
        return x / 2


CHAINS = {
    "numpy": lambda: [Square()],
    "pytorch": lambda: [Sine(device_type="cpu")],
    "mixed": lambda: [Square(), Sine(device_type="cpu"), Square()],
    "one, not a list": lambda: Sine(device_type="cpu"),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("chain", CHAINS)
def test_gradients_through_defences_are_those_of_finite_differences(chain, space):
    """In float64 inside, so that the differences mean something; ART's own estimators refuse the mixed chain."""
    batch, _ = make_batch("multilabel", n=2, space=space)
    smooth = nn.Sequential(make_network(batch)[0], nn.Tanh(), make_network(batch)[4])
    doubled = copy.deepcopy(smooth).double()
    estimator = as_estimator(
        smooth,
        task=batch.task,
        input_shape=batch.x.shape[1:],
        preprocessing=(0.3, 0.7),
        preprocessing_defences=CHAINS[chain](),
    )
    x, y = batch.x.numpy(), batch.y.numpy()

    def value(x):
        z = torch.from_numpy(x)
        for operation in estimator.preprocessing_operations[:-1]:
            z = z * z if isinstance(operation, Square) else z.sin()
        z = doubled((z - 0.3) / 0.7)
        return losses.bce(z, batch.y, batch.valid, batch.task).detach().numpy()

    np.testing.assert_allclose(estimator.compute_loss(x, y), value(x.astype(np.float64)), rtol=1e-5)
    gradient = estimator.loss_gradient(x, y)
    draw = np.random.default_rng(0)
    for _ in range(5):
        direction = draw.normal(size=x.shape)
        step = 1e-5
        up, down = (value(x.astype(np.float64) + sign * step * direction) for sign in (1, -1))
        slope = (gradient * direction).reshape(2, -1).sum(1)
        np.testing.assert_allclose(slope, (up - down) / (2 * step), rtol=2e-3, atol=1e-5)


def test_a_defence_without_gradient_is_passed_by_its_own_estimate():
    estimator, model, batch = make(preprocessing_defences=[Rounded(device_type="cpu")])
    x = ((4 * batch.x).round() / 4).requires_grad_()
    with torch.no_grad():
        np.testing.assert_array_equal(estimator.predict(batch.x), model(x).numpy())
    value = losses.bce(model(x), batch.y, batch.valid, batch.task).sum()
    np.testing.assert_allclose(
        estimator.loss_gradient(batch.x, batch.y).numpy(), torch.autograd.grad(value, x)[0].numpy() / 2, atol=1e-8
    )


def test_defences_of_art():
    x = make()[2].x
    squeezed, model, batch = make(preprocessing_defences=DEFENCES.FeatureSqueezing(clip_values=(0, 1), bit_depth=2))
    with torch.no_grad():
        expected = model((3 * x).round() / 3).numpy()
    np.testing.assert_allclose(squeezed.predict(x), expected, atol=1e-6)
    assert np.any(squeezed.loss_gradient(x.numpy(), batch.y.numpy()))
    smooth = [DEFENCES.SpatialSmoothing(window_size=3, channels_first=True), Square()]
    estimator, _, _ = make(preprocessing_defences=smooth)
    assert np.any(estimator.loss_gradient(x.numpy(), batch.y.numpy()))
    framework, _, _ = make(preprocessing_defences=Sine(device_type="cpu"))
    attacked = EVASION.FastGradientMethod(framework, eps=0.05).generate(x.numpy(), batch.y.numpy())
    before, after = (framework.compute_loss(images, batch.y.numpy()) for images in (x.numpy(), attacked))
    assert (after > before).all()


def test_defences_can_be_set_later_and_apply_to_what_they_say():
    estimator, model, batch = make()
    plain = estimator.predict(batch.x)
    estimator.set_params(preprocessing_defences=[Square(apply_predict=False)])
    assert np.array_equal(estimator.predict(batch.x), plain)
    estimator.set_params(preprocessing_defences=[Square()])
    with torch.no_grad():
        assert np.allclose(estimator.predict(batch.x), model(batch.x**2).numpy(), atol=1e-6)


def test_a_defence_that_does_not_fit_is_named():
    estimator, _, batch = make(preprocessing_defences=DEFENCES.LabelSmoothing(apply_predict=True))
    with pytest.raises(IncompatibleError, match="defence LabelSmoothing: cannot be applied to images of shape"):
        estimator.predict(batch.x)


def test_a_defence_that_changes_the_size_is_refused():
    class Halve(PreprocessorPyTorch):
        def forward(self, x, y=None):
            return x[..., ::2], y

    estimator, _, batch = make(preprocessing_defences=Halve(device_type="cpu"))
    with pytest.raises(IncompatibleError, match=r"defence Halve: expected a result of shape .* Use one that keeps"):
        estimator.predict(batch.x)


@pytest.mark.parametrize("kind", KINDS)
def test_training_lowers_the_loss(kind):
    batch, _ = make_batch(kind, n=4)
    model = make_network(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    estimator = as_estimator(model, task=batch.task, input_shape=(2, 7, 5), ignore=9, optimizer=optimizer)
    y = masks(batch)
    before = estimator.compute_loss(batch.x, y).mean()
    estimator.fit(batch.x.numpy(), y, batch_size=3, nb_epochs=30)
    assert estimator.compute_loss(batch.x, y).mean() < 0.9 * before
    assert not model.training


def test_training_is_repeatable_and_steps_its_schedule():
    results = []
    for seed in (0, 0, 1):
        batch, _ = make_batch("binary", n=4)
        model = make_network(batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        estimator = as_estimator(model, task="binary", input_shape=(2, 7, 5), optimizer=optimizer)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
        estimator.fit(batch.x, batch.y, batch_size=3, nb_epochs=2, drop_last=True, scheduler=schedule, seed=seed)
        assert schedule.get_last_lr() == [0.025]
        results.append(estimator.predict(batch.x))
    assert np.array_equal(results[0], results[1])
    assert not np.array_equal(results[0], results[2])


def test_training_on_adversarial_images_helps_against_them():
    batch, _ = make_batch("binary", n=4)
    model = make_network(batch)
    estimator = as_estimator(
        model, task="binary", input_shape=(2, 7, 5), optimizer=torch.optim.Adam(model.parameters(), lr=0.01)
    )
    x, y = batch.x.numpy(), batch.y.numpy()
    attack = EVASION.FastGradientMethod(estimator, eps=0.1)
    before = estimator.compute_loss(attack.generate(x, y), y).mean()
    for _ in range(10):
        estimator.fit(attack.generate(x, y), y, nb_epochs=1)
    assert estimator.compute_loss(attack.generate(x, y), y).mean() < before


def test_training_needs_an_optimiser():
    estimator, _, batch = make()
    with pytest.raises(SpecError, match="fit: optimizer: expected an optimiser, got None"):
        estimator.fit(batch.x, batch.y)


def test_a_clone_starts_anew():
    batch, _ = make_batch("binary", n=4)
    model = make_network(batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0123)
    estimator = as_estimator(
        model, task="binary", input_shape=(2, 7, 5), optimizer=optimizer, preprocessing_defences=Square()
    )
    with torch.random.fork_rng():
        clone = estimator.clone_for_refitting()
    assert clone.model is not model
    assert not np.allclose(clone.predict(batch.x), estimator.predict(batch.x))
    assert isinstance(clone.optimizer, torch.optim.Adam)
    assert clone.optimizer.defaults["lr"] == 0.0123
    weights = copy.deepcopy(model.state_dict())
    clone.set_params(preprocessing_defences=None)
    clone.fit(batch.x, batch.y, nb_epochs=2)
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert estimator.preprocessing_operations
    assert not clone.preprocessing_operations


@pytest.mark.parametrize("layer", ["1", 1, -4])
def test_activations_by_name_and_by_index(layer):
    estimator, model, batch = make()
    with torch.no_grad():
        expected = model[:2](batch.x).numpy()
    np.testing.assert_allclose(estimator.get_activations(batch.x.numpy(), layer, batch_size=3), expected, atol=1e-6)
    x = batch.x.clone().requires_grad_()
    inner = estimator.get_activations(x, layer, 1, framework=True)
    (gradient,) = torch.autograd.grad(inner.sum(), x)
    assert gradient.any()
    assert not model[1]._forward_hooks


def test_an_unknown_layer():
    estimator, _, batch = make()
    for layer in ("conv", 5, None):
        with pytest.raises(SpecError, match="get_activations: layer: expected an index below 5"):
            estimator.get_activations(batch.x, layer)


def test_an_attack_on_features_runs_on_it():
    estimator, _, batch = make()
    x = batch.x.numpy()
    guide = x[::-1].copy()
    attack = EVASION.FeatureAdversariesPyTorch(
        estimator, delta=0.1, step_size=0.02, max_iter=10, layer="0", verbose=False
    )
    found = attack.generate(x, guide)

    def gap(images):
        return np.square(estimator.get_activations(images, "0") - estimator.get_activations(guide, "0")).sum()

    assert gap(found) < gap(x)
    assert np.abs(found - x).max() <= 0.1 + 1e-6


def test_random_starts_are_for_classifiers_says_art():
    estimator, _, batch = make()
    attack = EVASION.ProjectedGradientDescent(estimator, num_random_init=1, max_iter=1, verbose=False)
    with pytest.raises(ValueError, match="Random initialisation is only supported for classification"):
        attack.generate(batch.x.numpy(), batch.y.numpy())


def spoil(batch, how):
    """A mistake in the labels."""
    y = masks(batch)
    if how == "hundreds":
        return y * 255
    if how == "255":
        y[0, ..., 0, 0] = 255
    elif how == "2":
        y[0, ..., 0, 0] = 2
    elif how == "class 9":
        y[0, 0, 0] = 9
    elif how == "negative":
        y[0, ..., 0, 0] = -1
    elif how == "nan":
        return y * np.nan
    elif how == "words":
        return y.astype(str)
    elif how == "probabilities":
        return y * 0.7
    return y


@pytest.mark.parametrize(
    ("kind", "how", "message"),
    [
        ("binary", "hundreds", r"masks of zeros and ones, got 255. If 255 is the class, give y > 0. If 255 marks"),
        ("multilabel", "255", "If 255 marks pixels without ground truth, give ignore=255"),
        (
            "multiclass",
            "255",
            "class numbers from 0 to 3, got 255. If 255 marks .*, give ignore=255",
        ),
        ("multilabel", "2", "masks of zeros and ones, got 2. Split labels with several values"),
        ("multiclass", "class 9", "class numbers from 0 to 3, got 9. The model has 4 classes"),
        ("multiclass", "negative", "class numbers from 0 to 3, got -1"),
        ("multiclass", "nan", "class numbers from 0 to 3, got nan"),
        ("multilabel", "words", "y: expected an array of real numbers, got '<U"),
        ("multilabel", "probabilities", r"zeros and ones, got 0.7. Without `y` ART uses the prediction"),
    ],
)
def test_wrong_values_of_masks_are_one_line(kind, how, message):
    estimator, _, batch = make(kind)
    with pytest.raises(DataError, match=message) as caught:
        EVASION.FastGradientMethod(estimator, eps=0.1).generate(batch.x.numpy(), spoil(batch, how))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "shape", "message"),
    [
        ("multilabel", (4, 7, 5), r"shape \(4, 3, 7, 5\), got \(4, 7, 5\). Use one mask per class"),
        ("multiclass", (4, 4, 7, 5), r"class numbers, shape \(4, 7, 5\), got .* Use y.argmax\(axis=1\)"),
        ("multilabel", (4, 2, 7, 5), "a mask for each class .*class0, class1, class2"),
        ("multilabel", (4, 3, 5, 7), "Use labels of the size of the images"),
    ],
)
def test_wrong_shapes_of_masks_are_one_line(kind, shape, message):
    estimator, _, batch = make(kind)
    with pytest.raises(DataError, match=message):
        estimator.loss_gradient(batch.x, np.zeros(shape))


def test_wrong_images_are_one_line():
    estimator, _, batch = make()
    x = batch.x.numpy()
    with pytest.raises(
        DataError, match=r"inside clip_values \(0, 1\), got values from -[0-9.]+ to [0-9.]+. Give images"
    ):
        estimator.predict((x - 0.5) / 0.25)
    with pytest.raises(DataError, match="got values from nan"):
        estimator.predict(x * np.nan)
    with pytest.raises(IncompatibleError, match=r"\(N, 2, 7, 5\), channels first, got \(4, 7, 5, 2\)"):
        estimator.predict(x.transpose(0, 2, 3, 1))
    assert estimator.predict(np.clip(x + 2e-6, 0, 1 + 2e-6)).shape == (4, 3, 7, 5)


def build(kind, model, **settings):
    batch, _ = make_batch(kind, n=4)
    arguments = {"task": batch.task, "input_shape": batch.x.shape[1:]} | settings
    return as_estimator(model(make_network(batch)), **arguments)


@pytest.mark.parametrize(
    ("kind", "model", "settings", "message"),
    [
        ("binary", lambda net: nn.Sequential(*net, nn.Sigmoid()), {}, "model: expected raw logits"),
        ("multilabel", lambda net: nn.Sequential(*net, nn.Softmax(1)), {}, "Remove the final sigmoid or softmax"),
        ("multiclass", lambda net: nn.Sequential(*net, nn.Softmax(1)), {}, "model: expected raw logits"),
        ("binary", lambda net: lambda x: net(x).sigmoid(), {}, "model: expected raw logits, got values between 0"),
        ("multilabel", lambda net: nn.Sequential(*net, nn.LogSoftmax(1)), {}, "Remove the final log-softmax"),
        (
            "binary",
            lambda net: net,
            {"loss": nn.BCEWithLogitsLoss()},
            r"BCEWithLogitsLoss: expected a function \(logits",
        ),
        ("multiclass", lambda net: lambda x: net(x).softmax(1), {}, "model: expected raw logits, got values between 0"),
        ("multilabel", lambda net: net[:4], {}, r"model: expected 3 logit channels \(class0, class1, class2\), got 6"),
        ("multilabel", lambda net: net, {"task": "binary"}, "one logit channel for a binary task, got 3"),
        ("binary", lambda net: net, {"task": "multiclass"}, "two or more logit channels for exclusive classes, got 1"),
        ("binary", lambda net: net, {"input_shape": (3, 7, 5)}, r"fails on an image of shape \(3, 7, 5\)"),
        (
            "binary",
            lambda net: lambda x: {"mask": net(x)},
            {},
            "model: expected a tensor of logits or one of out, logits, pred, got dict with mask. Set `output`",
        ),
        ("binary", lambda net: nn.Sequential(*net, nn.MaxPool2d(2)), {}, r"expected logits of shape \(1, K, 7, 5\)"),
        (
            "multilabel",
            lambda net: net,
            {"loss": "ce"},
            "loss: expected a loss for multilabel tasks, got 'ce'. Use one",
        ),
        ("multiclass", lambda net: net, {"loss": "bce"}, "loss: expected a loss for multiclass tasks, got 'bce'"),
        (
            "binary",
            lambda net: net,
            {"loss": lambda logits, y, valid, task: -losses.bce(logits, y, valid, task)},
            "Are prediction and target swapped",
        ),
    ],
)
def test_models_and_losses_that_do_not_fit_are_one_line(kind, model, settings, message):
    with pytest.raises(IncompatibleError, match=message) as caught:
        build(kind, model, **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"loss": "dise"}, PluginError, "Did you mean 'dice'"),
        ({"task": "panoptic"}, SpecError, "task: expected 'binary', 'multilabel', 'multiclass' or a Task"),
        ({"clip_values": (1, 0)}, SpecError, "clip_values: expected two numbers, the smaller first"),
        ({"clip_values": None}, SpecError, "clip_values: expected two numbers"),
        ({"clip_values": "01"}, SpecError, "clip_values: expected two numbers"),
        ({"clip_values": (0, np.inf)}, SpecError, "clip_values: expected two numbers"),
        ({"input_shape": 64}, SpecError, r"input_shape: expected the shape \(C, \*S\) of one image, got 64"),
        ({"input_shape": (1, -7, 5)}, SpecError, "input_shape: expected"),
        ({"device_type": "tpu"}, SpecError, "device_type: expected 'cpu', 'gpu' or None, got 'tpu'"),
    ],
)
def test_wrong_arguments_are_one_line(settings, error, message):
    with pytest.raises(error, match=message):
        make("binary", **settings)


def test_class_scores_between_0_and_1_are_no_probabilities():
    build("multiclass", lambda net: lambda x: net(x).sigmoid())


def test_a_label_to_ignore_is_a_number():
    estimator, _, batch = make("binary", ignore="255")
    with pytest.raises(SpecError, match="ignore: expected a number such as 255, got '255'"):
        estimator.loss_gradient(batch.x, batch.y)


def test_a_model_without_a_graph_is_one_line():
    estimator = build("binary", lambda net: lambda x: net(x).detach() - 1)
    batch, _ = make_batch("binary", n=4)
    with pytest.raises(IncompatibleError, match=r"logits that depend on the images .* Remove `torch\.no_grad`"):
        estimator.loss_gradient(batch.x, batch.y)


def test_an_unknown_reduction():
    estimator, _, batch = make()
    with pytest.raises(SpecError, match="reduction: expected 'none', 'mean' or 'sum', got 'avg'"):
        estimator.compute_loss(batch.x, batch.y, reduction="avg")
