"""Encoder, decoders and losses of dense prediction, and how heads of many tensors are kept in files."""

import pytest
import torch
from torch import nn

import fusionlib as fl
from fusionlib.core import CheckpointError, KeyMismatch, ParameterError
from fusionlib.zoo import losses
from fusionlib.zoo.decoder import DenseHead
from fusionlib.zoo.dense import DenseBackbone, resnet50_state
from fusionlib.zoo.gpt2 import LastTokenHead
from fusionlib.zoo.heads import head_tensors, read_head_state
from fusionlib.zoo.resnet import DilatedResNet, ResNetConfig
from fusionlib.zoo.scenes import Scenes
from fusionlib.zoo.task import Task

SMALL = ResNetConfig(blocks=(1, 2, 1, 2), width=4)


def task(metric, classes=()):
    return Task(metric, classes, {}, classes, (), modality="scene", metric=metric)


def backbone():
    torch.manual_seed(0)
    model = DilatedResNet(SMALL)
    options = {"channels": 6, "rates": (1, 2), "dropout": 0.0}
    return DenseBackbone("small", SMALL, model.state_dict(), Scenes(32, 48), **options)


def test_the_full_size_is_torchvisions_resnet50_with_dilation():
    vision = pytest.importorskip("torchvision")
    torch.manual_seed(0)
    theirs = vision.models.resnet50(replace_stride_with_dilation=[False, True, True])
    theirs.fc = nn.Identity()
    ours = DilatedResNet(ResNetConfig())
    assert list(ours.state_dict()) == list(theirs.state_dict()) and ours.config.dim == 2048
    ours.load_state_dict(theirs.state_dict())
    picture = torch.randn(1, 3, 48, 64)
    with torch.inference_mode():
        found = ours.eval()(picture)
        theirs.eval()
        x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(picture))))
        for name in ("layer1", "layer2", "layer3", "layer4"):
            x = theirs.get_submodule(name)(x)
    assert found.shape == (1, 2048, 6, 8)
    torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-4 * float(x.abs().max()))


def test_weights_of_a_resnet50_are_taken_without_their_classifier(tmp_path):
    state = DilatedResNet(ResNetConfig()).state_dict()
    torch.save({**state, "fc.weight": torch.ones(2, 2048), "fc.bias": torch.ones(2)}, tmp_path / "resnet50.pth")
    read = resnet50_state(tmp_path / "resnet50.pth")
    assert list(read) == list(state) and torch.equal(read["layer4.2.conv3.weight"], state["layer4.2.conv3.weight"])
    torch.save({"conv1.weight": torch.ones(1)}, tmp_path / "other.pth")
    with pytest.raises(KeyMismatch, match=r"missing: bn1\.bias"):
        resnet50_state(tmp_path / "other.pth")


@pytest.mark.parametrize(("stride", "size"), [(4, (8, 12)), (8, (4, 6)), (16, (2, 3)), (32, (1, 2))])
def test_output_stride(stride, size):
    model = DilatedResNet(ResNetConfig(blocks=(1, 2, 1, 2), width=4, output_stride=stride)).eval()
    assert model(torch.zeros(2, 3, 32, 48)).shape == (2, 128, *size)
    assert [key for key in model.state_dict()] == list(backbone().state)  # the same weights at every stride


def test_a_wrong_stride_is_refused():
    with pytest.raises(ParameterError, match=r"output_stride = 7.*\(4, 8, 16, 32\)"):
        ResNetConfig(output_stride=7)


def test_an_encoder_is_saved_and_read(tmp_path):
    model = DilatedResNet(SMALL).eval()
    model.save_pretrained(tmp_path)
    again = DilatedResNet.from_pretrained(tmp_path)
    assert again.config == SMALL and not again.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    fl.save(model, tmp_path / "saved")
    assert torch.equal(fl.load(tmp_path / "saved").layer4[1].bn3.running_var, model.layer4[1].bn3.running_var)
    (tmp_path / "config.json").write_text('{"model_type": "dilated_resnet"}')
    with pytest.raises(CheckpointError, match="does not describe a dilated ResNet"):
        DilatedResNet.from_pretrained(tmp_path)


@pytest.mark.parametrize(("metric", "classes", "outputs"), [("segmentation", tuple("abcde"), 5), ("depth", (), 1)])
def test_decoders_answer_for_every_pixel(metric, classes, outputs):
    base = backbone()
    head = base.start_head(task(metric, classes), 3).eval()
    batch = {"pixel_values": torch.randn(2, 3, 32, 48)}
    assert head(base.build()(**batch), batch).shape == (2, outputs, 32, 48)
    again, other = base.start_head(task(metric, classes), 3), base.start_head(task(metric, classes), 4)
    assert torch.equal(again.answer.weight, head.answer.weight)
    assert not torch.equal(other.answer.weight, head.answer.weight)


def test_normals_have_length_one():
    base = backbone()
    batch = {"pixel_values": torch.randn(2, 3, 32, 48)}
    answer = base.start_head(task("normal"), 0).eval()(base.build()(**batch), batch)
    torch.testing.assert_close(answer.norm(dim=1), torch.ones(2, 32, 48))


def test_the_published_decoder_has_the_published_shape():
    head = DenseHead(2048, 13)
    assert [branch[0].dilation[0] for branch in head.branches] == [1, 12, 24, 36]
    assert head.project[0][0].in_channels == 5 * 256 and head.answer.out_channels == 13


def test_losses_by_hand_leave_out_pixels_without_a_truth():
    logits = torch.zeros(1, 2, 1, 3)
    assert losses.segmentation_loss(logits, torch.tensor([[[0, 1, -1]]])).item() == pytest.approx(0.6931, abs=1e-4)
    depth, far = torch.tensor([[[[1.0, 2.0, 7.0]]]]), torch.tensor([[[[2.0, 2.5, 0.0]]]])
    assert losses.depth_loss(depth, far).item() == pytest.approx(0.75)
    facing = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]).T.reshape(1, 3, 1, 3)
    truth = torch.tensor([[1.0, 0, 0], [0, 0, 1], [0, 0, 0]]).T.reshape(1, 3, 1, 3)
    assert losses.normal_loss(facing, truth).item() == pytest.approx(0.5)


def test_a_batch_without_any_truth_has_loss_and_gradient_zero():
    for loss, output, truth in (
        (losses.segmentation_loss, torch.randn(1, 2, 2, 2), torch.full((1, 2, 2), -1)),
        (losses.depth_loss, torch.randn(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)),
        (losses.normal_loss, torch.randn(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)),
    ):
        output.requires_grad_()
        found = loss(output, truth)
        found.backward()
        assert found.item() == 0 and output.grad is not None and output.grad.eq(0).all()


def test_heads_of_many_tensors_and_of_one_share_a_file(tmp_path):
    from safetensors.torch import save_file

    decoder = backbone().start_head(task("depth"), 0)
    linear = LastTokenHead(torch.ones(2, 3))
    assert list(head_tensors("spam", linear)) == ["spam"]
    save_file({**head_tensors("depth", decoder), **head_tensors("spam", linear)}, tmp_path / "heads.safetensors")
    read = read_head_state(tmp_path / "heads.safetensors", "depth")
    assert read.keys() == decoder.state_dict().keys() and read["pooled.1.num_batches_tracked"].dtype == torch.int64
    assert read_head_state(tmp_path / "heads.safetensors", "spam").keys() == {"weight"}
    with pytest.raises(CheckpointError, match="no head for task 'dep'"):
        read_head_state(tmp_path / "heads.safetensors", "dep")
    made = backbone().head(task("depth"), tmp_path / "heads.safetensors")
    assert not made.training and torch.equal(made.answer.weight, decoder.answer.weight)
    with pytest.raises(KeyMismatch, match="head of task 'depth'"):
        backbone().head(task("depth"), {"weight": torch.ones(1)})
    with pytest.raises(ParameterError, match="decoders of small are trained with the fine-tunes"):
        backbone().head(task("depth"), torch.ones(1))
