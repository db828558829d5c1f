"""Files: masks and models on disk.

masks         `bb.save_masks`, `bb.load_masks`
params        `bb.save`, `bb.load`: models without their pruned weights
atomic        writes files whole: the old one or the new one
container     the one format of both, its writer and its reader
encoding      leaves as tensors of a file, and back
matching      checks that a file fits the model it is loaded into
masks_v1      reads mask files of version 1
"""
