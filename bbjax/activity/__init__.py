"""Activity: on-rates of units and the other statistics that rules read.

statistics    what is measured, and how partial measurements combine
on            when a unit counts as on
gradients     `bb.value_and_grad`: loss, gradients and activity of one step
observe       `bb.observe`: results of a function and the activity of its units
calibrate     `bb.calibrate`: statistics over many batches
evaluate      evaluates a jaxpr and measures on the way
per_unit      reductions to one number per unit
per_edge      larger statistics: pairs of units, maps, contributions of edges
convolution   what each edge of a convolution contributes
order         measured values in the kernel's own order
"""

from bbjax.activity.statistics import Activity, Statistics

__all__ = ["Activity", "Statistics"]
