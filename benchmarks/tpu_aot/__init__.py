"""Whole train steps compiled for TPUs ahead of time, without a TPU or a weight.

The compiler says what a chip will hold and what chips will send each other:

    topology    named topologies, their chips, and a mesh over them
    programs    the dense and the pruned train step as shapes with shardings
    hlo         reads compiled programs: collectives, copies, the loop of a refresh
    measure     one model on one topology: bytes, collectives, estimated times
    table       what is printed

    python -m benchmarks.tpu_aot --help
"""
