"""Networks and checkpoints of other packages: python third_party.py NAME FOLDER writes what NAME would leave behind.

The functions that build networks are named in suites as `third_party:nnunet`; a package is imported when it is used.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FEATURES = (8, 8, 8, 8, 8, 8)


def basic(in_channels: int, classes: int) -> nn.Module:
    from monai.networks.nets import BasicUNet

    return BasicUNet(2, in_channels, classes, FEATURES)


def nnunet(in_channels: int, classes: int, deep_supervision: bool = False) -> nn.Module:
    """A network as nnU-Net v2 plans them; with deep supervision it returns a list, the full resolution first."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet

    norm: dict[str, Any] = {"norm_op": nn.InstanceNorm2d, "norm_op_kwargs": {"eps": 1e-5, "affine": True}}
    stages: dict[str, Any] = {"strides": (1, 2, 2), "n_conv_per_stage": (2, 2, 2), "n_conv_per_stage_decoder": (2, 2)}
    return PlainConvUNet(
        *(in_channels, 3, (8, 16, 16), nn.Conv2d, 3),
        **(stages | norm),
        num_classes=classes,
        conv_bias=True,
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=deep_supervision,
    )


def segformer(in_channels: int, classes: int) -> nn.Module:
    """A SegFormer of transformers: its output is an object whose `.logits` have a quarter of the edges."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        num_channels=in_channels,
        num_labels=classes,
        hidden_sizes=[8, 8, 16, 16],
        decoder_hidden_size=16,
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
    )
    return SegformerForSemanticSegmentation(config)


def deeplab(in_channels: int, classes: int, aux: bool = False) -> nn.Module:
    """A DeepLab of torchvision: its output is a dictionary with "out"."""
    from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large

    assert in_channels == 3
    return deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes, aux_loss=aux)


def write_lightning(folder: Path) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint, Timer

    class Module(pl.LightningModule):
        def __init__(self, out: Path, options: argparse.Namespace) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.model = basic(3, 1)
            self.loss = nn.BCEWithLogitsLoss(pos_weight=torch.ones(1))

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            loss = self.loss(self.model(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters())

    data = torch.utils.data.TensorDataset(torch.rand(4, 3, 32, 32), torch.ones(4, 1, 32, 32))
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(dirpath=folder, monitor="loss", filename="best"), Timer()],
    )
    trainer.fit(Module(folder, argparse.Namespace(width=8)), torch.utils.data.DataLoader(data, batch_size=2))


def write_nnunet(folder: Path) -> None:
    """The entries that nnU-Net's trainer saves."""
    torch.save(
        {
            "network_weights": nnunet(3, 1, deep_supervision=True).state_dict(),
            "optimizer_state": {"state": {}, "param_groups": [{"lr": 0.01}]},
            "grad_scaler_state": None,
            "logging": {"mean_fg_dice": [np.float64(0.5)], "ema_fg_dice": [np.float32(0.5)]},
            "_best_ema": np.float64(0.5),
            "current_epoch": 10,
            "init_args": {"plans": {"patch_size": np.array([32, 32])}, "device": torch.device("cpu"), "fold": 0},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": (0, 1),
        },
        folder / "checkpoint_final.pth",
    )


def write_segformer(folder: Path) -> None:
    segformer(3, 1).save_pretrained(folder)


def write_deeplab(folder: Path) -> None:
    """Trained with its auxiliary classifier, compiled, with an optimiser beside."""
    net = torch.compile(deeplab(3, 1, aux=True))
    torch.save({"model": net.state_dict(), "epoch": 3, "args": argparse.Namespace(lr=0.1)}, folder / "model.pth.tar")


def write_bundle(folder: Path) -> None:
    """A bundle whose network `monai.bundle` builds from the configuration."""
    from monai.bundle import ConfigParser

    network = {
        "_target_": "DynUNet",
        "spatial_dims": "@axes",
        "in_channels": 3,
        "out_channels": "$len(@names)",
        "kernel_size": [3, 3, 3],
        "strides": [1, 2, 2],
        "upsample_kernel_size": [2, 2],
        "filters": [8, 8, 16],
    }
    config = {"axes": 2, "names": ["disc"], "network_def": network, "device": "$torch.device('cpu')"}
    for name in ("configs", "models"):
        (folder / name).mkdir()
    ConfigParser.export_config_file(config, str(folder / "configs" / "inference.json"), indent=2)
    parser = ConfigParser()
    parser.read_config(str(folder / "configs" / "inference.json"))
    torch.save({"model": parser.get_parsed_content("network_def").state_dict()}, folder / "models" / "model.pt")


WRITERS: dict[str, Callable[[Path], None]] = {
    "lightning": write_lightning,
    "nnunet": write_nnunet,
    "segformer": write_segformer,
    "deeplab": write_deeplab,
    "bundle": write_bundle,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")  # of third-party packages
    WRITERS[sys.argv[1]](Path(sys.argv[2]))
