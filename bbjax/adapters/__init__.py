"""Adapters: one file for each framework, and the only users of its classes.

    linen         Flax linen: functions of modules, and modules of other sizes
    nnx           Flax NNX: modules in trees of parameters

They are imported when they are first used.
"""
