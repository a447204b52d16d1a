"""Convert the published CIFAR-10 ResNet-20 (91.73 % as ANN) and print its accuracy against T.

    python examples/convert_resnet20.py DATA [--images 1000] [--percentile 99.9|max]
        [--method threshold_balancing|signed]

DATA: a folder with teacher_cifar10_resnet20.npz and cifar10.npz (x_train, y_train, x_test, y_test; uint8
N,H,W,C), or with torchvision's CIFAR-10 folder in place of the latter.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import spikedistill as sd
from spikedistill.conversion import accuracy_over_time
from spikedistill.networks.base import IMAGENET_MEAN, IMAGENET_STD
from spikedistill.networks.outside.library import load_weights


def cifar10(root: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Calibration images (the first 512 of the training set), test images and labels."""
    if (root / "cifar10.npz").exists():
        z = np.load(root / "cifar10.npz")
        train, test, labels = z["x_train"][:512], z["x_test"], z["y_test"]
    else:
        from torchvision.datasets import CIFAR10

        train, data = CIFAR10(root).data[:512], CIFAR10(root, train=False)
        test, labels = data.data, np.array(data.targets)

    def images(x: np.ndarray) -> Tensor:
        return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 255

    return images(train), images(test), torch.from_numpy(np.asarray(labels)).long()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--percentile", default="99.9")
    parser.add_argument("--method", default="threshold_balancing")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64, 128, 256])
    args = parser.parse_args()
    train, test, labels = cifar10(args.data)
    test, labels = test[: args.images], labels[: args.images]
    ann = sd.networks.create("resnet20", time_steps=None, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    load_weights(ann, args.data / "teacher_cifar10_resnet20.npz").eval()
    batches = list(zip(test.split(250), labels.split(250)))
    with torch.no_grad():
        accuracy = sum(int((ann(x).argmax(1) == y).sum()) for x, y in batches) / len(labels)
    print(f"ANN, {len(labels)} test images: {100 * accuracy:.2f} %")
    percentile = "max" if args.percentile == "max" else float(args.percentile)
    snn = sd.convert(ann, train.split(128), method=args.method, percentile=percentile)
    begun = time.time()
    for t, a in accuracy_over_time(snn, batches, args.steps).items():
        print(f"T = {t:3d}: {100 * a:.2f} %")
    print(f"{time.time() - begun:.0f} s")


if __name__ == "__main__":
    main()
