"""Edges of a convolution are counted exactly, whatever its size."""

from itertools import product

from spikedistill.hardware.layer import Layer


def test_connections_are_those_that_a_loop_counts():
    for n, k, s, p, d in product((1, 5, 8), (1, 2, 3), (1, 2, 5), (0, 1, 4), (1, 2, 3)):
        try:
            layer = Layer(
                name="a", in_channels=1, out_channels=1, in_size=n, kernel_size=(k, 1), stride=(s, 1),
                padding=(p, 0),
                dilation=(d, 1),
            )  # fmt: skip
        except ValueError:
            assert n + 2 * p < d * (k - 1) + 1
            continue
        m = layer.positions[0]
        assert layer.connections == sum(0 <= o * s - p + j * d < n for o in range(m) for j in range(k)) * n
