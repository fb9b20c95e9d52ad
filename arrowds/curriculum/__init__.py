"""From an index to batches of sample ids; NumPy, no torch.

schedule ----> config ----> pools ----> apportion + permutation ----> stateless --+
(step ->       (metrics,    (clusters   (cluster and member               |       |--> sampler --> trace
 difficulty)    checked)     of ids)     of every draw)                mixture    |    (ranks, position, state)
                                                                                  |
                                 deepspeed_order (one generator, step by step) ---+

batching: batches of variable size by a token budget, apart from all that
"""
