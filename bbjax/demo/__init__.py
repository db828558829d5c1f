"""The demo: `python -m bbjax.demo`, a small comparison on real data in minutes.

Small convolutional nets learn scikit-learn's handwritten digits: dense, and pruned to
the same exact density by magnitude, by activity alone and by Budgeted Broadcast (SP-in,
SP-out, both). Every method sees the same initial weights and the same batches, seed by
seed, so that differences are paired.

    data      the digits, split and standardised; the batches of a seed
    model     the net, its loss, its units, which of them are dead
    methods   what is compared, and when it prunes
    train     one training step per method, the interleaved runs, the sweep
    tables    the results as JSON, as a table and as one sentence
    pictures  five PNG files
"""
