"""Adapters that switch the penalty on in frameworks that users train with, in two lines each.

Each imports its framework only when it is used: `integrations.transformers`, `integrations.ultralytics`,
`integrations.torchvision` and `integrations.mmdet`; `integrations.detr` is for the criteria of other repositories of
the DETR family, and `integrations.distributed` helps loops of one's own.
"""
