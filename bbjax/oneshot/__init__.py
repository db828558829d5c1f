"""One shot: pruning a trained network.

prune         `bb.prune`, `bb.prune_in_order`, `bb.apply_masks`
sensitivity   the loss with one kernel pruned at a time, and budgets from it
unseen        stack slices that no calibration sample reached
masked        kernels under masks, with Gram matrices of their inputs
reconstruct   updates of kept weights after any rule
refine        better masks after any rule
recover       biases that take over means, and norms measured again
saliency      scores of edges from gradients
rounds        prunes, trains and scores in turn
spreads       slopes of the balance, chosen from calibration data
nnrelief      `bb.relieve`: pruning by what edges contribute, layer by layer
fine_pruning  `bb.personalise`: pruning for the data of one user
"""
