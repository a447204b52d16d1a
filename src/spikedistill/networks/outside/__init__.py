"""Networks that others made: timm's and torchvision's, other spiking libraries', any network with ReLUs.

``spiking`` turns a ReLU network site by site (``relu_sites``, ``spiking_check``, ``rows``); ``adopt`` makes a
network of another spiking library ours (``peers``, ``loops``, ``original``); ``foreign`` runs one as it is;
``library`` and ``published`` know names and weight files; ``adapter`` gives a module our entrance and exit.
"""
