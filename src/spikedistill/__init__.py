"""Knowledge distillation for spiking neural networks, from an ANN teacher to an integer network and its price on a chip."""

__version__ = "0.1.0"
