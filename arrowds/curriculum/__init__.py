"""From an index to batches of sample ids; NumPy, no torch.

schedule ----> config ----> pools ----> apportion + permutation ----> stateless --+
(step ->       (metrics,    (clusters   (cluster and member               |       |--> sampler --> trace
 difficulty)    checked)     of ids)     of every draw)                mixture    |    (ranks, position, state)
                                                                                  |
                       draws: other sequences of batches, registered by name -----+
"""
