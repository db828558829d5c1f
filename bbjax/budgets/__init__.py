"""Budgets: how many edges each unit keeps.

laws          from on-rates to real-valued degrees
degrees       `bb.degrees`: whole degrees whose sum is the budget exactly
exact         how many edges a density is, and how they are rounded
allocation    one density for a model: the same for all kernels, ERK, or OWL
outliers      `bb.owl`: densities of layers by their outliers
schedules     densities that change while training
"""
