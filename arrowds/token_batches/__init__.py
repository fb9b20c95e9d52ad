"""Batches of variable size by a token budget; NumPy, no torch.

rules --> packing (best_fit, balance) --> plan --> sampler
          (which position goes where)     (ids)    (one rank's batches, epoch after epoch, resumable)
"""
