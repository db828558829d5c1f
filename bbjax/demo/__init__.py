"""The demo: `python -m bbjax.demo`, a small comparison on real data in minutes.

Small convolutional nets learn scikit-learn's handwritten digits: dense, and pruned to
the same exact density by magnitude, by activity alone and by Budgeted Broadcast with a
budget of fan-in (SP-in in the paper), of fan-out (SP-out), or of both. Every method has
the same initial weights and the same batches, seed by seed, so that differences are
paired. Then whole units are removed from the dense nets, which become really smaller.

    data        the digits, split and standardised; the batches of a seed
    model       the net, its loss, its units, which of them are dead
    methods     what is compared, and when it prunes
    train       one training step per method, the interleaved runs
    outcome     what a trained method has come to
    smaller     nets with fewer units, and their time per call
    run         the steps of the demo, one after the other
    progress    says which step it is, and how long it takes
    folders     where results go, and which folders are free
    interrupt   ends the demo by Ctrl-C, also while JAX is imported
    results     all that a run found
    statistics  paired t tests, corrected
    tables      the results as JSON and as a table
    origin      commit, versions, machine
    drawing     colours, fonts and axes; panels and pictures draw the PNG files
"""
