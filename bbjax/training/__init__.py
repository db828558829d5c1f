"""Training: when masks are chosen, as an Optax gradient transformation.

transform     `bb.transform`, `bb.wrap`, `bb.hold`
arguments     checks of what they are given
options       their settings, in one record
pruner        what one update does
all_kernels   a refresh of all kernels: together where they are alike or compete
alike         the loop over kernels that are alike, which are compiled once
refresh       one kernel's refresh, before and after the rule chooses
plan          the static part of a state: rule, kernels, actuators
state         what the optimizer state holds, and how it is read
observations  checks of the activity and gradients that come with an update
owners        finds the parameter of each leaf of an optimizer state
moments       resets the moments of an optimizer for weights that regrew
metrics       `bb.metrics`: figures of a state
resume        restoring a state from a file
continuation  whether a state goes on with the settings of a transform
adopt         `bb.adopt`: carries a state over to other settings
"""
