"""Do pruned nets that were trained on clean images differ on spoiled ones?"""
