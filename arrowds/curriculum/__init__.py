"""From an index to batches of sample ids; NumPy, no torch.

schedule ----> config ----> pools ----> apportion, permutation, group_weights ----> draws ----+--> sampler --> trace
(step ->       (metrics,    (clusters   (group, cluster and member of      (global batches;   |    (ranks, position,
 difficulty)    checked)     of ids)     every draw)                        others by name)   |     state), mixture
                                                                                              |
                       token_budget --> token_steps: steps that depend on lengths, by marks --+
"""
