import numpy as np
import pytest


@pytest.fixture(scope="session")
def arrays() -> dict[str, np.ndarray]:
    """Four easy classes: a bright quarter each, on noise; 8x8, three channels."""
    rng = np.random.default_rng(0)

    def split(n: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, 4, n)
        x = rng.integers(0, 120, (n, 8, 8, 3))
        for i, label in enumerate(y):
            r, c = divmod(int(label), 2)
            x[i, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4] += 120
        return x.astype(np.uint8), y

    x, y = split(240)
    xt, yt = split(80)
    return {"x_train": x, "y_train": y, "x_test": xt, "y_test": yt}


TINY = {"name": "conv6", "width": 0.125, "neuron": {"type": "lif", "decay": 0.5, "threshold": 0.5}}


@pytest.fixture
def recipe() -> dict:
    """Teacher and student: three and four epochs of thirteen steps."""
    return {
        "title": "tiny",
        "data": {"batch_size": 16, "validation": 0.1},
        "time_steps": 2,
        "optimizer": {"lr": 0.05},
        "precision": "float32",
        "compile": False,
        "stages": [
            {"name": "teacher", "network": {**TINY, "ann": True}, "epochs": 3},
            {
                "name": "student",
                "network": dict(TINY),
                "init": {"from": "teacher"},
                "teacher": "teacher",
                "epochs": 4,
                "objectives": [{"type": "cross_entropy"}, {"type": "logit_distillation", "temperature": 2.0}],
            },
        ],
    }
