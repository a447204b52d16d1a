"""Distil a spiking network in a training loop of your own: 8x8 digits, a minute on one CPU core."""

from importlib.resources import files

import numpy as np
import torch
from torch.nn.functional import cross_entropy

import spikedistill as sd

digits = np.load(files("spikedistill") / "data" / "digits.npz")  # 1,797 images with values from 0 to 16
x = torch.tensor(digits["images"] / 16, dtype=torch.float32).unsqueeze(1)
y = torch.tensor(digits["labels"], dtype=torch.int64)
train, test = slice(0, 1500), slice(1500, None)


def batches(epochs: int, size: int = 50):
    for _ in range(epochs):
        yield from ((x[train][i], y[train][i]) for i in torch.randperm(1500).split(size))


def main(epochs: int = 10) -> float:
    torch.manual_seed(0)
    options = {"in_channels": 1, "width": 0.25, "pools": 1, "mean": 0.31, "std": 0.38}
    teacher = sd.networks.create("vgg5", time_steps=None, **options)  # the ANN twin
    optimizer = torch.optim.Adam(teacher.parameters(), 2e-3)
    for images, labels in batches(epochs):
        optimizer.zero_grad()
        cross_entropy(teacher(images), labels).backward()
        optimizer.step()

    student = sd.networks.create("vgg5", time_steps=4, **options)
    distiller = sd.Distiller(
        student,
        teacher,
        [
            {"type": "cross_entropy"},
            {"type": "blurred_feature", "weight": 0.002},
            sd.objectives.LogitDistillation(
                temperature=2.0, weight={"start": 1.0, "end": 0.5, "shape": "linear"}
            ),
        ],
    ).setup(x[:50])  # before the optimizer: the blurred feature has a restoration block to train
    optimizer = torch.optim.Adam(sd.parameter_groups(distiller, 2e-3, optimizer="adam"))
    steps = 30 * epochs
    for step, (images, labels) in enumerate(batches(epochs)):
        losses = distiller(images, labels, progress=step / steps)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        if step % 30 == 29:
            print(f"{step + 1:4d} " + " ".join(f"{name} {value:.3f}" for name, value in losses.parts.items()))

    sd.settle(student, x[train].split(50))  # norm statistics of the weights as they are now
    student.eval()
    with torch.no_grad():
        accuracy = (student.predict(x[test]).argmax(1) == y[test]).float().mean()
    print(f"spiking student, T = 4: {accuracy:.1%} of {len(x[test])} test digits")
    return float(accuracy)


if __name__ == "__main__":
    main()
