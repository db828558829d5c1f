"""Files: masks and models on disk.

masks         `bb.save_masks`, `bb.load_masks`
params        `bb.save`, `bb.load`: models without their pruned weights
encoding      masks and kept weights as bytes
matching      checks that a file fits the model it is loaded into
"""
